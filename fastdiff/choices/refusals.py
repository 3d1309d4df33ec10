"""Why an override can't be read, in one screen, with the nearest right spelling.

Hydra's own refusals are put into words here. Also refused: what Hydra would let through (`+key`, a slot that is null or
deleted).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import fields
from textwrap import indent
from typing import Any, get_origin

from fastdiff.choices.experiments import check_experiment, names, read_experiment
from fastdiff.choices.grid_values import names_of, single_overrides, why_not_one
from fastdiff.choices.hydras_keys import hydras_own, refused_by_name, unread
from fastdiff.choices.keys import keys_of
from fastdiff.choices.options import default_options, every_key, is_literal, option_files
from fastdiff.choices.overrides import ASSIGNMENT, PROMPT, quoted
from fastdiff.config import SCALARS, SLOTS, Generation, RunConfig
from fastdiff.errors import UsageError, did_you_mean, nearest

MOST_DIGITS = 300
"""Of a number; the largest that a computer calculates with has 309."""


def refusals(overrides: Sequence[str]) -> list[str]:
    """Everything that can be told wrong before Hydra composes, in the order typed."""
    said: list[str] = []
    for override in overrides:
        try:
            refuse_early(override)
            unknown = _no_such_key(override, overrides)
        except UsageError as error:
            unknown = str(error)
        if unknown and unknown not in said:
            said.append(unknown)
    return said


def raise_all(said: Sequence[str]) -> None:
    """One refusal as it stands, several below a line that counts them. Raises UsageError unless there is none."""
    if len(said) == 1:
        raise UsageError(said[0])
    if said:
        each = "\n".join(indent(text, "  ") for text in said)
        raise UsageError(f"{len(said)} things can't be read\n{each}", said)


def refuse_early(override: str, of_a_grid: bool = False) -> None:
    """What Hydra accepts or explains badly. Raises UsageError."""
    if hydras_own([override]):
        if said := refused_by_name(override, of_a_grid):
            raise UsageError(said)
        return
    if override.startswith(("+", "~")):
        bare = override.lstrip("+~")
        raise UsageError(
            f"{override}: keys can't be added or removed, every key exists already\n  instead: {bare}"
            if "=" in bare
            else f"{override}: a slot can't be removed\n  instead: {bare}=none, or another option of {bare}"
        )
    match = ASSIGNMENT.match(override)
    if match is None:
        raise UsageError(_not_an_assignment(override))
    key, value = match["key"], match["value"]
    if not is_literal(key) and (number := re.search(rf"\d{{{MOST_DIGITS + 1},}}", value)):
        raise UsageError(
            f"{key} holds a number of {len(number[0])} digits, and none takes more than {MOST_DIGITS}\n"
            "  instead: a smaller number"
        )
    if (key == "experiment" or key in SLOTS) and "(" in value and (said := _unreadable(override)):
        raise UsageError(said)
    if key == "experiment":
        if "," in value:
            raise UsageError(
                f"experiment takes one name at a time, not '{value}'\n"
                f"  instead: experiment={value.split(',')[0].strip()}, or -m experiment={value} for a run of each"
            )
        check_experiment(value.strip())
        return
    root, _, inner = key.partition(".")
    if root == "experiment":
        raise UsageError(
            f"{key} says what a document published, and can't be set\n  instead: experiment=NAME"
        )
    if key == "recipe":
        return  # whoever reads the file says what is wrong with it
    if root not in (*SLOTS, "generation", *SCALARS) or (inner and root in SCALARS):
        raise UsageError(_unknown_root(key))
    if key == "generation":
        keys = ", ".join(f"generation.{name}" for name in keys_of(Generation))
        raise UsageError(f"generation has keys, not options\n  there are: {keys}")
    if key in SLOTS:
        listed = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
        if "," in value and "(" not in value and listed:
            raise UsageError(
                f"{key} takes one option at a time, not '{value}'\n"
                f"  instead: {key}={listed[0]}, or -m {key}={','.join(listed)} for a run of each"
            )
        _check_option(key, value.strip())


def refuse_sweep(overrides: Sequence[str]) -> None:
    """What can be told wrong of a grid before its combinations are made. Raises UsageError."""
    said: list[str] = []
    for override in overrides:
        for each in _names_listed(override):
            try:
                refuse_early(each, of_a_grid=True)
            except UsageError as error:
                said.append(str(error))
    raise_all(list(dict.fromkeys(said)) or _grammar(overrides, of_a_grid=True))


def _names_listed(override: str) -> list[str]:
    """The choices of one option each that an override of a slot lists; any other as it stands."""
    key, equals, value = override.partition("=")
    if not equals or (key not in SLOTS and key != "experiment"):
        return [override]
    if "(" not in value:  # a name that is left out is told as such
        return [f"{key}={name.strip()}" for name in value.split(",")]
    from hydra.errors import HydraException

    try:
        return single_overrides(override)
    except (HydraException, UsageError):
        return []  # told of the grammar


def _not_an_assignment(word: str) -> str:
    from fastdiff.choices.verbs import VERBS

    if word in VERBS:
        return f"'{word}' is a command, and a command comes first\n  instead: python -m fastdiff {word} ..."
    if word.startswith("-"):
        return f"there is no option {word} here\n  instead: python -m fastdiff --help shows what there is"
    way_out = did_you_mean(word, VERBS, "{}", f"commands: {', '.join(VERBS)}; or slot=option")
    return f"'{word}' is neither a command nor an override of the form key=value\n  {way_out}"


def _unknown_root(key: str) -> str:
    if key.startswith("sweep."):
        return f"{key} is about a sweep, and this is a single run\n  instead: -m makes a sweep of what follows it"
    known = (*SLOTS, "experiment", "recipe", "generation", *SCALARS)
    root = key.split(".")[0].lower()
    owners = [typed for typed in every_key() if typed.split(".")[-1] == key]
    hint = f"did you mean: {owners[0]}" if owners and not nearest(root, known) else None
    return f"there is no key '{key}'\n  {hint or did_you_mean(root, known)}"


def _check_option(slot: str, option: str) -> None:
    options = list(option_files()[slot])
    if option in options:
        return
    hint = did_you_mean(option, options, f"{slot}={{}}")
    if option in ("null", ""):
        hint = f"choose one of: {', '.join(options)}"
    raise UsageError(f"{slot} has no option '{option}'\n  {hint}")


def unknown_key(composed: Any) -> str | None:
    """A key that no dataclass declares; the schema lets none through unless `+` brought it."""
    known = {f.name for f in fields(RunConfig)}
    extra = [str(key) for key in composed if str(key) not in known]
    return _unknown_root(extra[0]) if extra else None


def explain(overrides: Sequence[str], error: Exception) -> str:
    """One screen about what Hydra or OmegaConf refused."""
    for override in overrides:
        match = ASSIGNMENT.match(override)
        if match is None or match["key"] in (*SLOTS, "experiment"):
            continue
        if hydras_own([override]):
            continue
        if match["key"] in SCALARS:
            if f"override {override}" in str(error):
                return keys_of(RunConfig)[match["key"]].refusal(match["key"], match["value"])
            continue
        root, key = match["key"].split(".", 1)
        schema = _chosen_schema(root, overrides)
        if schema is None:
            continue
        known = keys_of(schema)
        if key not in known:
            return _unknown_slot_key(root, key, match["value"], known, overrides)
        if f"override {override}" in str(error) or f"'{match['key']}'" in str(error):
            return known[key].refusal(match["key"], match["value"])
    said = _grammar(overrides) or _experiments_key(overrides, error)
    return said[0] if said else (unread(overrides, error) or _in_one_line(error))


def missing_keys(overrides: Sequence[str]) -> list[str]:
    """Those of the overrides whose key the option that they choose hasn't got."""
    return [override for override in overrides if _no_such_key(override, overrides)]


