"""Plan → optimized pipeline and its effects. Knows no pass by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastdiff.errors import NoEffectError
from fastdiff.models.pictures import draw, refuse_autocast
from fastdiff.models.sources import model_of
from fastdiff.passes.base import Context, Loading, Stage
from fastdiff.passes.effects import Effect, Observed, Pending
from fastdiff.planning.plan import Plan


@dataclass
class Built:
    """A pipeline with every pass applied, in the order of the plan.

    load_s: seconds to load the weights; apply_s: to apply the passes.
    """

    pipeline: Any
    load_s: float = 0.0
    apply_s: float = 0.0
    outcomes: list[Effect | Pending] = field(default_factory=list)

    def observed(self, observed: Observed) -> Observed:
        """What torch's counters saw, with what they can't see and a pass knows."""
        for outcome in self.outcomes:
            if not isinstance(outcome, Effect):
                observed = outcome.observed(observed)
        return observed

    def effects(self, observed: Observed, *, allow_no_effect: bool = False) -> list[Effect]:
        """What every pass changed, once the first call has been observed.

        Raises NoEffectError if a pass changed nothing, unless allow_no_effect.
        """
        effects = []
        for outcome in self.outcomes:
            effect = outcome if isinstance(outcome, Effect) else outcome.effect(observed)
            if effect.empty and not allow_no_effect:
                raise NoEffectError(nothing_changed(effect))
            effects.append(effect)
        return effects


def nothing_changed(effect: Effect) -> str:
    """details: an effect may say there `why`, and what to choose `instead`."""
    why = effect.details.get("why", "it ran and did nothing on this model")
    instead = effect.details.get("instead", "leave it out")
    return (
        f"{effect.name} changed 0 {effect.unit}: {why}\n"
        f"  instead: {instead}, or allow_no_effect=true to measure all the same"
    )


def build(
    plan: Plan, say: Callable[[str], None] = lambda message: None, *, progress_bar: bool = False
) -> Built:
    """Load the model and apply the plan's passes.

    say: told what is going on, in a few words.
    progress_bar: leave the pipeline's own as it is; a run has another one.
    Raises ModelError if the model can't be loaded, NoEffectError if a pass changed nothing, RunError under
    torch.autocast.
    """
    refuse_autocast()
    run = plan.setting.run
    context = Context(plan.setting, draw=lambda pipeline: draw(pipeline, run.generation))
    loading = Loading(plan.setting)
    outcomes: list[Effect | Pending] = []
    for step in plan.steps:
        if step.stage is Stage.FLAGS:
            outcomes.append(step.pass_.apply(None, context))
        step.pass_.prepare(loading)
    say(f"loading {run.choices['model']}")
    started = time.perf_counter()
    context.made = {name: make(loading.dtype) for name, make in loading.parts.items()}
    pipeline = model_of(run).load(loading.dtype, context.made)
    if not progress_bar:
        pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    for step in plan.steps:
        if step.stage is Stage.FLAGS:
            continue
        say(f"applying {step.pass_.key}")
        outcome = step.pass_.apply(pipeline, context)
        if isinstance(outcome, Effect) and outcome.empty and not run.allow_no_effect:
            raise NoEffectError(nothing_changed(outcome))
        outcomes.append(outcome)
    return Built(pipeline, loaded - started, time.perf_counter() - loaded, outcomes)
