"""How a comparison is measured, as typed: `compare.pairs=30` and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from fastdiff.choices.command_keys import FOLDER, SEED, CommandKeys
from fastdiff.config import limits
from fastdiff.errors import UsageError
from fastdiff.runs.compare.lives import most_lives

_WHY = "more say nothing more of a ratio"


@dataclass(frozen=True)
class How(CommandKeys):
    """How a comparison is measured.

    pairs: calls of each side, every one beside a call of the other; a verdict needs six.
    lives: how many times all processes start anew to play their part of the pairs.
    seed: of the order within the rounds. dir: where results are kept; null names a folder by what is compared.
    """

    command: ClassVar[str] = "compare"
    pairs: int = field(default=20, metadata=limits(100_000, _WHY, least=1))
    lives: int = field(default=5, metadata=limits(10_000, _WHY, least=1))
    seed: int = field(default=0, metadata=SEED)
    dir: str | None = field(default=None, metadata=FOLDER)


def read_how(words: Sequence[str]) -> tuple[How, list[str]]:
    """`compare.key=value` words, and the others. Raises UsageError."""
    how, others = How.read(words)
    if 2 * how.lives > how.pairs and "lives" in How.given(words) and how.lives > 1:
        raise UsageError(
            f"compare.lives={how.lives} needs {2 * how.lives} pairs, two for each life, and there are {how.pairs}\n"
            f"  instead: compare.pairs={2 * how.lives}, or compare.lives={most_lives(how.pairs, how.lives)}"
        )
    return replace(how, lives=most_lives(how.pairs, how.lives)), others