def _no_such_key(override: str, overrides: Sequence[str]) -> str | None:
    """Why no chosen option has the key of an override; None if it has, or if nobody can tell yet."""
    match = ASSIGNMENT.match(override)
    root, _, key = match["key"].partition(".") if match else ("", "", "")
    if match is None or not key or root not in (*SLOTS, "generation") or "[" in key:
        return None
    schema = _chosen_schema(root, overrides)
    if schema is None:
        return None
    known = keys_of(schema)
    parents = [key.rsplit(".", n)[0] for n in range(1, key.count(".") + 1)]
    if key in known or any(
        parent in known and get_origin(known[parent].kind) is dict for parent in parents
    ):
        return None
    return _unknown_slot_key(root, key, match["value"], known, overrides)


def _experiments_key(overrides: Sequence[str], error: Exception) -> list[str]:
    """A key that an experiment sets, and that the option typed beside it hasn't got."""
    name = re.search(r"In 'experiment/([\w/]+)'", str(error))
    key = re.search(r"Key '(\w+)' not in '\w+'\s+full_key: (?:\w+\.)*?(\w+)\.\1", str(error))
    if not (name and key and key[2] in SLOTS):
        return []
    slot = key[2]
    option = f"{slot}={_chosen_option(slot, overrides)}"
    return [
        f"experiment={name[1]} sets {slot}.{key[1]}, and {option} has no such key\n"
        f"  instead: leave out {option}, or name the choices without the experiment"
    ]


