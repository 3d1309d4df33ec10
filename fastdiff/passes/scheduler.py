"""`scheduler`: the solver of the reverse diffusion.

Each option is made from the configuration of the model's own scheduler, so that the noise it was trained with stays. There are
two kinds of noise, and no solver of one can follow the other: that of diffusion, and the straight lines of flow matching.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fastdiff.config import RunConfig
from fastdiff.errors import Problem, RunError
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.tables import names
from fastdiff.models.timesteps import HANDED, Handed
from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.script import Script, ScriptError, call, keywords

_GUIDE = "https://huggingface.co/docs/diffusers/using-diffusers/schedulers"

FAMILY = names("schedulers_of_diffusion")
"""Classes that can take each other's configuration: diffusers' KarrasDiffusionSchedulers, and LCM's."""

FLOW_FAMILY = names("schedulers_of_flow_matching")
"""Classes of flow matching; some of FAMILY can be set to it too."""


@dataclass
class OwnScheduler(base.Option):
    """The model's own."""

    slot = "scheduler"


@dataclass
class Scheduler(base.Option, base.Pass):
    """Base of the options: a scheduler of another class, from the configuration of the model's own."""

    slot = "scheduler"
    stage = base.Stage.ADAPT
    fidelity = base.Fidelity.MODEL
    source = _GUIDE
    class_name: ClassVar[str]

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"solve with {self.class_name}, made from the model's own configuration"

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return ("scheduler",)

    def needed(self, latent: bool) -> Mapping[str, object]:
        """Settings that hold where the model's own configuration doesn't state them.

        latent: whether the denoiser works on what a VAE decodes.
        """
        return {}

    def added(self, config: Mapping[str, Any], latent: bool) -> dict[str, object]:
        """What is set beside the model's own configuration."""
        stated = {key for key in config if key not in config.get("_use_default_values", ())}
        return {key: value for key, value in self.needed(latent).items() if key not in stated}

    def why_not(self, pipeline: str, class_name: str, config: Mapping[str, Any]) -> str | None:
        """Why it can't follow the model's own scheduler in a pipeline of this class; None if it can."""
        return _reason(class_name, config)

    def already(self, class_name: str, config: Mapping[str, Any]) -> bool:
        """Whether the model's own scheduler is what this makes."""
        return class_name == self.class_name

    def changed_facts(self, facts: ModelFacts, run: RunConfig) -> ModelFacts:
        own = facts.components.get("scheduler")
        if own is None or own.class_name == self.class_name:
            return facts
        if self.why_not(facts.pipeline, own.class_name, own.config):
            return facts
        # `_class_name` in a configuration says, as in diffusers' own files, which class it was written for.
        config = {**own.config, "_class_name": own.class_name}
        part = replace(own, class_name=self.class_name, config=config)
        return replace(facts, components={**facts.components, "scheduler": part})

    def check(self, setting: base.Setting) -> base.Findings:
        part = _scheduler(setting)
        if part is None or setting.facts is None:
            return
        own = _own_class(part)
        if self.already(own, part.config):
            return
        if reason := self.why_not(setting.facts.pipeline, own, part.config):
            instead = _others(setting.facts.pipeline, own, part.config)
            yield Problem(self.choice, reason, instead, self.source)

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        """Raises RunError if the pipeline's own scheduler is of another family."""
        import diffusers

        own = getattr(pipeline, "scheduler", None)
        if own is None:
            said, instead = "this model has no scheduler", "scheduler=default"
            raise RunError(f"{self.choice}: {said}\n  instead: {instead}")
        before, name = type(own).__name__, type(pipeline).__name__
        if self.already(before, own.config):
            return Effect(self.key, 0, "scheduler", already=True, details={"class": before})
        if reason := self.why_not(name, before, own.config):
            instead = _others(name, before, own.config)
            raise RunError(f"{self.choice}: {reason}\n  instead: {instead}")
        latent = any(getattr(pipeline, name, None) for name in ("vae", "vqvae", "movq"))
        added = self.added(own.config, latent)
        pipeline.scheduler = getattr(diffusers, self.class_name).from_config(own.config, **added)
        after = type(pipeline.scheduler).__name__
        words = "".join(f", {key}={value}" for key, value in added.items())
        details = {
            "before": before,
            "after": after,
            "set": added,
            "summary": f"{after} for {before}{words}",
        }
        return Effect(self.key, int(after == self.class_name), "scheduler", details=details)

    def script(self, script: Script, setting: base.Setting) -> None:
        part = _scheduler(setting)
        if part is None:
            raise ScriptError(self.choice, "this model has no scheduler", "scheduler=default")
        if self.already(_own_class(part), part.config):
            return  # the model's own is one
        added = self.added(part.config, setting.vae is not None)
        how = f"pipe.scheduler = {self.class_name}.from_config"
        script.use("diffusers", self.class_name)
        script.then(call(how, "pipe.scheduler.config", *keywords(added)))


