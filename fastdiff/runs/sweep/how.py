"""How a sweep goes about its cells, as typed: `sweep.timeout_s=600` and so on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from fastdiff.choices.command_keys import read_folder, read_own_keys
from fastdiff.choices.limits import check_own_key
from fastdiff.errors import UsageError, nearest

RETRIES = ("failed", "disturbed", "none", "all")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class How:
    """How a sweep goes about its cells.

    name: of its folder in outputs/sweeps; null makes one from the grid, so that the same grid finds it again.
    dir: the folder itself, wherever it is.
    timeout_s: seconds that a process may take: a cell's run, compiling included, or the drawing of its reference; null sets
    no limit.
    memory_limit_gb: of the host, for each cell (10^9 bytes); null sets no limit. On Linux only, and not for a run on a GPU.
    retry: what is run again beside what is missing: `failed` (whatever isn't ok), `disturbed` (what others slowed down), `none`, or `all`.
    accept_changes: go on although versions, weights or the machine aren't those of the finished cells.
    """

    name: str | None = None
    dir: str | None = None
    timeout_s: float | None = 3600.0
    memory_limit_gb: float | None = None
    retry: str = "failed"
    accept_changes: bool = False


def read_how(words: Sequence[str]) -> tuple[How, list[str]]:
    """`sweep.key=value` words, and the others. Raises UsageError."""
    known = [f.name for f in fields(How)]
    given, others = read_own_keys(
        "sweep", known, lambda key, name, text: _READERS[name](key, text), words
    )
    if given.get("name") and given.get("dir"):
        raise UsageError(
            "sweep.name and sweep.dir both say where the sweep is kept\n  instead: one of them"
        )
    return How(**given), others


def _name(key: str, value: str) -> str | None:
    if not value:
        raise UsageError(f"{key}= is no name\n  instead: {key}=NAME, or {key}=null")
    if value != "null" and not _NAME.fullmatch(value):
        raise UsageError(
            f"{key}={value} can't be a folder's name\n"
            f"  instead: letters, digits, '.', '_' and '-', or sweep.dir=DIR for another place"
        )
    return None if value == "null" else value


def _limit(key: str, value: str) -> float | None:
    if value == "null":
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        example = {"sweep.timeout_s": "600", "sweep.memory_limit_gb": "8"}[key]
        raise UsageError(
            f"{key}={value} is not a number above 0\n  for example: {key}={example}, or {key}=null"
        )
    check_own_key(key, number)
    return number


def _retry(key: str, value: str) -> str:
    if value not in RETRIES:
        near = nearest(value, RETRIES)
        hint = f"did you mean: {key}={near}" if near else f"there are: {', '.join(RETRIES)}"
        raise UsageError(f"{key} can't be '{value}'\n  {hint}")
    return value


def _yes_or_no(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise UsageError(f"{key} can't be '{value}'\n  there are: true, false")
    return value == "true"


_READERS = {
    "name": _name,
    "dir": read_folder,
    "timeout_s": _limit,
    "memory_limit_gb": _limit,
    "retry": _retry,
    "accept_changes": _yes_or_no,
}