def _grammar(overrides: Sequence[str], of_a_grid: bool = False) -> list[str]:
    """The overrides that Hydra's grammar can't read, or whose values are several where one is wanted, or too many."""
    said = (_unreadable(override, of_a_grid) for override in overrides)
    return [text for text in said if text]


def _unreadable(override: str, of_a_grid: bool = False) -> str | None:
    from hydra.errors import HydraException

    try:
        if not of_a_grid:
            return why_not_one(override)
        single_overrides(override)
        return None
    except UsageError as error:
        return str(error)
    except HydraException as error:
        return _unread_grammar(override, error, of_a_grid)


def _unread_grammar(override: str, error: Exception, of_a_grid: bool) -> str:
    """A way out for what Hydra's grammar stops at."""
    key, _, value = override.partition("=")
    if override.startswith(f"{PROMPT}=["):
        return (
            f"{override} can't be read as a list of texts\n"
            '  instead: put each text in double quotes: \'generation.prompt=["a cat", "a dog"]\''
        )
    if of_a_grid and is_literal(key):
        return (
            f"{override} can't be read in a sweep, where commas part values and brackets mean something\n"
            f"  instead: {_in_quotes(key, value)}"
        )
    function = re.search(r"while evaluating '.*': (.*)", str(error), re.DOTALL)
    if function:
        names = ",".join(names_of(key)[: 2 if of_a_grid else 1])
        way_out = f"{key}={names}" if names else "what the function should give, without a function"
        return f"{override} can't be read: {function[1].splitlines()[0]}\n  instead: {way_out}"
    return (
        f"{override} can't be read: brackets and quotes must be closed, and a text with signs in it quoted\n"
        f"  instead: quote it twice, once for the shell and once for Hydra: '{key}=\"...\"'"
    )


def _in_quotes(key: str, value: str) -> str:
    """A text as a shell and Hydra's grammar take it; where commas part it, also as several texts."""
    said = shlex.quote(f"{key}={quoted(value)}")
    parts = [part.strip() for part in re.split(r",(?![^(\[{]*[)\]}])", value)]
    if len(parts) < 2:
        return said
    several = shlex.quote(f"{key}={','.join(map(quoted, parts))}")
    return f"{said}, which is one text; or {several} for a run of each"


def _in_one_line(error: Exception) -> str:
    """What Hydra or OmegaConf says itself, and where to read on."""
    full_key = getattr(error, "full_key", None)
    first = str(error).strip().splitlines()[0]
    return (
        f"{f'{full_key}: ' if full_key else ''}{first}\n"
        "  instead: python -m fastdiff --help shows every key; HYDRA_FULL_ERROR=1 shows where it went wrong"
    )


def _chosen_schema(root: str, overrides: Sequence[str]) -> type | None:
    if root == "generation":
        return Generation
    name = _chosen_option(root, overrides)
    file = option_files()[root].get(name)
    return file.schema if file else None


def _chosen_option(slot: str, overrides: Sequence[str]) -> str:
    """The option that the overrides choose for a slot, themselves or by an experiment, or its default."""
    for override in reversed(overrides):
        if override.startswith(f"{slot}="):
            return override.split("=", 1)[1]
    for override in reversed(overrides):
        name = override.removeprefix("experiment=")
        if override.startswith("experiment=") and name in names():
            choices = read_experiment(name).choices
            if slot in choices:
                return choices[slot]
    return default_options()[slot]


def _unknown_slot_key(
    root: str, key: str, value: str, known: Collection[str], overrides: Sequence[str]
) -> str:
    name = f"{root}={_chosen_option(root, overrides)}" if root != "generation" else root
    owners = [
        f"{root}={option}"
        for option, file in (option_files().get(root) or {}).items()
        if file.schema and key in keys_of(file.schema)
    ]
    if option := _option_meant(root, key, value):
        hint = f"did you mean: {root}={option}"
    else:
        it_has = f"it has: {', '.join(known)}" if known else "it has no keys"
        belongs = f"it belongs to: {', '.join(owners)}" if owners else it_has
        hint = did_you_mean(key, known, f"{root}.{{}}", belongs)
    return f"{name} has no key '{key}'\n  {hint}"


def _option_meant(root: str, key: str, value: str) -> str | None:
    """`compile.mode=max-autotune` is compile=max_autotune: the value of a key that isn't there names an option."""
    options = option_files().get(root) or {}
    name = value.strip("'\"").replace("-", "_")
    if name in options:
        return name
    return nearest(name, options) if key == "mode" else None
