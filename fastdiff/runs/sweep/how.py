"""How a sweep goes about its cells, as typed: `sweep.timeout_s=600` and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fastdiff.choices.command_keys import FOLDER, CommandKeys
from fastdiff.config import limits
from fastdiff.errors import UsageError

_NAME = {
    "form": "[A-Za-z0-9][A-Za-z0-9._-]*",
    "words": "letters, digits, '.', '_' and '-' (sweep.dir=DIR takes any folder)",
    "example": "NAME",
}


@dataclass(frozen=True)
class How(CommandKeys):
    """How a sweep goes about its cells.

    name: of its folder in outputs/sweeps; null makes one from the grid, so that the same grid finds it again.
    dir: the folder itself, wherever it is.
    timeout_s: seconds that a process may take: a cell's run, compiling included, or the drawing of its reference; null sets
    no limit.
    memory_limit_gb: of the host, for each cell (10^9 bytes); null sets no limit. On Linux only, and not for a run on a GPU.
    retry: what is run again beside what is missing: `failed` (whatever isn't ok), `disturbed` (what others slowed down), `none`, or `all`.
    accept_changes: go on although versions, weights or the machine aren't those of the finished cells.
    """

    command: ClassVar[str] = "sweep"
    name: str | None = field(default=None, metadata=_NAME)
    dir: str | None = field(default=None, metadata=FOLDER)
    timeout_s: float | None = field(
        default=3600.0, metadata=limits(10**9, "that is thirty years", above=0)
    )
    memory_limit_gb: float | None = field(
        default=None, metadata=limits(10**9, "no machine has so much", above=0, example="8")
    )
    retry: Literal["failed", "disturbed", "none", "all"] = "failed"
    accept_changes: bool = False


def read_how(words: Sequence[str]) -> tuple[How, list[str]]:
    """`sweep.key=value` words, and the others. Raises UsageError."""
    how, others = How.read(words)
    if how.name and how.dir:
        raise UsageError(
            "sweep.name and sweep.dir both say where the sweep is kept\n  instead: one of them"
        )
    return how, others