def _scheduler(setting: base.Setting) -> Component | None:
    return setting.facts.components.get("scheduler") if setting.facts else None


def _own_class(part: Component) -> str:
    """The class that the model's own scheduler has, whatever this run makes of it."""
    return str(part.config.get("_class_name", part.class_name))


def is_flow(class_name: str, config: Mapping[str, Any]) -> bool:
    """Whether a scheduler follows flow matching, by its class or by what it is set to."""
    set_to_it = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return class_name in FLOW_FAMILY or (class_name in FAMILY and bool(set_to_it))


def _reason(class_name: str, config: Mapping[str, Any]) -> str | None:
    """Why no scheduler of diffusion can follow the model's own; None if it can."""
    if class_name not in FAMILY:
        return (
            f"this model's {class_name} follows another kind of noise schedule (flow matching, for one), and its "
            "configuration says nothing to this solver"
        )
    if is_flow(class_name, config):
        return f"this model's {class_name} is set to flow matching, which this solver doesn't know"
    return None


def _others(pipeline: str, class_name: str, config: Mapping[str, Any]) -> str:
    """The way out: the model's own, or the solvers that can follow it."""
    flow = is_flow(class_name, config)
    kinds = (kind for kind in OPTIONS.values() if issubclass(kind, FlowScheduler))
    found = [kind() for kind in kinds if flow]
    others = [option for option in found if not option.already(class_name, config)]
    can = [option.choice for option in others if not option.why_not(pipeline, class_name, config)]
    return ", or ".join(["scheduler=default", *can[:1]])


@dataclass
class Euler(Scheduler):
    key = "scheduler.euler"
    class_name: ClassVar[str] = "EulerDiscreteScheduler"


@dataclass
class Ddim(Scheduler):
    key = "scheduler.ddim"
    class_name: ClassVar[str] = "DDIMScheduler"

    def needed(self, latent: bool) -> Mapping[str, object]:
        """Its default clips to [-1, 1], the range of pixels; latents go beyond it."""
        return {"clip_sample": False} if latent else {}


@dataclass
class Pndm(Scheduler):
    """Calls the denoiser once more than it has steps."""

    key = "scheduler.pndm"
    class_name: ClassVar[str] = "PNDMScheduler"

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"{super().does}; one denoiser call more than steps"

    def needed(self, latent: bool) -> Mapping[str, object]:
        """Its default begins with Runge-Kutta steps, nine denoiser calls more, which latent models leave out."""
        return {"skip_prk_steps": True}


@dataclass
class DpmSolver(Scheduler):
    key = "scheduler.dpm_solver"
    class_name: ClassVar[str] = "DPMSolverMultistepScheduler"


