"""Keys that belong to a command rather than to a run, as typed: `compare.pairs=30`, `sweep.timeout_s=600`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from fastdiff import config
from fastdiff.choices.keys import keys_of
from fastdiff.errors import UsageError, did_you_mean

FOLDER = {"words": "a folder", "example": "DIR"}
"""Metadata of a key that names where results are kept."""
SEED = {**config.SEED, "least": 0}


@dataclass(frozen=True)
class CommandKeys:
    """Base of the dataclasses whose fields are a command's own keys. command: what is typed before their dot."""

    command: ClassVar[str] = ""

    @classmethod
    def read(cls, words: Sequence[str]) -> tuple[Self, list[str]]:
        """Those that `command.name=value` words set, and the other words. Raises UsageError."""
        found = cls.given(words)
        return cls(**found), [w for w in words if not w.startswith(f"{cls.command}.")]

    @classmethod
    def given(cls, words: Sequence[str]) -> dict[str, Any]:
        """The values that words set, by name; of a key that is set twice the last one. Raises UsageError."""
        found, known = {}, keys_of(cls)
        for word in words:
            typed, equals, value = word.partition("=")
            command, _, name = typed.partition(".")
            if command != cls.command or "." not in typed:
                continue
            if name not in known or not equals:
                it_has = f"it has: {', '.join(known)}"
                hint = did_you_mean(name, known, f"{command}.{{}}", it_has)
                raise UsageError(f"{command} has no key '{name}'\n  {hint}")
            found[name] = known[name].read(typed, value)
        return found
