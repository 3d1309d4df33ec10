"""How a comparison is measured, as typed: `compare.pairs=30` and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from fastdiff.choices.command_keys import read_folder, read_own_keys
from fastdiff.choices.limits import check_own_key
from fastdiff.errors import UsageError
from fastdiff.runs.compare.lives import most_lives


@dataclass(frozen=True)
class How:
    """How a comparison is measured.

    pairs: calls of each side, every one beside a call of the other; a verdict needs six.
    lives: how many times all processes start anew to play their part of the pairs.
    seed: of the order within the rounds. dir: where results are kept; null names a folder by what is compared.
    """

    pairs: int = 20
    lives: int = 5
    seed: int = 0
    dir: str | None = None


def read_how(words: Sequence[str]) -> tuple[How, list[str]]:
    """`compare.key=value` words, and the others. Raises UsageError."""
    known = [f.name for f in fields(How)]
    given, others = read_own_keys("compare", known, _value, words)
    how = How(**given)
    if 2 * how.lives > how.pairs and "lives" in given and how.lives > 1:
        raise UsageError(
            f"compare.lives={how.lives} needs {2 * how.lives} pairs, two for each life, and there are {how.pairs}\n"
            f"  instead: compare.pairs={2 * how.lives}, or compare.lives={most_lives(how.pairs, how.lives)}"
        )
    return replace(how, lives=most_lives(how.pairs, how.lives)), others


def _value(key: str, name: str, value: str) -> Any:
    return read_folder(key, value) if name == "dir" else _count(key, value)


def _count(key: str, value: str) -> int:
    low = 0 if key == "compare.seed" else 1
    number = int(value[:4000]) if value.isascii() and value.isdigit() else -1
    if number < low:
        raise UsageError(
            f"{key}={value} is not a whole number of at least {low}\n"
            f"  for example: {key}={5 if key == 'compare.lives' else 20}"
        )
    check_own_key(key, number)
    return number