@dataclass
class Lcm(Scheduler):
    """For models distilled to draw in a few steps, or an adapter that makes them so."""

    key = "scheduler.lcm"
    source = "https://huggingface.co/docs/diffusers/using-diffusers/inference_with_lcm"
    class_name: ClassVar[str] = "LCMScheduler"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        part = _scheduler(setting)
        config = part.config if part else {}
        most, steps = config.get("original_inference_steps", 50), setting.run.generation.steps
        if isinstance(most, int) and steps is not None and steps > most:
            yield Problem(
                self.choice,
                f"draws in at most {most} steps, and {steps} are asked for",
                "generation.steps=4",
            )
        pipeline = setting.facts.pipeline if setting.facts else ""
        own = part is not None and _own_class(part) == self.class_name
        distilled = own or pipeline.startswith("LatentConsistencyModel")
        if setting.run.choices["lora"] == "none" and not distilled:
            yield base.Notice(
                self.choice,
                "is for models that were distilled for it; this one isn't known to be, and draws poorly "
                "without an adapter: lora=lcm",
            )


# Flow matching --------------------------------------------------------------------------------------------


@dataclass
class FlowScheduler(Scheduler):
    """Base of the solvers of flow matching.

    shift: how far the steps are moved towards the noise, the same at every picture size: 1 spreads them evenly, 3 is
        Stable Diffusion 3's. null keeps the model's own shift, by picture size where it has that.
    """

    takes: ClassVar[frozenset[str]]
    """What its class's set_timesteps takes beside the number of steps."""
    follows: ClassVar[frozenset[str]] = frozenset()
    """Settings of flow matching that the class knows; a model that has others set can't be drawn right."""
    begins_at: ClassVar[float | None] = None
    """The first noise level of a class that rounds timesteps down to whole numbers; None for one that doesn't."""

    shift: float | None = None

    def settings(self, shift: object) -> dict[str, object]:
        """The class's own names for a shift, and for flow matching."""
        return {"shift": shift}

    def already(self, class_name: str, config: Mapping[str, Any]) -> bool:
        return class_name == self.class_name and not self.added(config, True)

    def added(self, config: Mapping[str, Any], latent: bool) -> dict[str, object]:
        wanted = self.settings(_shift(config) if self.shift is None else self.shift)
        if self.shift is not None and config.get("use_dynamic_shifting"):
            wanted["use_dynamic_shifting"] = False
        unsaid = {"shift": 1.0, "flow_shift": 1.0}
        return {key: v for key, v in wanted.items() if config.get(key, unsaid.get(key)) != v}

    def why_not(self, pipeline: str, class_name: str, config: Mapping[str, Any]) -> str | None:
        if not is_flow(class_name, config):
            return (
                f"this model's {class_name} is none of flow matching, which this solver alone knows"
            )
        asked = [key for key in _OF_FLOW if config.get(key) and key not in self.follows]
        if asked and class_name != self.class_name:
            return f"this model's {class_name} has {asked[0]} set, which {self.class_name} can't follow"
        dynamic = bool(config.get("use_dynamic_shifting")) and self.shift is None
        if dynamic and not self.takes & {"mu", "mu where dynamic"}:
            return (
                f"this model's noise is shifted by picture size, which {self.class_name} can't do"
            )
        handed = HANDED.get(pipeline)
        if class_name == self.class_name and handed is None:
            return None
        if handed is None and not self.takes >= {"sigmas", "mu", "timesteps"}:
            return f"what {pipeline} hands to its scheduler isn't known, and {self.class_name} doesn't take everything"
        return self._why_not_called(pipeline, handed, dynamic, config) if handed else None

    def _why_not_called(
        self, pipeline: str, handed: Handed, dynamic: bool, config: Mapping[str, Any]
    ) -> str | None:
        """Why the pipeline's call of set_timesteps would fail."""
        own_levels = handed.sigmas and not (
            handed.but_flow_sigmas and "use_flow_sigmas" in self.settings(1.0)
        )
        if own_levels and not self.takes & {"sigmas", f"sigmas as {handed.sigmas}"}:
            return f"{pipeline} hands its own noise levels to the scheduler, and {self.class_name} doesn't take them"
        if handed.timesteps and "timesteps" not in self.takes:
            return f"{pipeline} hands its own timesteps to the scheduler, and {self.class_name} doesn't take them"
        shifted = handed.mu == "always" or (handed.mu == "dynamic" and dynamic)
        exponential = config.get("time_shift_type", "exponential") == "exponential"
        if shifted and "mu" not in self.takes and not (self.takes and dynamic and exponential):
            return (
                f"{pipeline} hands a shift by picture size to the scheduler, which {self.class_name} takes "
                + ("only where the model's noise is shifted so" if self.takes else "not at all")
            )
        return None

    def check(self, setting: base.Setting) -> base.Findings:
        if self.shift is not None and not 0 < self.shift < math.inf:
            instead = "scheduler.shift=3, or null for the model's own"
            yield self.wrong("shift", "must be a finite number above 0", instead)
            return
        yield from super().check(setting)
        yield from self._equal_timesteps(setting)

    def _equal_timesteps(self, setting: base.Setting) -> Iterator[Problem]:
        """Two steps of one whole timestep: where the pipeline doesn't say which is first, the scheduler begins at the second."""
        part, steps = _scheduler(setting), setting.run.generation.steps
        handed = HANDED.get(setting.facts.pipeline) if setting.facts else None
        if not (self.begins_at and part and steps and handed) or handed.says_where_it_begins:
            return
        if part.config.get("use_dynamic_shifting") and self.shift is None:
            return  # by picture size, which only the pipeline knows
        shift = _shift(part.config) if self.shift is None else self.shift
        second = self.begins_at - 0.999 / steps
        if steps > 1 and shift * second / (1 + (shift - 1) * second) >= 0.999:
            yield Problem(
                f"generation.steps={steps}",
                f"with a shift of {shift:g} the first two fall on the same whole timestep, and {self.class_name} would "
                "begin at the second",
                "fewer steps, or a smaller scheduler.shift",
            )


