"""What would come of a run here: its plan, or every reason why not. For one run, and for the cells of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fastdiff.choices.grid import Cell, Grid
from fastdiff.config import RunConfig, fingerprint
from fastdiff.errors import FastdiffError, ModelError, PlanError, Problem
from fastdiff.models.facts import ModelFacts
from fastdiff.models.sources import model_of
from fastdiff.passes.base import Notice
from fastdiff.planning.plan import ModelAndPlanError, Plan, make_plan

FactsOf = Callable[[RunConfig], ModelFacts | None]


def facts_of(run: RunConfig) -> ModelFacts | None:
    """What is known of a run's model before it is loaded. Raises ModelError."""
    return model_of(run).facts()


def planned(run: RunConfig, facts_of: FactsOf = facts_of, *, calls: bool = True) -> Plan:
    """The plan of a composed run on this machine. Raises PlanError or ModelError, with the problems of both.

    calls: fastdiff itself will call the pipeline; where its user does, nobody knows with what.
    """
    from fastdiff.machine.environment import (
        this_machine,
    )  # looked up late, so that a test can name another machine

    machine = this_machine()
    try:
        facts = facts_of(run)
    except ModelError as error:
        try:
            make_plan(run, machine, None, calls=calls)
        except PlanError as more:
            raise ModelAndPlanError(error, more) from error
        raise
    return make_plan(run, machine, facts, calls=calls)


def notices_of(plan: Plan) -> tuple[Notice, ...]:
    """What a user should know of a plan, and of its model before it is loaded."""
    run = plan.setting.run
    choice = f"model={run.choices['model']}"
    return *plan.notices, *(Notice(choice, text) for text in model_of(run).load_notices())


@dataclass(frozen=True)
class Outlook:
    """What would come of a cell.

    problems: why it can't run; a Problem whose `choice` is empty is about no single choice.
    notices: what to know of one that can. same_as: the place in the grid, from 0, of the first cell that is the same run.
    """

    cell: Cell
    problems: tuple[Problem, ...] = ()
    notices: tuple[Notice, ...] = ()
    same_as: int | None = None

    @property
    def status(self) -> str:
        return "incompatible" if self.problems else "ok"

    def to_dict(self) -> dict[str, Any]:
        problems = [asdict(p) | {"choice": p.choice or None} for p in self.problems]
        return {
            "overrides": list(self.cell.overrides),
            "status": self.status,
            "problems": problems,
            "notices": [asdict(notice) for notice in self.notices],
            "same_as": self.same_as,
        }


def outlooks(grid: Grid) -> list[Outlook]:
    """Every cell's outlook, in the grid's order. What is known of a model is read once for all cells that have it."""
    facts = _once_a_model()
    first: dict[str, int] = {}
    found: list[Outlook] = []
    for place, cell in enumerate(grid.cells):
        identity = cell.identity
        before = first.setdefault(identity, place) if identity else place
        if before < place:
            found.append(replace(found[before], cell=cell, same_as=before))
        else:
            found.append(_outlook(cell, facts))
    return found


def as_data(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A planned grid as plain data: its `cells`, and how many of them are `ok`, `incompatible`, or `repeated` beside another."""
    statuses = [row["status"] for row in rows]
    return {
        "cells": list(rows),
        "ok": statuses.count("ok"),
        "incompatible": statuses.count("incompatible"),
        "repeated": sum(row["same_as"] is not None for row in rows),
    }


def _outlook(cell: Cell, facts: FactsOf) -> Outlook:
    if cell.run is None:
        return Outlook(cell, tuple(_in_parts(reason) for reason in cell.reasons))
    try:
        return Outlook(cell, notices=notices_of(planned(cell.run, facts)))
    except ModelAndPlanError as error:
        return Outlook(cell, (_in_parts(error.model), *error.problems))
    except PlanError as error:
        return Outlook(cell, error.problems)
    except FastdiffError as error:
        return Outlook(cell, (_in_parts(str(error)),))


def _in_parts(message: str) -> Problem:
    """A message of several lines: the first ones say what is wrong, the last one the way out."""
    *reason, way_out = message.split("\n") if "\n" in message else (message, "")
    said = " ".join(line.strip() for line in reason)
    return Problem("", said, way_out.strip().removeprefix("instead: "))


def _once_a_model() -> FactsOf:
    """`facts_of` that asks a model once, its refusals included."""
    known: dict[str, ModelFacts | ModelError | None] = {}

    def facts_once(run: RunConfig) -> ModelFacts | None:
        model = fingerprint([run.choices["model"], run.to_dict()["model"]])
        if model not in known:
            try:
                known[model] = facts_of(run)
            except ModelError as error:
                known[model] = error
        facts = known[model]
        if isinstance(facts, ModelError):
            raise facts
        return facts

    return facts_once
