"""The contract for an optimization: what it declares for planning, and what it does to a pipeline.

An option of a slot is a dataclass derived from `Option`: its fields, the names with a type, are its keys; names without one
say what it is. What carries it out is a `Pass`; most options are their own pass. Nothing here or in the modules beside it imports torch when imported; `apply` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from fastdiff.config import RunConfig, Slot
from fastdiff.errors import MachineProblem, NoGpuProblem, Problem
from fastdiff.machine.environment import Environment
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.passes.effects import Effect, Pending
from fastdiff.script import Script

if TYPE_CHECKING:
    import torch


class Stage(IntEnum):
    """When a pass works. The only place where order lives; later stages build on earlier ones."""

    FLAGS = 1  # process flags
    LOAD = 2  # dtype, while the pipeline is built
    REPLACE = 3  # components from elsewhere, while the pipeline is built
    ADAPT = 4  # LoRA, scheduler
    FUSE = 5  # joined projections
    LAYOUT = 6  # memory format
    QUANTIZE = 7
    ATTENTION = 8  # processors
    CACHE = 9  # step caches
    MEMORY = 10  # how weights are kept, how the VAE divides its work
    PLACE = 11  # onto the device
    COMPILE = 12
    CALL = 13  # around each call of the compiled denoiser


class Fidelity(Enum):
    """What a pass does to the numbers that denoiser and VAE compute from the same inputs.

    MODEL: it chooses what is computed (weights, number format, scheduler); without it another model ran.
    EXACT: the same arithmetic in another order or place. Only rounding may differ.
    LOSSY: numbers are rounded further, skipped or approximated, so that there is no exact value to hold them to.
    """

    MODEL = "model"
    EXACT = "exact"
    LOSSY = "lossy"


@dataclass(frozen=True)
class Notice:
    """Something a user should know though nothing stops the run."""

    choice: str
    text: str


Findings = Iterator[Problem | Notice]
"""What a check yields."""


@dataclass(frozen=True)
class Setting:
    """Everything that planning knows: the choices, the machine, the device, and the model's facts.

    facts is None as long as nobody has seen the model (a hub model that is not downloaded).
    """

    run: RunConfig
    environment: Environment
    device: str
    facts: ModelFacts | None

    def chosen(self, slot: str) -> str:
        """The choice as typed: `quant=int8`."""
        return f"{slot}={self.run.choices[slot]}"

    @property
    def denoiser(self) -> Component | None:
        return self.facts.denoiser if self.facts else None

    @property
    def vae(self) -> Component | None:
        return self.facts.vae if self.facts else None

    @property
    def denoiser_name(self) -> str:
        return self.denoiser.name if self.denoiser else "denoiser"

    @property
    def vae_name(self) -> str:
        return self.vae.name if self.vae else "vae"

    @property
    def options(self) -> list[Option]:
        """The optimizations among the run's choices."""
        return [option for _, _, option in self.run.options() if isinstance(option, Option)]

    @property
    def placed_by_option(self) -> bool:
        """Whether an option brings the pipeline onto the device its own way, from the host."""
        return any(option.places for option in self.options)

    @property
    def compiles(self) -> bool:
        """Whether the first call compiles something."""
        return any(option.compiles for option in self.options)

    @property
    def skips(self) -> bool:
        """Whether steps of the denoiser compute unequally much."""
        return any(option.skips for option in self.options)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the components whose weights become constants of compiled code."""
        return frozenset(name for option in self.options for name in option.frozen(self))

    def weighty(self) -> tuple[str, ...]:
        """Names of every component that has weights."""
        parts = self.facts.components.values() if self.facts else ()
        return tuple(part.name for part in parts if part.parameters != 0)

    def names(self) -> tuple[str, ...]:
        """Names of the components that optimizations are about: denoiser and VAE."""
        parts = (self.denoiser, self.vae)
        return tuple(part.name for part in parts if part) or ("denoiser", "vae")


@dataclass(frozen=True)
class Requirement:
    """What the machine must have. Empty fields ask for nothing.

    module: import name of a package; pip: how to install it.
    device: kind of device; capability: least CUDA compute capability.
    instead: the way out, as typed.
    """

    instead: str
    module: str | None = None
    pip: str | None = None
    device: str | None = None
    capability: tuple[int, int] | None = None
    source: str | None = None

    def unmet(self, choice: str, setting: Setting) -> MachineProblem | None:
        """The Problem with this machine, if it lacks what is required."""
        if self.device and setting.device != self.device:
            on_gpu = self.device == "cuda"
            needs = "needs an NVIDIA GPU" if on_gpu else f"needs device={self.device}"
            if self.capability:
                needs += f" of compute capability {_dotted(self.capability)} or newer"
            reason = f"{needs}; device={setting.device}"
            unusable = setting.environment.gpu_unusable
            if on_gpu and setting.run.device == "auto" and unusable:
                reason += f", for {unusable.reason}"
            kind = NoGpuProblem if on_gpu else MachineProblem
            return kind(choice, reason, self.instead, self.source)
        capability = setting.environment.capability
        if self.capability and (capability is None or capability < self.capability):
            has = _dotted(capability) if capability else "unknown"
            reason = f"needs compute capability {_dotted(self.capability)} or newer; here: {has}"
            return MachineProblem(choice, reason, self.instead, self.source)
        if self.module and not setting.environment.has_module(self.module):
            reason = f"needs the package {self.pip or self.module}, which is not installed"
            instead = f"pip install {self.pip or self.module}, or {self.instead}"
            return MachineProblem(choice, reason, instead, self.source)
        return None


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


@dataclass(frozen=True)
class Conflict:
    """Another choice that this option can't be combined with. Declared on one side only."""

    choice: str
    reason: str
    instead: str
    source: str | None = None


