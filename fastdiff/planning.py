"""(run, machine, model's facts) → the ordered passes, or every reason why not. Pure: beside its arguments it reads a picture's first bytes,
and looks whether LPIPS has its weights, whether the machine's rates can be kept in a folder that the user named, and at
what options ask for in their own checks, such as the folders of compiled code.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.cache_folder import VARIABLE, rates_unkeepable
from fastdiff.calling import call_findings
from fastdiff.config import Bench, Reference, RunConfig
from fastdiff.environment import Environment
from fastdiff.errors import MachineProblem, ModelError, PlanError, Problem
from fastdiff.limits import out_of_bounds, within_64_bits
from fastdiff.models.facts import ModelFacts
from fastdiff.models.shapes.scenes import Scene
from fastdiff.models.sources import Shapes
from fastdiff.passes.base import Notice, Option, Pass, Setting, Stage
from fastdiff.passes.place import Place

DEVICES = ("auto", "cpu", "cuda", "mps")


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
        options = (option for _, _, option in self.setting.run.options())
        return {
            name: value
            for option in options
            if isinstance(option, Option)
            for name, value in option.variables().items()
        }

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


def _recipe(setting: Setting) -> Iterator[Notice]:
    """What of the run's recipe was overridden, and whether it was made for something else."""
    recipe = setting.run.recipe
    for choice, text in recipe.replaced:
        yield Notice(choice, text)
    made_for = {"model": recipe.model, "device": recipe.device}
    here = {"model": setting.run.choices["model"], "device": setting.device}
    for key, value in made_for.items():
        if value not in (None, here[key]):
            text = f"'{recipe.name}' was made for {key}={value}; here it may gain less, or nothing"
            yield Notice(f"{key}={here[key]}", text)


def _passes(setting: Setting) -> Iterator[Pass]:
    options = [option for _, _, option in setting.run.options()]
    if not setting.placed_by_option:
        yield Place()
    for option in options:
        if isinstance(option, Option):
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


def _device(setting: Setting) -> Iterator[Problem | Notice]:
    asked, environment = setting.run.device, setting.environment
    if asked not in DEVICES:
        number = re.fullmatch(r"(?:cuda|gpu):(\d+)", asked)
        instead = "device=cuda" if asked == "gpu" else "device=auto"
        if number:
            instead = f"CUDA_VISIBLE_DEVICES={number[1]} with device=cuda"
        yield Problem(f"device={asked}", f"is none of {', '.join(DEVICES)}", instead)
    elif asked == "auto" and setting.device == "cpu" and environment.gpu_unusable:
        reason, instead = environment.gpu_unusable
        yield Notice("device=auto", f"takes the processor: {reason}; instead: {instead}")
    elif asked == "cuda" and not environment.has_cuda:
        torch = f"the installed torch {environment.versions.get('torch', '')}"
        reason, instead = "no NVIDIA GPU is visible on this machine", ""
        if environment.gpu_unusable:
            reason, instead = environment.gpu_unusable
        elif environment.torch_cuda is None:
            reason, instead = f"{torch} is built without CUDA", "a CUDA build of torch"
        way_out = ", or ".join(filter(None, ("device=cpu", instead)))
        yield MachineProblem("device=cuda", reason, way_out)
    elif asked == "mps" and not environment.has_mps:
        yield MachineProblem("device=mps", "this is not an Apple-silicon Mac", "device=cpu")
    if setting.device == "cuda":
        yield from _order_of_gpus(environment)


def _order_of_gpus(environment: Environment) -> Iterator[Notice]:
    """That CUDA may compute on another GPU than the one that is planned for, because the user gave it an order of its own."""
    kinds = {(gpu.name, gpu.capability) for gpu in environment.gpus}
    if environment.cuda_order != "PCI_BUS_ID" and len(kinds) > 1:
        yield Notice(
            f"CUDA_DEVICE_ORDER={environment.cuda_order}",
            f"CUDA may compute on another GPU than the {environment.gpus[0].name} that is planned for; instead: unset "
            "it, or CUDA_VISIBLE_DEVICES=GPU-..., one UUID of nvidia-smi -L",
        )


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


def _bench(setting: Setting) -> Iterator[Problem]:
    bench = setting.run.bench
    assert isinstance(bench, Bench)
    if bench.runs < 1:
        yield Problem(f"bench.runs={bench.runs}", "nothing would be timed", "bench.runs=1")
    if bench.warmup < 0:
        yield Problem(f"bench.warmup={bench.warmup}", "can't be negative", "bench.warmup=0")
    if bench.most_warmup < 0:
        yield Problem(
            f"bench.most_warmup={bench.most_warmup}",
            "can't be negative",
            "bench.most_warmup=0, which makes no more calls than bench.warmup says",
        )


def _rates_folder() -> Iterator[Problem]:
    """A cache folder that the user named and that can't be used; what only using it tells is a notice in the run."""
    if reason := rates_unkeepable():
        yield MachineProblem(
            f"{VARIABLE}={os.environ[VARIABLE]}",
            f"{reason}, and this machine's rates would be kept there",
            f"{VARIABLE}=DIR, a folder of your own, or unset it",
        )


