"""What belongs to a command: its own keys, the launchers of a sweep, and the public names of the Python API."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

import fastdiff
from fastdiff.choices.docstrings import key_texts
from fastdiff.commands.recipe import VERBS
from fastdiff.commands.recipe.verify import How as Verify
from fastdiff.config import CONF_DIR
from fastdiff.runs.compare.how import How as Compare
from fastdiff.runs.ladder.climb import How as Ladder
from fastdiff.runs.sweep.how import How as Sweep
from generating.docstrings import type_words
from generating.markdown import anchor, code, definition, marked, sentence, table, text
from generating.options import as_typed


def sweep() -> str:
    return _own_keys("sweep", Sweep)


def compare() -> str:
    return _own_keys("compare", Compare)


def ladder() -> str:
    return _own_keys("ladder", Ladder)


def verify() -> str:
    return _own_keys("verify", Verify)


def recipe_verbs() -> str:
    """What can be done with a recipe, as the command line says it."""
    rows = []
    for verb, words in VERBS.items():
        arguments, colon, about = words.partition(": ")
        typed = f"recipe {verb} {arguments if colon else ''}".rstrip()
        rows.append([code(typed), sentence(text(about or words))])
    return "\n".join(table(["command", "what it does"], rows))


def _own_keys(command: str, schema: Any) -> str:
    """The keys of a command, as typed, with what its dataclass says of them."""
    hints, texts = get_type_hints(schema), key_texts(schema)
    lines = []
    for f in fields(schema):
        key = f"{command}.{f.name}"
        about = sentence(text(texts.get(f.name, "")))
        term = marked(key, anchor("key", command, f.name), type_words(hints[f.name]))
        lines += definition(term, f"{about} Default: {as_typed(f.default)}.".strip())
    return "\n".join(lines)


def launchers() -> str:
    """What a sweep can be handed to, by the comments of `conf/hydra/launcher/`."""
    lines = []
    for path in sorted((CONF_DIR / "hydra" / "launcher").glob("*.yaml")):
        comment = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        typed, _, about = comment.partition(": ")
        lines.append(f"- `{typed}`: {text(about)}")
    return "\n".join([*lines, ""])


def python() -> str:
    """Directives for every public name: functions first, then classes, then errors."""
    named = {name: getattr(fastdiff, name) for name in fastdiff.__all__}
    functions = [name for name, found in named.items() if inspect.isfunction(found)]
    functions.sort(key=lambda name: inspect.unwrap(named[name]).__code__.co_firstlineno)
    classes = [name for name, found in named.items() if inspect.isclass(found)]
    errors = [name for name in classes if issubclass(named[name], Exception)]
    results = [name for name in classes if name not in errors]
    lines = []
    for title, kind, names in (
        ("Functions", "autofunction", functions),
        ("Results", "autoclass", results),
        ("Errors", "autoexception", errors),
    ):
        if names:
            lines += [f"## {title}", "", "```{eval-rst}"]
            for name in names:
                lines += [f".. {kind}:: fastdiff.{name}", ""]
            lines += ["```", ""]
    return "\n".join(lines)