@dataclass
class Loading:
    """What the pipeline is built from; passes fill it in before anything is loaded.

    setting: what is being built. dtype: of the weights; None keeps the files' own.
    parts: components that are made elsewhere, by name: called with dtype, each returns one on the CPU. The
        pipeline's own are not loaded then.
    """

    setting: Setting
    dtype: torch.dtype | None = None
    parts: dict[str, Callable[[torch.dtype | None], Any]] = field(default_factory=dict)


@dataclass
class Context:
    """What a pass may need while it works on a pipeline.

    made: the components that passes made in the place of the pipeline's own, by name.
    draw: calls a pipeline as the run will, for passes that depend on the shapes of a call.
    """

    setting: Setting
    made: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[Any], Any] | None = None

    @property
    def device(self) -> str:
        return self.setting.device

    def parts(self, pipeline: Any, names: tuple[str, ...]) -> dict[str, Any]:
        """The named components that this pipeline has."""
        found = {name: getattr(pipeline, name, None) for name in names}
        return {name: part for name, part in found.items() if part is not None}


class Pass:
    """One step of a plan. Derived classes say what they do in `does` and when in `stage`.

    fidelity: what it does to the numbers. Every pass declares it; one that doesn't is held to be exact.
    bakes_arithmetic: it fixes how numbers are computed when something is first called, so that torch's switches (TF32) no
        longer reach it afterwards: what compiles does.
    """

    key: ClassVar[str]
    stage: ClassVar[Stage]
    does: ClassVar[str]
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    bakes_arithmetic: ClassVar[bool] = False
    source: ClassVar[str | None] = None

    @property
    def choice(self) -> str:
        """As typed: `quant=int8`."""
        return self.key.replace(".", "=")

    def components(self, setting: Setting) -> tuple[str, ...]:
        """Names of the components it will change; planning lets no two passes of a stage share one.

        Every part whose weights it writes into must be named: `fastdiff.applied` gives those copies of their weights.
        """
        return setting.names()

    def explain(self, setting: Setting) -> str:
        """What it does in this run, for the plan: `does`, and what only the machine decides."""
        return self.does

    def prepare(self, loading: Loading) -> None:
        """Say how the pipeline is to be built. Called before it exists, in the order of the plan."""

    def apply(self, pipeline: Any, context: Context) -> Effect | Pending:
        """Change the pipeline. Returns what changed, or what can tell after the first call."""
        raise TypeError(f"{type(self).__name__} has no apply()")

    def counted(
        self,
        pipeline: Any,
        context: Context,
        change: Callable[[Any], object],
        count: Callable[[Any], int],
        unit: str,
    ) -> Effect:
        """Change each of its components, and count afterwards how many `unit`s each has."""
        counts = {}
        for name, part in self.parts(pipeline, context).items():
            change(part)
            counts[name] = count(part)
        return Effect(self.key, sum(counts.values()), unit, details={"components": counts})

    def parts(self, pipeline: Any, context: Context) -> dict[str, Any]:
        """The components that it changes, by name, as far as this pipeline has them."""
        return context.parts(pipeline, self.components(context.setting))

    def settles(self, setting: Setting) -> Settling:
        """After how many calls each is like the next: the first alone, unless the pass says otherwise."""
        return Settling(1)

    def script(self, script: Script, setting: Setting) -> None:
        """Write what `apply` does into a plain script, after the passes before it.

        Raises ScriptError if no plain script can do it.
        """
        raise TypeError(f"{type(self).__name__} has no script()")


class Settling(NamedTuple):
    """After how many calls of a pipeline one is like the next: times before are of something else. Why, in words."""

    calls: int
    why: str = ""


@dataclass
class Option(Slot):
    """One option of a slot: its keys, what it needs, and what it can't live with."""

    requires: ClassVar[tuple[Requirement, ...]] = ()
    conflicts: ClassVar[tuple[Conflict, ...]] = ()
    places: ClassVar[bool] = False
    """Whether a pass of its own brings the pipeline onto the device, so that nothing else may."""
    compiles: ClassVar[bool] = False
    """Whether the first call of the pipeline compiles something."""
    skips: ClassVar[bool] = False
    """Whether some steps of the denoiser leave out what others compute."""

    def changed_facts(self, facts: ModelFacts, run: RunConfig) -> ModelFacts:
        """What is known of the model once this option has done its work: another VAE, another scheduler."""
        return facts

    def variables(self) -> Mapping[str, str]:
        """Environment variables that the process of a run has to begin with."""
        return {}

    def frozen(self, setting: Setting) -> tuple[str, ...]:
        """Names of the components whose weights become constants of compiled code."""
        return ()

    def code_folder(self) -> Path | None:
        """Where the code is kept that it compiles; None if it compiles nothing. May import torch."""
        return None

    def check(self, setting: Setting) -> Findings:
        """Rules that `requires` and `conflicts` can't say. Reads only."""
        yield from ()

    def wrong(
        self,
        key: str,
        reason: str,
        instead: str,
        source: str | None = None,
        kind: type[Problem] = Problem,
    ) -> Problem:
        """The Problem with the value of one of its keys, which is shown as it would be typed."""
        return kind(f"{self.slot}.{key}={_typed(getattr(self, key))}", reason, instead, source)

    def passes(self) -> tuple[Pass, ...]:
        """What carries it out: itself if it is a Pass, nothing otherwise."""
        return (self,) if isinstance(self, Pass) else ()


def _typed(value: object) -> str:
    """A value as it would be typed: `null`, `true`, `[1,2]`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{','.join(map(_typed, value))}]" if isinstance(value, list) else str(value)
