"""`python -m fastdiff recipe VERB ...`: what each verb reads of its words, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

from fastdiff.choices.recipe.checking import read_recipe
from fastdiff.errors import FastdiffError, UsageError, nearest

VERBS = {
    "check": "FILE [overrides]: is it right, and can it run here? Every problem at once",
    "show": "FILE [overrides]: what it resolves to, its plan, what was measured",
    "diff": "A B: what two of them choose differently",
    "verify": "FILE [overrides]: measure again; exit code 1 if its figures don't hold",
    "export": "FILE --script OUT.py: a plain script without fastdiff",
    "upgrade": "FILE: an older format written anew",
    "save": "RUN_DIR -o FILE [--name N] [--description T] [--generation]: a run, or a cell of a sweep, as a recipe; --generation keeps steps, size and prompt",
    "schema": ": the JSON Schema, for editors, with this team's own options",
}


@dataclass(frozen=True)
class Words:
    """What follows a verb: files, overrides, and flags with their values."""

    named: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)


def run(words: Sequence[str]) -> int:
    """Do what the verb says; returns the exit code. Raises UsageError."""
    verb, *others = words or [""]
    if verb not in _DO:
        near = nearest(verb, _DO)
        lines = [
            fill(f"  {name:<8} {text}", 80, subsequent_indent=" " * 11)
            for name, text in VERBS.items()
        ]
        hint = f"did you mean: recipe {near}" if near else "there are:\n" + "\n".join(lines)
        said = f"recipe has no '{verb}'" if verb else "recipe needs to know what to do with a file"
        raise UsageError(f"{said}\n  {hint}")
    return _DO[verb](others)


def _read(verb: str, words: Sequence[str], named: int, flags: Sequence[str] = ()) -> Words:
    """The words of a verb that names so many files. A flag takes the next word, but for those that stand alone."""
    found = Words()
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("-"):
            flag, equals, value = word.partition("=")
            if flag not in flags:
                there = f"there is: {', '.join(flags)}" if flags else "it has none"
                raise UsageError(f"recipe {verb} has no option {flag}\n  {there}")
            if flag not in _ALONE and not equals:
                if not left:
                    raise UsageError(f"{flag} needs a value\n  instead: {_usage(verb)}")
                value = left.pop(0)
            found.flags[flag] = value
        elif "=" in word and not Path(word).exists():
            found.overrides.append(word)
        else:
            found.named.append(word)
    if len(found.named) != named:
        what = "one file" if named == 1 else f"{named} files"
        raise UsageError(
            f"recipe {verb} needs {what}, not {len(found.named)}\n  instead: {_usage(verb)}"
        )
    return found


_ALONE = ("--json", "--generation")


def _usage(verb: str) -> str:
    return f"python -m fastdiff recipe {verb} {VERBS[verb].partition(':')[0]}"


def _no_overrides(verb: str, words: Words) -> None:
    if words.overrides:
        raise UsageError(
            f"recipe {verb} takes no overrides, not {words.overrides[0]}\n  instead: {_usage(verb)}"
        )


def _check(words: Sequence[str]) -> int:
    from fastdiff.commands.recipe.check import check, check_text, refusal

    asked = _read("check", words, 1, ["--json"])
    found = check(asked.named[0], asked.overrides)
    if "--json" in asked.flags:
        _print_json(found.to_dict())
        return 0 if found.right else UsageError.exit_code
    if not found.right:
        raise refusal(found)
    print(check_text(found))
    return 0


def _show(words: Sequence[str]) -> int:
    from fastdiff.commands.recipe.check import check, refusal
    from fastdiff.commands.recipe.show import show_text

    asked = _read("show", words, 1)
    found = check(asked.named[0], asked.overrides)
    if not found.right:
        raise refusal(found)
    print(show_text(found))
    return 0


def _diff(words: Sequence[str]) -> int:
    from fastdiff.commands.recipe.difference import difference, difference_text

    asked = _read("diff", words, 2, ["--json"])
    _no_overrides("diff", asked)
    a, b = asked.named
    found = difference(a, b)
    if "--json" in asked.flags:
        _print_json(found)
    else:
        print(difference_text(a, b, found))
    return 0


def _verify(words: Sequence[str]) -> int:
    from fastdiff.choices.compose import compose
    from fastdiff.choices.recipe.using import spelled_out
    from fastdiff.commands.recipe.verify import (
        another_machine,
        figures,
        figures_text,
        read_how,
        work_words,
    )
    from fastdiff.display.layout import headline, labelled, shown
    from fastdiff.display.progress import progress
    from fastdiff.machine.files import write_json
    from fastdiff.planning.outlook import planned
    from fastdiff.runs.single import execute, new_folder

    how, others = read_how(words)
    asked = _read("verify", others, 1, ["--json"])
    (path,) = asked.named
    recipe = read_recipe(path)
    overrides = [f"recipe={path}", *work_words(recipe, asked.overrides), *asked.overrides]
    plan = planned(compose(overrides))
    folder = new_folder()
    with progress() as told:
        report = execute(plan, spelled_out(overrides, plan.setting.run.recipe), folder, told)
    if report["status"] == "interrupted":
        return 130
    if report["status"] not in ("ok", "invalid_output"):
        message = report["error"]["message"]
        raise FastdiffError(
            f"recipe '{recipe.name}' could not be measured again: {report['status']}\n"
            f"  {message}\n  instead: look into {shown(folder)}/log.txt"
        )
    found = figures(recipe, report, how)
    holds = all(figure.holds is not False for figure in found)
    notice = another_machine(recipe, report)
    data = {
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256,
        "holds": holds,
        "figures": [figure.to_dict() for figure in found],
        "another_machine": notice,
    }
    write_json(folder / "verify.json", data)
    if "--json" in asked.flags:
        _print_json(data)
    else:
        print(headline(f"{path} {'holds' if holds else 'does not hold'} here"))
        print(figures_text(found, how, notice))
        print(labelled("written", f"{shown(folder)}/verify.json, report.md"))
    return 0 if holds else 1


def _export(words: Sequence[str]) -> int:
    from fastdiff.choices.compose import compose
    from fastdiff.commands.recipe.export import script_of
    from fastdiff.commands.recipe.save import write_new
    from fastdiff.display.layout import headline
    from fastdiff.planning.outlook import planned

    asked = _read("export", words, 1, ["--script"])
    if "--script" not in asked.flags:
        raise UsageError(f"recipe export needs the script's name\n  instead: {_usage('export')}")
    (path,) = asked.named
    recipe = read_recipe(path)
    plan = planned(compose([f"recipe={path}", *asked.overrides]))
    made_for = f"{recipe.model['option'] if recipe.model else 'any model'} on {recipe.device}"
    text = script_of(plan, recipe.name, made_for)
    out = Path(asked.flags["--script"])
    write_new(out, text, "--script")
    print(headline(f"{path} as a plain script: {out}"))
    return 0


def _upgrade(words: Sequence[str]) -> int:
    from fastdiff.choices.recipe.format import FORMAT
    from fastdiff.choices.recipe.upgrading import upgraded
    from fastdiff.commands.recipe.save import write_new
    from fastdiff.display.layout import headline
    from fastdiff.machine.files import write_text

    asked = _read("upgrade", words, 1, ["-o"])
    _no_overrides("upgrade", asked)
    path = Path(asked.named[0])
    before, text = upgraded(path)
    if before == FORMAT:
        print(headline(f"{path} has today's format already: {FORMAT}"))
        return 0
    if "-o" in asked.flags:
        path = Path(asked.flags["-o"])
        write_new(path, text)
    else:
        write_text(path, text)
    print(headline(f"{path} has format {FORMAT} now, it had {before}"))
    return 0


def _save(words: Sequence[str]) -> int:
    from fastdiff.commands.recipe.save import saved, write_new
    from fastdiff.display.layout import headline

    asked = _read("save", words, 1, ["-o", "--name", "--description", "--generation"])
    _no_overrides("save", asked)
    if "-o" not in asked.flags:
        raise UsageError(f"recipe save needs the file's name\n  instead: {_usage('save')}")
    out = Path(asked.flags["-o"])
    name = asked.flags.get("--name", out.stem)
    description = asked.flags.get("--description")
    text = saved(Path(asked.named[0]), name, description, "--generation" in asked.flags)
    write_new(out, text)
    print(headline(f"recipe '{name}' written: {out}"))
    return 0


def _schema(words: Sequence[str]) -> int:
    from fastdiff.choices.options import option_files
    from fastdiff.choices.recipe.schema import schema_text

    _read("schema", words, 0)
    print(schema_text(option_files()), end="")
    return 0


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, allow_nan=False, default=str))


_DO: dict[str, Callable[[Sequence[str]], int]] = {
    "check": _check,
    "show": _show,
    "diff": _diff,
    "verify": _verify,
    "export": _export,
    "upgrade": _upgrade,
    "save": _save,
    "schema": _schema,
}
