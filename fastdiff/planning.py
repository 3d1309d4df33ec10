"""(run, machine, model's facts) → the ordered passes, or every reason why not. Pure: beside its arguments it reads a picture's first bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.config import Bench, Reference, RunConfig
from fastdiff.environment import Environment
from fastdiff.errors import ModelError, PlanError, Problem
from fastdiff.models.facts import ModelFacts
from fastdiff.passes.base import Notice, Option, Pass, Setting, Stage
from fastdiff.passes.place import Place

DEVICES = ("auto", "cpu", "cuda", "mps")


LARGEST_SEED = 2**63 - 1


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

    def to_dict(self) -> list[dict[str, Any]]:
        return [step.to_dict() for step in self.steps]


def make_plan(run: RunConfig, environment: Environment, facts: ModelFacts | None) -> Plan:
    """Order the passes. Raises PlanError with every Problem at once.

    facts: of the model as published; what options make of them is worked out here.
    """
    for _, _, option in run.options():
        if isinstance(option, Option) and facts is not None:
            facts = option.changed_facts(facts, run)
    setting = Setting(run, environment, environment.device(run.device), facts)
    problems: list[Problem] = []
    notices: list[Notice] = []
    for finding in _findings(setting):
        if isinstance(finding, Problem):
            problems.append(finding)
        else:
            notices.append(finding)
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


def _passes(setting: Setting) -> Iterator[Pass]:
    options = [option for _, _, option in setting.run.options()]
    if not any(isinstance(option, Option) and option.places for option in options):
        yield Place()
    for option in options:
        if isinstance(option, Option):
            yield from option.passes()


def _findings(setting: Setting) -> Iterator[Problem | Notice]:
    yield from _device(setting)
    yield from _generation(setting)
    yield from _bench(setting)
    yield from _reference(setting)
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


def _device(setting: Setting) -> Iterator[Problem]:
    asked, environment = setting.run.device, setting.environment
    if asked not in DEVICES:
        number = re.fullmatch(r"(?:cuda|gpu):(\d+)", asked)
        instead = "device=cuda" if asked == "gpu" else "device=auto"
        if number:
            instead = f"CUDA_VISIBLE_DEVICES={number[1]} with device=cuda"
        yield Problem(f"device={asked}", f"is none of {', '.join(DEVICES)}", instead)
    elif asked == "cuda" and environment.torch_cuda is None:
        yield Problem(
            "device=cuda",
            f"the installed torch {environment.versions.get('torch', '')} is built without CUDA",
            "device=cpu, or a CUDA build of torch",
        )
    elif asked == "cuda" and not environment.gpus:
        yield Problem("device=cuda", "no NVIDIA GPU is visible on this machine", "device=cpu")
    elif asked == "mps" and not environment.has_mps:
        yield Problem("device=mps", "this is not an Apple-silicon Mac", "device=cpu")


def _generation(setting: Setting) -> Iterator[Problem]:
    asked = setting.run.generation
    given = asked.prompt if isinstance(asked.prompt, (str, list)) else None
    if (
        given is None
        or not given
        or not all(isinstance(p, str) and p.strip() for p in asked.prompts)
    ):
        shown = repr(asked.prompt if given is None else given)
        yield Problem(
            f"generation.prompt={shown}",
            "there is nothing to draw: a prompt is a text, or a list of texts, none of them empty",
            "generation.prompt='a photo of an astronaut', or null for the model's own",
        )
    negative = (asked.negative_prompt or "").strip()
    if re.fullmatch(r"\[[^\[\]]*\]", negative):
        text = ", ".join(part.strip(" '\"") for part in negative[1:-1].split(","))
        yield Problem(
            f"generation.negative_prompt={negative}",
            "is one text for every picture, not a list of texts",
            f"generation.negative_prompt='{text}'",
        )
    for name in ("height", "width"):
        value = getattr(asked, name)
        if value is not None and (value < 8 or value % 8):
            yield Problem(
                f"generation.{name}={value}",
                "must be a multiple of 8, because latents are",
                f"generation.{name}={max(8, round(value / 8) * 8)}",
            )
    least = {"steps": 1, "images_per_prompt": 1, "seed": 0, "guidance_scale": 0}
    for name, low in least.items():
        value = getattr(asked, name)
        if value is not None and not low <= value < math.inf:
            reason = f"must be at least {low}" if value < low else "is not a finite number"
            yield Problem(f"generation.{name}={value}", reason, f"generation.{name}={low}")
    if asked.seed > LARGEST_SEED:
        yield Problem(
            f"generation.seed={asked.seed}",
            f"must be at most {LARGEST_SEED}, the largest that a generator takes",
            "generation.seed=0",
        )


def _bench(setting: Setting) -> Iterator[Problem]:
    bench = setting.run.bench
    assert isinstance(bench, Bench)
    if bench.runs < 1:
        yield Problem(f"bench.runs={bench.runs}", "nothing would be timed", "bench.runs=1")
    if bench.warmup < 0:
        yield Problem(f"bench.warmup={bench.warmup}", "can't be negative", "bench.warmup=0")


def _reference(setting: Setting) -> Iterator[Problem]:
    quality = setting.run.quality
    if not isinstance(quality, Reference) or quality.reference == "auto":
        return
    reason = _no_picture(quality.reference)
    if reason:
        yield Problem(
            f"quality.reference={quality.reference}",
            reason,
            "quality.reference=auto, which draws it, or the path of a PNG or JPEG",
        )


def _no_picture(name: str) -> str | None:
    """Why a file is no picture to compare with; None if it begins like one."""
    try:
        path = Path(name).expanduser()
        if not path.is_file():
            return "there is no such picture"
        with path.open("rb") as file:
            start = file.read(8)
    except (OSError, RuntimeError, ValueError) as error:
        return f"can't be read: {getattr(error, 'strerror', None) or error}"
    begins_right = start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))
    return None if begins_right else "is neither a PNG nor a JPEG"


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
