"""A grid → its cells, planned: what would come of each, and the name and folder that a sweep gives it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from fastdiff.choices.folders import flags_in_use
from fastdiff.choices.grid import Cell, Grid
from fastdiff.choices.options import is_literal
from fastdiff.choices.overrides import quote_literal
from fastdiff.config import RunConfig, fingerprint
from fastdiff.errors import FastdiffError, MachineProblem, NoGpuProblem, PlanError, Problem
from fastdiff.passes.base import Notice
from fastdiff.planning.outlook import FactsOf, in_parts, notices_of, once_a_model, planned
from fastdiff.planning.plan import ModelAndPlanError

_LONGEST_NAME = 60


@dataclass(frozen=True)
class PlannedCell:
    """What would come of a cell.

    typed: the words that make it, and the run that they compose. values: of the keys that vary in the grid, as typed. problems: why it can't run; a Problem whose `choice` is empty is
        about no single choice. notices: what to know of one that can.
    same_as: the first cell that is the same run, if this isn't the first; place: in the grid, from 0.
    elsewhere: whether it may well run on another machine than this one, which has the last word then.
    """

    typed: Cell
    place: int
    values: dict[str, str]
    problems: tuple[Problem, ...] = ()
    notices: tuple[Notice, ...] = ()
    same_as: PlannedCell | None = None
    elsewhere: bool = False

    @property
    def run(self) -> RunConfig | None:
        return self.typed.run

    @cached_property
    def name(self) -> str:
        """Of its folder: the values that tell it from others, and eight digits of what it resolves to."""
        words = [re.sub(r"[^A-Za-z0-9.]+", "_", v).strip("_.") for v in self.values.values()]
        slug = "-".join(filter(None, words))[:_LONGEST_NAME].rstrip("-_.") or "run"
        return f"{slug}-{_digits(self.typed)}"

    @property
    def possible(self) -> bool:
        """Whether it can be run, as far as planning tells."""
        if self.elsewhere and self.run is not None:
            return all(isinstance(problem, MachineProblem) for problem in self.problems)
        return not self.problems

    @property
    def to_run(self) -> bool:
        """Whether it is run under its own name."""
        return self.possible and self.same_as is None

    @property
    def wants_gpu(self) -> bool:
        """Whether only a machine with an NVIDIA GPU can run it."""
        needs = any(isinstance(p, NoGpuProblem) for p in self.problems)
        return self.run is not None and (self.run.device == "cuda" or (self.possible and needs))

    @property
    def command(self) -> str:
        """What to type to run this cell alone."""
        words = [*as_single_run(self.typed), *flags_in_use()]
        return f"python -m fastdiff {shlex.join(words)}"

    def to_dict(self) -> dict[str, Any]:
        problems = [asdict(p) | {"choice": p.choice or None} for p in self.problems]
        return {
            "overrides": list(self.typed.overrides),
            "status": "incompatible" if self.problems else "ok",
            "problems": problems,
            "notices": [asdict(notice) for notice in self.notices],
            "same_as": self.same_as.place if self.same_as else None,
        }


def planned_cells(grid: Grid, elsewhere: bool = False) -> list[PlannedCell]:
    """Every cell, planned, in the grid's order. What is known of a model is read once for all cells that have it."""
    facts = once_a_model()
    first: dict[str, PlannedCell] = {}
    found: list[PlannedCell] = []
    for place, cell in enumerate(grid.cells):
        typed = dict(override.partition("=")[::2] for override in cell.overrides)
        values = {key: typed[key] for key in grid.varied}
        before = first.get(cell.identity) if cell.identity else None
        if before is None:
            found.append(_planned(PlannedCell(cell, place, values, elsewhere=elsewhere), facts))
            first[cell.identity or ""] = found[-1]
        else:
            found.append(replace(before, typed=cell, place=place, values=values, same_as=before))
    return found


def _planned(planned_cell: PlannedCell, facts: FactsOf) -> PlannedCell:
    cell = planned_cell.typed
    if cell.run is None:
        return replace(planned_cell, problems=tuple(map(in_parts, cell.reasons)))
    try:
        return replace(planned_cell, notices=notices_of(planned(cell.run, facts)))
    except ModelAndPlanError as error:
        return replace(planned_cell, problems=(in_parts(error.model), *error.problems))
    except PlanError as error:
        return replace(planned_cell, problems=error.problems)
    except FastdiffError as error:
        return replace(planned_cell, problems=(in_parts(str(error)),))


def as_data(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A planned grid as plain data: its `cells`, and how many of them are `ok`, `incompatible`, or `repeated` beside another."""
    statuses = [row["status"] for row in rows]
    return {
        "cells": list(rows),
        "ok": statuses.count("ok"),
        "incompatible": statuses.count("incompatible"),
        "repeated": sum(row["same_as"] is not None for row in rows),
    }


def grid_identity(cells: Sequence[PlannedCell]) -> str:
    """Equal for grids of the same cells, in whatever order they were typed."""
    return fingerprint(sorted(_digits(cell.typed) for cell in cells))


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


def _digits(cell: Cell) -> str:
    return (cell.identity or fingerprint(list(cell.overrides)))[:8]
