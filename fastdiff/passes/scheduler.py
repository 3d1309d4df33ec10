"""`scheduler`: the solver of the reverse diffusion.

Each option is made from the configuration of the model's own scheduler, so that the noise it was trained with stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fastdiff.config import RunConfig
from fastdiff.errors import Problem, RunError
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.passes.base import Context, Fidelity, Notice, Option, Pass, Setting, Stage
from fastdiff.result import Effect
from fastdiff.scripting import Script, ScriptError, call, keywords

_GUIDE = "https://huggingface.co/docs/diffusers/using-diffusers/schedulers"

FAMILY = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
    "LCMScheduler",
)
"""Classes that can take each other's configuration: diffusers' KarrasDiffusionSchedulers, and LCM's."""


@dataclass
class OwnScheduler(Option):
    """The model's own."""

    slot: ClassVar[str] = "scheduler"


@dataclass
class Scheduler(Option, Pass):
    """Base of the options: a scheduler of another class, from the configuration of the model's own."""

    slot: ClassVar[str] = "scheduler"
    stage: ClassVar[Stage] = Stage.ADAPT
    fidelity: ClassVar[Fidelity] = Fidelity.MODEL
    source: ClassVar[str | None] = _GUIDE
    class_name: ClassVar[str]

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"solve with {self.class_name}, made from the model's own configuration"

    @property
    def choice(self) -> str:
        return self.key.replace(".", "=")

    def components(self, setting: Setting) -> tuple[str, ...]:
        return ("scheduler",)

    def needed(self, latent: bool) -> Mapping[str, object]:
        """Settings that hold where the model's own configuration doesn't state them.

        latent: whether the denoiser works on what a VAE decodes.
        """
        return {}

    def changed_facts(self, facts: ModelFacts, run: RunConfig) -> ModelFacts:
        own = facts.components.get("scheduler")
        if own is None or own.class_name == self.class_name or _reason(own.class_name, own.config):
            return facts
        # `_class_name` in a configuration says, as in diffusers' own files, which class it was written for.
        config = {**own.config, "_class_name": own.class_name}
        part = replace(own, class_name=self.class_name, config=config)
        return replace(facts, components={**facts.components, "scheduler": part})

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        part = _scheduler(setting)
        reason = part and _reason(part.class_name, part.config)
        if reason:
            yield Problem(self.choice, reason, "scheduler=default", self.source)

    def apply(self, pipeline: Any, context: Context) -> Effect:
        """Raises RunError if the pipeline's own scheduler is of another family."""
        import diffusers

        own = getattr(pipeline, "scheduler", None)
        before = type(own).__name__
        reason = _reason(before, own.config) if own is not None else "this model has no scheduler"
        if reason:
            raise RunError(f"{self.choice}: {reason}\n  instead: scheduler=default")
        assert own is not None
        if before == self.class_name:
            return Effect(self.key, 0, "scheduler", already=True, details={"class": before})
        stated = {key for key in own.config if key not in own.config.get("_use_default_values", ())}
        latent = any(getattr(pipeline, name, None) for name in ("vae", "vqvae", "movq"))
        added = {key: value for key, value in self.needed(latent).items() if key not in stated}
        kind = getattr(diffusers, self.class_name)
        pipeline.scheduler = kind.from_config(own.config, **added)
        after = type(pipeline.scheduler).__name__
        words = "".join(f", {key}={value}" for key, value in added.items())
        details = {
            "before": before,
            "after": after,
            "set": added,
            "summary": f"{after} for {before}{words}",
        }
        return Effect(self.key, int(after == self.class_name), "scheduler", details=details)

    def script(self, script: Script, setting: Setting) -> None:
        part = _scheduler(setting)
        if part is None:
            raise ScriptError(self.choice, "this model has no scheduler", "scheduler=default")
        if part.config.get("_class_name", part.class_name) == self.class_name:
            return  # the model's own is one
        needed = self.needed(setting.vae is not None).items()
        added = {key: value for key, value in needed if key not in part.config}
        how = f"pipe.scheduler = {self.class_name}.from_config"
        script.use("diffusers", self.class_name)
        script.then(call(how, "pipe.scheduler.config", *keywords(added)))


def _scheduler(setting: Setting) -> Component | None:
    return setting.facts.components.get("scheduler") if setting.facts else None


def _reason(class_name: str, config: Mapping[str, object]) -> str | None:
    """Why no scheduler of the family can follow the model's own; None if it can."""
    if class_name not in FAMILY:
        return (
            f"this model's {class_name} follows another kind of noise schedule (flow matching, for one), and its "
            "configuration says nothing to this solver"
        )
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return f"this model's {class_name} is set to flow matching, which this solver doesn't know"
    return None


@dataclass
class Euler(Scheduler):
    key: ClassVar[str] = "scheduler.euler"
    class_name: ClassVar[str] = "EulerDiscreteScheduler"


@dataclass
class Ddim(Scheduler):
    key: ClassVar[str] = "scheduler.ddim"
    class_name: ClassVar[str] = "DDIMScheduler"

    def needed(self, latent: bool) -> Mapping[str, object]:
        """Its default clips to [-1, 1], the range of pixels; latents go beyond it."""
        return {"clip_sample": False} if latent else {}


@dataclass
class Pndm(Scheduler):
    """Calls the denoiser once more than it has steps."""

    key: ClassVar[str] = "scheduler.pndm"
    class_name: ClassVar[str] = "PNDMScheduler"

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"{super().does}; one denoiser call more than steps"

    def needed(self, latent: bool) -> Mapping[str, object]:
        """Its default begins with Runge-Kutta steps, nine denoiser calls more, which latent models leave out."""
        return {"skip_prk_steps": True}


@dataclass
class DpmSolver(Scheduler):
    key: ClassVar[str] = "scheduler.dpm_solver"
    class_name: ClassVar[str] = "DPMSolverMultistepScheduler"


@dataclass
class Lcm(Scheduler):
    """For models distilled to draw in a few steps, or an adapter that makes them so."""

    key: ClassVar[str] = "scheduler.lcm"
    source: ClassVar[str | None] = (
        "https://huggingface.co/docs/diffusers/using-diffusers/inference_with_lcm"
    )
    class_name: ClassVar[str] = "LCMScheduler"

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
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
        own = config.get("_class_name", part.class_name if part else None)
        distilled = own == self.class_name or pipeline.startswith("LatentConsistencyModel")
        if setting.run.choices["lora"] == "none" and not distilled:
            yield Notice(
                self.choice,
                "is for models that were distilled for it; this one isn't known to be, and draws poorly "
                "without an adapter: lora=lcm",
            )


OPTIONS: dict[str, type[Option]] = {
    "default": OwnScheduler,
    "euler": Euler,
    "ddim": Ddim,
    "pndm": Pndm,
    "dpm_solver": DpmSolver,
    "lcm": Lcm,
}
