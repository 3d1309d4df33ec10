"""A planned grid → its entries: a name and a folder for every cell, and whether there is anything to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fastdiff.choices.folders import flags_in_use
from fastdiff.choices.grid import Cell, Grid
from fastdiff.choices.options import is_literal
from fastdiff.choices.overrides import quote_literal
from fastdiff.config import RunConfig, fingerprint
from fastdiff.errors import MachineProblem, NoGpuProblem
from fastdiff.planning.outlook import Outlook

_LONGEST_NAME = 60


@dataclass(frozen=True)
class Entry:
    """One cell of the sweep.

    name: of its folder: the values that tell it from others, and eight digits of what it resolves to.
    values: of the keys that vary in the grid, as typed.
    same_as: the name of the first cell that is the same run, if this isn't the first.
    elsewhere: whether it may well run on another machine than this one, which has the last word then.
    """

    name: str
    values: dict[str, str]
    outlook: Outlook
    same_as: str | None = None
    elsewhere: bool = False

    @property
    def cell(self) -> Cell:
        return self.outlook.cell

    @property
    def run(self) -> RunConfig | None:
        return self.cell.run

    @property
    def possible(self) -> bool:
        """Whether it can be run, as far as planning tells."""
        problems = self.outlook.problems
        if self.elsewhere and self.run is not None:
            return all(isinstance(problem, MachineProblem) for problem in problems)
        return not problems

    @property
    def to_run(self) -> bool:
        """Whether it is run under its own name."""
        return self.possible and self.same_as is None

    @property
    def wants_gpu(self) -> bool:
        """Whether only a machine with an NVIDIA GPU can run it."""
        needs = any(isinstance(p, NoGpuProblem) for p in self.outlook.problems)
        return self.run is not None and (self.run.device == "cuda" or (self.possible and needs))

    @property
    def command(self) -> str:
        """What to type to run this cell alone."""
        words = [*as_single_run(self.cell), *flags_in_use()]
        return f"python -m fastdiff {shlex.join(words)}"


def entries_of(grid: Grid, outlooks: Sequence[Outlook], elsewhere: bool = False) -> list[Entry]:
    """Every cell's entry, in the grid's order."""
    found: list[Entry] = []
    for outlook in outlooks:
        values = dict(override.partition("=")[::2] for override in outlook.cell.overrides)
        varied = {key: values[key] for key in grid.varied}
        same_as = found[outlook.same_as].name if outlook.same_as is not None else None
        name = _name(varied, outlook.cell)
        found.append(Entry(name, varied, outlook, same_as, elsewhere))
    return found


def grid_identity(entries: Sequence[Entry]) -> str:
    """Equal for grids of the same cells, in whatever order they were typed."""
    return fingerprint(sorted(_digits(entry.cell) for entry in entries))


def as_single_run(cell: Cell) -> list[str]:
    """The cell's overrides as `python -m fastdiff` reads them, where texts are taken as they stand."""
    return [_literally(override, cell.run) for override in cell.overrides]


def _literally(override: str, run: RunConfig | None) -> str:
    key = override.partition("=")[0]
    if run is None or not is_literal(key):
        return override
    root, _, name = key.partition(".")
    value = getattr(getattr(run, root), name)
    word = f"{key}={value}"
    # A text that would be read as something else, null or a list, stays quoted as it is.
    return word if isinstance(value, str) and quote_literal(word) != word else override


def _name(varied: dict[str, str], cell: Cell) -> str:
    words = [re.sub(r"[^A-Za-z0-9.]+", "_", value).strip("_.") for value in varied.values()]
    slug = "-".join(filter(None, words))[:_LONGEST_NAME].rstrip("-_.") or "run"
    return f"{slug}-{_digits(cell)}"


def _digits(cell: Cell) -> str:
    return (cell.identity or fingerprint(list(cell.overrides)))[:8]
