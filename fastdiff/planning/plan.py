"""(run, machine, model's facts) → the ordered passes, or every reason why not. Pure: beside its arguments it reads a picture's first bytes,
and looks whether LPIPS has its weights, whether the machine's rates can be kept in a folder that the user named, and at
what options ask for in their own checks, such as the folders of compiled code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastdiff.choices.limits import out_of_bounds, within_64_bits
from fastdiff.config import RunConfig
from fastdiff.errors import ModelError, PlanError, Problem
from fastdiff.machine.environment import Environment
from fastdiff.models.facts import ModelFacts
from fastdiff.passes.base import Notice, Option, Pass, Setting, Stage
from fastdiff.passes.place import Place
from fastdiff.planning.calling import call_findings
from fastdiff.planning.rules import _bench, _device, _generation, _rates_folder, _recipe, _reference


class ModelAndPlanError(ModelError):
    """The model can't be had, and the choices can't work either."""

    def __init__(self, model: ModelError, plan: PlanError) -> None:
        self.model, self.problems = str(model), plan.problems
        super().__init__(f"{model}\nbesides, {plan}")


@dataclass(frozen=True)
class Step:
    """One pass at its place, with the components that it will change."""

    pass_: Pass
    stage: Stage
    components: tuple[str, ...]
    does: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "pass": self.pass_.key,
            "stage": self.stage.name.lower(),
            "components": list(self.components),
            "does": self.does,
            "source": self.pass_.source,
        }


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they work, and what a user should know."""

    setting: Setting
    steps: tuple[Step, ...]
    notices: tuple[Notice, ...]

    @property
    def device(self) -> str:
        return self.setting.device

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that the run's process has to begin with."""
        options = self.setting.options
        return {name: value for option in options for name, value in option.variables().items()}

    def to_dict(self) -> list[dict[str, Any]]:
        return [step.to_dict() for step in self.steps]


def make_plan(
    run: RunConfig, environment: Environment, facts: ModelFacts | None, *, calls: bool = True
) -> Plan:
    """Order the passes. Raises PlanError with every Problem at once.

    facts: of the model as published; what options make of them is worked out here.
    calls: fastdiff itself will call the pipeline, with what `generation` says.
    """
    noise_levels = _noise_levels(facts)
    asked, run = run, within_64_bits(run)
    for _, _, option in run.options():
        if isinstance(option, Option) and facts is not None:
            facts = option.changed_facts(facts, run)
    setting = Setting(run, environment, environment.device(run.device), facts)
    problems: list[Problem] = []
    notices: list[Notice] = []
    for finding in (*_findings(setting), *(call_findings(setting) if calls else ())):
        if isinstance(finding, Problem):
            problems.append(finding)
        else:
            notices.append(finding)
    problems = _with_limits(problems, asked, run, noise_levels)
    steps = tuple(
        sorted(
            (Step(p, p.stage, p.components(setting), p.explain(setting)) for p in _passes(setting)),
            key=lambda step: step.stage,
        )
    )
    problems.extend(_clashes(steps))
    if problems:
        raise PlanError(tuple(dict.fromkeys(problems)))
    return Plan(setting, steps, tuple(notices))


def _with_limits(
    problems: list[Problem], asked: RunConfig, tame: RunConfig, noise_levels: int | None
) -> list[Problem]:
    """The problems with those of numbers beyond their limits, one for each key.

    A check's own words are kept, unless it saw another number than was asked for.
    """
    limits = {p.choice.partition("=")[0]: p for p in out_of_bounds(asked, noise_levels)}
    if tame is not asked:
        problems = [p for p in problems if p.choice.partition("=")[0] not in limits]
    said = {problem.choice.partition("=")[0] for problem in problems}
    return [*problems, *(p for key, p in limits.items() if key not in said)]


def _noise_levels(facts: ModelFacts | None) -> int | None:
    """How many the model's scheduler was trained with; None where nobody knows."""
    own = facts.components.get("scheduler") if facts else None
    levels = own.config.get("num_train_timesteps") if own else None
    return levels if isinstance(levels, int) and levels > 0 else None


def _passes(setting: Setting) -> Iterator[Pass]:
    if not setting.placed_by_option:
        yield Place()
    for option in setting.options:
        yield from option.passes()


def _findings(setting: Setting) -> Iterator[Problem | Notice]:
    yield from _device(setting)
    yield from _generation(setting)
    yield from _bench(setting)
    yield from _reference(setting)
    yield from _rates_folder()
    yield from _recipe(setting)
    for slot, name, option in setting.run.options():
        if not isinstance(option, Option):
            continue
        choice = f"{slot}={name}"
        unmet = [p for r in option.requires if (p := r.unmet(choice, setting))]
        yield from unmet
        for conflict in option.conflicts:
            if conflict.choice == setting.chosen(conflict.choice.split("=")[0]):
                yield Problem(choice, conflict.reason, conflict.instead, conflict.source)
        if not unmet:
            yield from option.check(setting)


def _clashes(steps: tuple[Step, ...]) -> Iterator[Problem]:
    """Two passes of one stage that change the same component."""
    for at, step in enumerate(steps):
        for other in steps[at + 1 :]:
            shared = set(step.components) & set(other.components)
            if step.stage == other.stage and shared:
                yield Problem(
                    step.pass_.key,
                    f"and {other.pass_.key} both change {', '.join(sorted(shared))} at the same stage",
                    f"leave one of them out: {step.pass_.key}, {other.pass_.key}",
                )
