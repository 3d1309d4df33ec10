"""`recipe VERB FILE`: look at a shared file, compare, measure again, write. Every verb is a module here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from textwrap import fill

from fastdiff.commands.words import read_words
from fastdiff.errors import UsageError, did_you_mean

VERBS = {
    "check": "FILE [--json] [overrides]: is it right, and can it run here? Every problem at once",
    "show": "FILE [overrides]: what it resolves to, its plan, what was measured",
    "diff": "A B [--json]: what two of them choose differently",
    "verify": "FILE [--json] [overrides]: measure again; exit code 1 if its figures don't hold",
    "export": "FILE --script OUT.py [overrides]: a plain script without fastdiff",
    "save": "RUN_DIR -o FILE [--name N] [--description T] [--generation]: a run, or a cell of a sweep, as a recipe; --generation keeps steps, size and prompt",
    "schema": ": the JSON Schema, for editors, with this team's own options",
}
"""What follows each verb, and what it is for."""


def run(words: Sequence[str]) -> int:
    """Do what the verb says; returns the exit code. Raises UsageError."""
    verb, *others = words or [""]
    if verb not in VERBS:
        lines = (
            fill(f"  {name:<8} {text}", 80, subsequent_indent=" " * 11)
            for name, text in VERBS.items()
        )
        hint = did_you_mean(verb, VERBS, "recipe {}", "there are:\n" + "\n".join(lines))
        said = f"recipe has no '{verb}'" if verb else "recipe needs to know what to do with a file"
        raise UsageError(f"{said}\n  {hint}")
    read = read_words(f"recipe {verb}", VERBS[verb].partition(":")[0], others)
    code: int = import_module(f"{__name__}.{verb}").run(read)
    return code