def _reference(setting: Setting) -> Iterator[Problem | Notice]:
    quality = setting.run.quality
    if not isinstance(quality, Reference):
        return
    reason = None if quality.reference == "auto" else _no_picture(quality.reference)
    if reason:
        yield Problem(
            f"quality.reference={quality.reference}",
            reason,
            "quality.reference=auto, which draws it, or the path of a PNG or JPEG",
        )
    yield from _budget_ranges(quality)
    yield from _budget_figures(quality, setting)
    yield from _perceptual(quality, setting)
    yield from _caption_rules(quality, setting)


_AT_MOST_ONE = ("min_ssim", "min_ms_ssim", "max_abs_difference", "min_caption_score")
"""Budgets on figures that can't be above 1."""


def _budget_ranges(quality: Reference) -> Iterator[Problem]:
    """Budgets that say nothing: not a number, below what a figure can be, or above it."""
    for key, limit in quality.budgets().items():
        choice = f"quality.{key}={limit:g}"
        if not math.isfinite(limit):
            yield Problem(choice, "is not a finite number", f"quality.{key}=null, or a number")
        elif limit < 0:
            yield Problem(choice, "must be at least 0", f"quality.{key}=0, or null for no budget")
        elif limit > 1 and key in _AT_MOST_ONE:
            yield Problem(
                choice, "must be at most 1: that figure is never above it", f"quality.{key}=1"
            )


def _budget_figures(quality: Reference, setting: Setting) -> Iterator[Problem]:
    """Budgets on figures that this run can't have."""
    asked, budgets = setting.run.generation, quality.budgets()
    sides = [side for side in (asked.height, asked.width) if side is not None]
    least = {
        "min_ms_ssim": ("MS-SSIM", Reference.ms_ssim_side, "quality.min_ssim"),
        "max_lpips": ("LPIPS", Reference.lpips_side, "quality.min_psnr_db"),
    }
    for key, (name, side, other) in least.items():
        if key in budgets and sides and min(sides) < side:
            yield Problem(
                f"quality.{key}={budgets[key]:g}",
                f"{name} needs {side} pixels a side, and the smaller side has {min(sides)}",
                f"a budget on {other}, or larger pictures",
            )
    if "max_lpips" in budgets and not quality.lpips:
        yield Problem(
            f"quality.max_lpips={budgets['max_lpips']:g}",
            "LPIPS is measured on demand only",
            "quality.lpips=true beside it",
        )
    if "max_abs_difference_latents" in budgets and quality.reference != "auto":
        yield Problem(
            f"quality.max_abs_difference_latents={budgets['max_abs_difference_latents']:g}",
            "the reference is a picture, and a picture has no latents",
            "quality.reference=auto, or quality.max_abs_difference",
        )


def _perceptual(quality: Reference, setting: Setting) -> Iterator[Problem | Notice]:
    if not quality.lpips:
        return
    if not setting.environment.has_module("torchvision"):
        yield MachineProblem(
            "quality.lpips=true",
            "needs the package torchvision, which is not installed",
            'pip install "fastdiff-inference[lpips]" (torchvision from where torch is from), or '
            "quality.lpips=false",
        )
    elif not (weights := lpips_weights()).is_file():
        yield Notice(
            "quality.lpips=true",
            f"the weights of its AlexNet (244 MB) come from download.pytorch.org: {weights.name} is not in "
            "torch's hub folder",
        )


def lpips_weights() -> Path:
    """Where torch's hub keeps the weights of the AlexNet that LPIPS looks through."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"


def _caption_rules(quality: Reference, setting: Setting) -> Iterator[Problem]:
    """Captions are the language of the embedded model, which alone is judged by them."""
    asked = {"captions": f"{quality.captions}"} if quality.captions else {}
    if quality.captions < 0:
        yield Problem(
            f"quality.captions={quality.captions}", "can't be negative", "quality.captions=24"
        )
    if not isinstance(setting.run.model, Shapes):
        limit = quality.min_caption_score
        asked |= {"min_caption_score": f"{limit:g}"} if limit is not None else {}
        for key, value in asked.items():
            yield Problem(
                f"quality.{key}={value}",
                "only pictures of the embedded model can be judged by their captions",
                f"leave out quality.{key}, or model=shapes",
            )
    elif quality.min_caption_score is not None and not quality.captions:
        prompts = [p for p in setting.run.generation.prompts if isinstance(p, str)]
        if not any(Scene.parse(prompt) for prompt in prompts):
            yield Problem(
                f"quality.min_caption_score={quality.min_caption_score:g}",
                "the prompt is none of the captions that this model was taught, so nothing can be judged",
                "quality.captions=24, which draws captions of its own",
            )


def _no_picture(name: str) -> str | None:
    """Why a file is no picture to compare with; None if it begins like one."""
    try:
        path = Path(os.path.expanduser(name))
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
