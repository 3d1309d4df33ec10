"""What would come of a run here: its plan, or every reason why not."""

from __future__ import annotations

from collections.abc import Callable

from fastdiff.config import RunConfig, fingerprint
from fastdiff.errors import ModelError, PlanError, Problem
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


def in_parts(message: str) -> Problem:
    """A message of several lines: the first ones say what is wrong, the last one the way out."""
    *reason, way_out = message.split("\n") if "\n" in message else (message, "")
    said = " ".join(line.strip() for line in reason)
    return Problem("", said, way_out.strip().removeprefix("instead: "))


def once_a_model() -> FactsOf:
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
