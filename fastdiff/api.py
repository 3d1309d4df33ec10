"""What `import fastdiff` offers: an optimized pipeline, its plan, and the same for a pipeline that its user built.

The same composition, plan and passes as on the command line, in the caller's own process. Beside the pipeline nothing of
that process changes, unless a pass says so (precision=tf32 sets a flag).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.choices.compose import compose, with_option
from fastdiff.choices.experiments import read_experiment
from fastdiff.choices.options import default_options, option_files
from fastdiff.choices.recipe.using import words_of
from fastdiff.config import NO_EXPERIMENT, SLOTS, RunConfig
from fastdiff.errors import PlanError, Problem, UsageError
from fastdiff.models.given import Done, Given, devices_of, done_to, modules_of, precision_of
from fastdiff.models.hub import Hub, is_repository
from fastdiff.models.sources import model_of
from fastdiff.passes.base import Option, Pass, Stage
from fastdiff.passes.effects import Effect
from fastdiff.planning.build import Built, build
from fastdiff.planning.outlook import notices_of, planned
from fastdiff.planning.plan import Plan as BarePlan
from fastdiff.planning.plan import Step
from fastdiff.planning.undo import flags_put_back, undone

if TYPE_CHECKING:
    import torch


class Plan(BarePlan):
    """Steps in the order in which they work, and what a user should know; print() and a notebook show what `plan` shows."""

    def __repr__(self) -> str:
        from fastdiff.display.plan import plan_text

        return plan_text(self)


_LOG = logging.getLogger("fastdiff")
"""Told at INFO what every pass changed. Silent unless its user asks for it."""


def plan(
    recipe: str | os.PathLike[str] | None = None,
    /,
    *,
    model: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    **choices: Any,
) -> Plan:
    """What `load` with the same arguments would do on this machine. Loads and downloads nothing, imports no torch.

    Raises as `load` does before it loads.
    """
    chosen = dict(choices)
    if model is not None:
        chosen = {"model": _model(model), **chosen}
    if device is not None:
        chosen["device"] = str(device)
    run = compose([*_recipe(recipe), *_words(chosen)], literal=False)
    return _shown(planned(run, calls=False))


def _shown(found: BarePlan) -> Plan:
    return Plan(found.setting, found.steps, found.notices)


def load(
    recipe: str | os.PathLike[str] | None = None,
    /,
    *,
    model: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    **choices: Any,
) -> Any:
    """An ordinary diffusers pipeline with the passes applied that a recipe and these choices ask for.

    recipe: a file. What is chosen beside it wins; a slot that neither names keeps its default, as on the command line.
    model: an option of the slot (`"sdxl"`), a folder that save_pretrained wrote, a .safetensors file, org/name on the
        hub, or a mapping (`{"option": "hub", "id": "org/name", "variant": "fp16"}`). Without it the recipe's, or the
        embedded one.
    device: `"cuda"`, `"cpu"`, `"mps"`, or `"auto"`, the default: a GPU where there is one.
    choices: by slot an option (`precision="bf16"`), an option with keys (`quant={"option": "int8", "min_in_features": 64}`),
        or keys alone (`memory={"vae_tiling": True}`); `generation={"steps": 4}`, what calls will ask for, as far as
        options depend on it (on CUDA `quant="int8"` leaves out layers that see 16 rows or fewer in such a call: the
        pictures' size and number and the guidance count); `allow_no_effect=True`, which lets a pass change nothing.

    The pipeline is called as any other. It doesn't take prompts or steps from the recipe, and its noise is drawn as
    diffusers draws it: a run of fastdiff's draws it in fp32 whatever the precision is, which `latents=` does here.
    What every pass changed is told to the logger `fastdiff` at INFO; what works lazily (compiling, step caches, the
    choice of attention kernels) is known after the first call only, and fastdiff's own runs look at it then.

    Raises UsageError if something can't be read (RecipeError: in the recipe), PlanError with every reason why it can't
    work here, ModelError if the model can't be had, NoEffectError if a pass changed nothing, and RunError under
    torch.autocast.
    """
    found = _with_configuration(plan(recipe, model=model, device=device, **choices))
    built = build(found, progress_bar=True)
    _tell(found, built)
    return built.pipeline


@dataclass(frozen=True)
class Applied:
    """What `applied` gives.

    pipeline: the one that was given. plan: what was planned for it.
    effects: what each pass changed, as far as that is known before the first call.
    pending: the passes of which it isn't: compiling, step caches, the choice of attention kernels.
    """

    pipeline: Any
    plan: Plan
    effects: tuple[Effect, ...]
    pending: tuple[str, ...]

    def __repr__(self) -> str:
        from fastdiff.display.plan import applied_text

        return applied_text(self.plan, self.effects, self.pending)


@contextmanager
def applied(
    pipeline: Any,
    recipe: str | os.PathLike[str] | None = None,
    /,
    *,
    device: str | torch.device | None = None,
    **choices: Any,
) -> Iterator[Applied]:
    """A pipeline that its user built, with passes applied until the end of the block; it is changed in place.

    recipe, choices: as for `load`, without a model. A precision that nobody names is the pipeline's own; one that is
        named casts its weights, and what an earlier cast has rounded stays rounded.
    device: `"cuda"`, `"cpu"` or `"mps"`, where the pipeline is moved to; without it, where it is.

    At the end of the block, also after an error, the pipeline is as it was: the same weights, bit by bit, the same
    modules, hooks and flags. What the block itself set on the pipeline or its modules goes as well. Compiled code stays
    in torch's caches. Until the end the originals stay in memory beside what took their place, and adapters (`lora`)
    and plug-ins work on copies of the components that they change.

    Blocks may be nested as far as the inner passes come later than the outer ones in the order of a plan.

    Raises as `load` does, and PlanError too for a pipeline that was quantized, compiled, offloaded or the like, by hand
    or by fastdiff, if a pass would have to work before that.
    """
    found = _plan_for(pipeline, recipe, device, choices)
    sets_flags = any(step.stage is Stage.FLAGS for step in found.steps)
    flags = flags_put_back() if sets_flags else nullcontext()
    with undone(pipeline, _overwritten(found), found.setting.frozen), flags:
        built = build(found, progress_bar=True)
        _tell(found, built)
        outcomes = zip(found.steps, built.outcomes, strict=True)
        yield Applied(
            pipeline,
            found,
            tuple(effect for effect in built.outcomes if isinstance(effect, Effect)),
            tuple(s.pass_.key for s, outcome in outcomes if not isinstance(outcome, Effect)),
        )


def _overwritten(found: Plan) -> set[str]:
    """Names of the components whose weights a plan's passes may write to in their own memory.

    Of fastdiff's own those that add adapters do, at a stage of their own. What a plug-in's pass does is not known.
    """
    steps = (step for step in found.steps if step.stage is Stage.ADAPT or not _is_own(step.pass_))
    return {name for step in steps for name in step.components}


def _is_own(pass_: Pass) -> bool:
    return type(pass_).__module__.partition(".")[0] == __name__.partition(".")[0]


def _tell(found: Plan, built: Built) -> None:
    if not _LOG.isEnabledFor(logging.INFO):
        return
    for notice in notices_of(found):
        _LOG.info("%s: %s", notice.choice, notice.text)
    for step, outcome in zip(found.steps, built.outcomes, strict=True):
        known = (
            str(outcome) if isinstance(outcome, Effect) else f"{step.pass_.key} at the first call"
        )
        _LOG.info("applied %s", known)


def _with_configuration(found: Plan) -> Plan:
    """The plan that the model's own configuration allows: a hub model's is fetched before its weights are."""
    run = found.setting.run
    model = model_of(run)
    if isinstance(model, Hub) and model.remote and model.snapshot() is None:
        model.fetch()
        return _shown(planned(run, calls=False))
    return found


# Arguments → overrides ---------------------------------------------------------------------------------


_MEASURING = ("bench", "quality", "profile")


def _recipe(recipe: object) -> list[str]:
    if recipe is None:
        return []
    if not isinstance(recipe, (str, os.PathLike)):
        raise UsageError(
            f"a recipe is a file's path, not a {type(recipe).__name__}\n"
            '  instead: "team.yaml", or choices by name: precision="bf16"'
        )
    return [f"recipe={os.fspath(recipe)}"]


def _words(choices: Mapping[str, Any]) -> list[str]:
    """Choices by name as overrides, in Hydra's grammar. Raises UsageError for what isn't plain data."""
    words: list[str] = []
    for key, choice in choices.items():
        root = re.split(r"[./@]", key)[0].lstrip("+~")
        if root in _MEASURING:
            raise UsageError(
                f"{root} says how a run is measured, and nothing is measured here\n"
                f"  instead: leave out {key}, or python -m fastdiff {root}=..."
            )
        if root == "hydra":
            raise UsageError(
                f"{key} is Hydra's own, and no run begins here\n  instead: leave it out"
            )
        plain = _plain(key, choice)
        if key == "experiment":
            words.append(f"{key}={plain}")
        elif key in SLOTS and isinstance(plain, dict) and "option" not in plain:
            words += words_of({f"{key}.{name}": value for name, value in plain.items()})
        elif key in SLOTS and not isinstance(plain, (str, dict)):
            raise UsageError(
                f"{key} can't be {choice!r}: it must be an option's name, or a mapping with `option` and its keys\n"
                f"  there are: {', '.join(option_files()[key])}"
            )
        else:
            words += words_of({key: plain})
    return words


def _plain(key: str, value: Any) -> Any:
    """A value as data that a file could hold. Raises UsageError."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(key, inner) for inner in value]
    raise UsageError(
        f"{key} can't be {value!r}, which is a {type(value).__name__}\n"
        "  instead: a name, a number, true or false, or a list or mapping of such"
    )


def _model(model: Any) -> Any:
    """What stands for the model in the slot: its option, or the option that a path or a name of the hub asks for.

    Raises UsageError. A name that is none of these is left for the composition, which suggests the nearest one.
    """
    if isinstance(model, Mapping):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise UsageError(
            f"model can't be a {type(model).__name__}\n"
            '  instead: an option ("sdxl"), a folder, a .safetensors file or "org/name"; a pipeline that you '
            "have built goes to fastdiff.applied(pipeline, ...)"
        )
    named = os.fspath(model)
    if model in option_files()["model"]:
        return named
    if named.endswith(".safetensors"):
        return {"option": "single_file", "path": named}
    is_path = isinstance(model, os.PathLike) or named.startswith((".", "~", "/", os.sep))
    if is_path or Path(os.path.expanduser(named)).is_dir():
        return {"option": "local", "path": named}
    return {"option": "hub", "id": named} if is_repository(named) else named


# A given pipeline ----------------------------------------------------------------------------------------


def _plan_for(
    pipeline: Any,
    recipe: object,
    device: str | torch.device | None,
    choices: Mapping[str, Any],
) -> Plan:
    """The plan for a live pipeline. Raises UsageError, PlanError."""
    from diffusers import DiffusionPipeline

    if not isinstance(pipeline, DiffusionPipeline):
        raise UsageError(
            f"a {type(pipeline).__name__} is no pipeline of diffusers\n"
            "  instead: the whole pipeline, or fastdiff.load(model=...) for one that isn't built yet"
        )
    for key in choices:
        if key.split(".")[0] == "model":
            raise UsageError(
                f"{key} can't be chosen: the pipeline is given\n"
                "  instead: leave it out, or fastdiff.load(model=...)"
            )
    words = [*_recipe(recipe), *_words(choices)]
    # Stands for a model whose defaults nobody knows, until the given one takes its place.
    run = compose([*words, "model=local", "model.path=given"], literal=False)
    own_device = _own_device(pipeline) if device is None else str(device)
    keeps_dtype = not _names_precision(run, words)
    if keeps_dtype:
        run = with_option(run, "precision", _own_precision(pipeline))
    run.device = own_device
    run.choices["model"] = "given"
    # Whether it is the model that a recipe was made for, nobody can tell.
    run.recipe = replace(run.recipe, model=None)
    run.model = Given(pipeline, keeps_dtype=keeps_dtype, device=own_device)
    found = _shown(planned(run, calls=False))
    problems = list(_too_late(pipeline, found, keeps_dtype))
    if problems:
        raise PlanError(problems)
    return found


def _names_precision(run: RunConfig, words: Sequence[str]) -> bool:
    """Whether a run's precision was chosen: by a word, by its recipe or by its experiment."""
    experiment = run.choices["experiment"]
    taken = {} if experiment == NO_EXPERIMENT else read_experiment(experiment).choices
    keys = (word.partition("=")[0] for word in (*run.recipe.overrides, *words))
    return "precision" in taken or any(key.split(".")[0] == "precision" for key in keys)


def _own_device(pipeline: Any) -> str:
    """The kind of device that a pipeline is on. Raises UsageError if that is no device that a plan knows."""
    devices = devices_of(pipeline)
    kinds = {device.type for device in devices} or {"cpu"}
    if len(devices) > 1 or kinds - {"cpu", "cuda", "mps"}:
        names = " and ".join(sorted(map(str, devices)))
        raise UsageError(
            f"the pipeline's weights are on {names}, and passes are planned for one device\n"
            '  instead: device="cuda" or device="cpu", which moves them all until the end of the block'
        )
    for device in devices:
        if device.type == "cuda" and device.index not in (None, 0):
            raise UsageError(
                f"the pipeline is on {device}, and fastdiff works on the first GPU that it sees\n"
                f"  instead: CUDA_VISIBLE_DEVICES={device.index} in the process's environment"
            )
    return kinds.pop()


def _own_precision(pipeline: Any) -> str:
    found = precision_of(pipeline)
    if found is None:
        raise UsageError(
            "the pipeline's weights are in none of fp32, fp16 and bf16\n"
            '  instead: precision="bf16", which casts them until the end of the block'
        )
    return found


_COMES_AT = {
    Done.FUSED: Stage.FUSE,
    Done.QUANTIZED: Stage.QUANTIZE,
    Done.CAST: Stage.MEMORY,
    Done.COMPILED: Stage.COMPILE,
    # These hide what a pass would have to see, whatever its stage is.
    Done.ADAPTED: Stage.CALL,
    Done.OFFLOADED: Stage.CALL,
    Done.WRAPPED: Stage.CALL,
}
"""Where in a plan's order what was done to a component has its place. Passes up to that place come too late."""


def _too_late(pipeline: Any, found: Plan, keeps_dtype: bool) -> Iterator[Problem]:
    """What can't be applied to a pipeline any more, because of what was done to it."""
    modules = modules_of(pipeline)
    before = {name: done_to(module) for name, module in modules.items()}
    for step in _working(pipeline, found, keeps_dtype):
        for name in step.components:
            moves = step.stage is Stage.PLACE
            late = [d for d in before.get(name, ()) if moves or _COMES_AT[d] >= step.stage]
            for done in sorted(late, key=lambda done: _COMES_AT[done])[-1:]:
                slot = step.pass_.key.split(".")[0]
                yield Problem(
                    found.setting.chosen(slot) if slot in SLOTS else f"device={found.device}",
                    f"comes too late: the pipeline's {name} {done.value} already",
                    "pipeline.fuse_lora() and pipeline.unload_lora_weights() first, or lora=file"
                    if done is Done.ADAPTED
                    else "all of it in one fastdiff.applied(), on the pipeline as it was before",
                )


def _working(pipeline: Any, found: Plan, keeps_dtype: bool) -> Iterator[Step]:
    """The steps that change a given pipeline: those of options that somebody chose."""
    run = found.setting.run
    idle = {"device"} if _is_there(pipeline, found.device) else set()
    for slot, name, option in run.options():
        default = option_files()[slot].get(name)
        as_it_is = name == default_options()[slot] and default and option == default.option()
        if isinstance(option, Option) and (keeps_dtype if slot == "precision" else as_it_is):
            idle |= {p.key for p in option.passes() if p.stage is not Stage.FLAGS}
    yield from (step for step in found.steps if step.pass_.key not in idle)


def _is_there(pipeline: Any, device: str) -> bool:
    return {d.type for d in devices_of(pipeline)} <= {device}