_OF_FLOW = names("settings_of_flow_matching")
"""Settings that change a schedule of flow matching, and that not every class knows, or reads alike."""


def _shift(config: Mapping[str, Any]) -> float:
    """The shift that a scheduler's configuration states, whichever its class calls it."""
    return float(config.get("shift") or config.get("flow_shift") or 1.0)


@dataclass
class FlowEuler(FlowScheduler):
    key = "scheduler.flow_euler"
    class_name: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    takes: ClassVar[frozenset[str]] = frozenset({"sigmas", "mu", "timesteps"})
    follows: ClassVar[frozenset[str]] = frozenset(
        {"shift_terminal", "invert_sigmas", "stochastic_sampling"}
    )


@dataclass
class FlowHeun(FlowScheduler):
    """Calls the denoiser twice in each step but the last."""

    key = "scheduler.flow_heun"
    class_name: ClassVar[str] = "FlowMatchHeunDiscreteScheduler"
    takes: ClassVar[frozenset[str]] = frozenset()

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"{super().does}; two denoiser calls in each step but the last"


@dataclass
class FlowMultistep(FlowScheduler):
    """Base of solvers of diffusion that can be set to flow matching."""

    def settings(self, shift: object) -> dict[str, object]:
        return {
            "flow_shift": shift,
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
        }


@dataclass
class FlowUniPc(FlowMultistep):
    key = "scheduler.flow_unipc"
    class_name: ClassVar[str] = "UniPCMultistepScheduler"
    takes: ClassVar[frozenset[str]] = frozenset({"sigmas as array", "mu"})
    begins_at: ClassVar[float | None] = 1.0
    follows: ClassVar[frozenset[str]] = frozenset({"shift_terminal"})


@dataclass
class FlowDpmSolver(FlowMultistep):
    key = "scheduler.flow_dpm_solver"
    class_name: ClassVar[str] = "DPMSolverMultistepScheduler"
    takes: ClassVar[frozenset[str]] = frozenset({"mu where dynamic", "timesteps"})
    begins_at: ClassVar[float | None] = 0.999


OPTIONS: dict[str, type[base.Option]] = {
    "default": OwnScheduler,
    "euler": Euler,
    "ddim": Ddim,
    "pndm": Pndm,
    "dpm_solver": DpmSolver,
    "lcm": Lcm,
    "flow_euler": FlowEuler,
    "flow_heun": FlowHeun,
    "flow_unipc": FlowUniPc,
    "flow_dpm_solver": FlowDpmSolver,
}
