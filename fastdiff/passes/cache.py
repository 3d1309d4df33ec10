"""`cache`: what one step computed, used again in the next ones.

DeepCache comes from the package of that name (0.1.1 of 2023). Tried with diffusers 0.42.1: it skips blocks, a second
call draws the same picture, and guidance in one batch works. It looks its step up by comparing the timestep with every
entry of the scheduler's list, which waits for a GPU each time, and which with a solver that visits timesteps twice (Heun)
and an interval of 2 never computes in full again; so here it is told the step instead.

Compiled, whatever decides to skip is compiled anew with every step that decides otherwise, until Dynamo gives up
(FailOnRecompileLimitHit, with graph breaks allowed or not). What DeepCache skips lies around the repeated blocks, which
can therefore be compiled by region; attention lies inside them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fastdiff.errors import Problem, listed
from fastdiff.models.facts import KEEPS_ATTENTION, Component
from fastdiff.models.tables import names
from fastdiff.passes import base
from fastdiff.passes.effects import Effect, Observed, Pending
from fastdiff.script import Script, ScriptError, call, keywords

if TYPE_CHECKING:
    from torch import nn

_DEEPCACHE = "https://arxiv.org/abs/2312.00858"
_PYRAMID = "https://huggingface.co/docs/diffusers/optimization/cache"
_UNET = "UNet2DConditionModel"
_VISITS_ONCE = names("visits_each_timestep_once")
"""Schedulers whose timesteps are all different."""

_ONCE_A_STEP = names("calls_its_denoiser_once_a_step")
"""Pipelines that call their denoiser once a step, guidance in the same batch. Where it is called twice, one call would
be given what the other computed, unless the pipeline tells which step it is in."""
_TELLING_ONCE = names("calls_it_once_and_tells_the_step")
"""Others that do, and have `current_timestep`."""
_OWN_KEYS_AND_VALUES = names("keeps_keys_and_values_of_its_own")
"""Pipelines whose attention gives back something of another size in the first step, and keeps it itself."""


@dataclass
class NoCache(base.Option):
    """Every step computes everything."""

    slot = "cache"


class Steps:
    """Which step of which pipeline call the denoiser is in.

    A call sets its scheduler's timesteps anew, so that other timesteps are another call, even after one that was left
    half-way.

    call: from 1; 0 before the first. step: of the call, from 0. branch: calls of the denoiser within the step, from 0: some
        pipelines call it once with the prompt and once without. They all tell their timestep; where none is told, every
        call of the denoiser is a step.
    """

    def __init__(self, pipeline: Any, begins: Callable[[], None] = lambda: None) -> None:
        """begins: called at every first step."""
        self.pipeline, self.begins = pipeline, begins
        self.call = self.step = self.branch = 0
        self.steps_of_first_call = self.denoiser_calls_of_first_call = 0
        self.timesteps: list[float] = []
        self._seen: Any = None
        self._told: Any = None

    def follow(self, denoiser: nn.Module, then: Callable[[], None] = lambda: None) -> None:
        """Count from now on. then: called before every step, once its number is known."""

        def before(*_: Any) -> None:
            self._advance()
            then()

        denoiser.register_forward_pre_hook(before)

    def _advance(self) -> None:
        now = self.pipeline.scheduler.timesteps
        told = getattr(self.pipeline, "current_timestep", None)
        if now is not self._seen:
            self._seen, self.timesteps = now, now.tolist()
            self.call, self.step, self.branch = self.call + 1, 0, 0
            self.begins()
        elif told is not None and told is self._told:
            self.branch += 1
        else:
            self.step, self.branch = self.step + 1, 0
        self._told = told
        self.denoiser_calls_of_first_call += self.call == 1
        self.steps_of_first_call += self.call == 1 and self.branch == 0

    @property
    def timestep(self) -> float:
        """Noise level of this step, about 1000 down to 0."""
        return self.timesteps[min(self.step, len(self.timesteps) - 1)]


@dataclass
class SkippedCalls(Pending):
    """Counts how often modules were really computed in the first call of the pipeline.

    modules: how many are watched; each would be computed once a step.
    """

    key: str
    unit: str
    steps: Steps
    modules: int = 0
    computed: int = 0

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """To be called before a cache takes the place of their `forward`."""
        for module in modules:
            self.modules += 1
            module.forward = self._counted(module.forward)  # type: ignore[method-assign]

    def _counted(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.computed += self.steps.call == 1
            return inner(*args, **kwargs)

        return forward

    def effect(self, observed: Observed) -> Effect:
        steps = self.steps.steps_of_first_call
        every = self.modules * self.steps.denoiser_calls_of_first_call
        details = {"of": every, "watched": self.modules, "steps": steps, "summary": f"of {every}"}
        return Effect(self.key, every - self.computed, self.unit, details=details)


@dataclass
class Cache(base.Option, base.Pass):
    """Base of the options."""

    slot = "cache"
    stage = base.Stage.CACHE
    fidelity = base.Fidelity.LOSSY
    classes: ClassVar[tuple[str, ...]] = ()
    skips = True
    outside_blocks: ClassVar[bool] = False
    """Whether what is skipped lies outside the repeated blocks, so that these can be compiled."""

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return (setting.denoiser_name,)

    def check(self, setting: base.Setting) -> base.Findings:
        choice, part = setting.chosen("cache"), setting.denoiser
        if setting.facts and not part:
            yield Problem(
                choice, f"{setting.facts.pipeline} has no denoiser that is known", "cache=none"
            )
        elif part and part.class_name not in self.classes:
            yield Problem(
                choice,
                f"works on {listed(self.classes)}; this model's denoiser is {part.class_name}",
                self._other(part.class_name),
                self.source,
            )
        elif setting.facts and part and (reason := self._lost_in(setting.facts.pipeline, part)):
            yield Problem(choice, reason, "cache=none")
        compiled, targets = setting.chosen("compile"), getattr(setting.run.compile, "targets", ())
        regional = compiled == "compile=regional"
        if "denoiser" in targets and not (regional and self.outside_blocks):
            yield Problem(
                choice,
                f"can't be combined with {compiled}: what is skipped changes from step to step, and every "
                "change compiles anew until Dynamo gives up",
                self._compiled_otherwise(),
            )
        if setting.run.generation.steps == 1:
            yield Problem(choice, "one step has none before it to take from", "generation.steps=25")

    def _lost_in(self, pipeline: str, denoiser: Component) -> str | None:
        """Why it couldn't follow the steps of this pipeline; None if it can."""
        if pipeline in _ONCE_A_STEP:
            return None
        return (
            f"is known to work only in {', '.join(_ONCE_A_STEP)}, which call their denoiser once a step; this is "
            f"{pipeline}"
        )

    def _other(self, class_name: str) -> str:
        others = (option for option in (DeepCache, PyramidAttention) if option is not type(self))
        known = [o.key.replace(".", "=") for o in others if class_name in o.classes]
        return ", or ".join([*known, "cache=none"])

    def _compiled_otherwise(self) -> str:
        if self.outside_blocks:
            return "compile=regional, or cache=none"
        return "compile=none, or cache=deepcache with compile=regional, or cache=none"


@dataclass
class DeepCache(Cache):
    """The UNet's deep blocks computed in every interval-th step; in the others what they gave last time.

    interval: 3 computes everything in every third step.
    branch: how deep the other steps still compute: 0 only the last layer of the last up block (with the UNet's ends),
        3 more for each further block.
    """

    key = "cache.deepcache"
    source = _DEEPCACHE
    classes: ClassVar[tuple[str, ...]] = (_UNET,)
    outside_blocks = True
    requires = (
        base.Requirement(
            module="DeepCache",
            pip="DeepCache",
            instead="cache=pyramid_attention, or cache=none",
        ),
    )

    interval: int = 3
    branch: int = 0

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"compute the UNet's deep blocks in one step of {self.interval}"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        if self.interval < 2:
            instead = "cache.interval=2, or cache=none"
            yield self.wrong("interval", "every step would compute everything", instead)
        part, blocks = setting.denoiser, self._blocks(setting)
        most = 3 * blocks - 1
        if self.branch < 0 or (blocks and self.branch > most):
            has = f"this UNet has the branches 0 to {most}" if blocks else "branches begin at 0"
            nearest = min(max(self.branch, 0), most) if blocks else 0
            yield self.wrong("branch", has, f"cache.branch={nearest}")
        if part and "mid_block_type" in part.config and part.config["mid_block_type"] is None:
            yield Problem(
                "cache=deepcache",
                "the package DeepCache needs a UNet with a middle block, and this one has none",
                "cache=pyramid_attention, or cache=none",
            )
        steps = setting.run.generation.steps
        if steps is not None and 1 < steps <= self.interval:
            way_out = "cache.interval=2, or more steps" if steps > 2 else "take more steps"
            yield base.Notice(
                f"cache.interval={self.interval}",
                f"with generation.steps={steps} only the first step is computed in full; {way_out}",
            )

    @staticmethod
    def _blocks(setting: base.Setting) -> int:
        """Down blocks of the UNet; 0 if unknown."""
        part = setting.denoiser
        types = part.config.get("down_block_types") if part else None
        return len(types) if isinstance(types, (list, tuple)) else 0

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        unet = pipeline.unet
        helper = importlib.import_module("DeepCache").DeepCacheSDHelper(pipeline)
        helper.set_params(cache_interval=self.interval, cache_branch_id=self.branch)
        helper.wrap_unet_forward = lambda: None  # it would look up the step that it is told here
        steps = Steps(pipeline, begins=lambda: helper.cached_output.clear())
        skipped = SkippedCalls(self.key, "block calls skipped", steps)
        skipped.watch(_layers(unet))
        helper.enable()

        def tell() -> None:
            helper.cur_timestep = steps.step

        steps.follow(unet, tell)
        return skipped

    def script(self, script: Script, setting: base.Setting) -> None:
        """The helper looks its step up by the timestep, so that it is told where a solver may visit one twice."""
        given = {"cache_interval": self.interval, "cache_branch_id": self.branch}
        lines = ["helper = DeepCacheSDHelper(pipe)", call("helper.set_params", *keywords(given))]
        script.use("DeepCache", "DeepCacheSDHelper")
        scheduler = setting.facts and setting.facts.components.get("scheduler")
        if scheduler and scheduler.class_name in _VISITS_ONCE:
            script.then(*lines, "helper.enable()")
            return
        script.use("itertools")
        tell = 'lambda *_: setattr(helper, "cur_timestep", next(steps))'
        script.then(
            *lines,
            "# It would look its step up by the timestep, which this solver may visit twice.",
            "helper.wrap_unet_forward = lambda: None",
            "helper.enable()",
            "steps = itertools.count()",
            f"pipe.unet.register_forward_pre_hook({tell})",
        )


class _StateOfBranch:
    """What diffusers' hook remembers of one attention, apart for each call of the denoiser within a step.

    diffusers itself has one memory for all of them, and would give the call without the prompt what the one with it
    computed.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._kept: dict[int, tuple[int, Any]] = {}

    @property
    def iteration(self) -> int:
        return self._kept.get(self._steps.branch, (0, None))[0]

    @iteration.setter
    def iteration(self, value: int) -> None:
        self._kept[self._steps.branch] = value, self.cache

    @property
    def cache(self) -> Any:
        return self._kept.get(self._steps.branch, (0, None))[1]

    @cache.setter
    def cache(self, value: Any) -> None:
        self._kept[self._steps.branch] = self.iteration, value

    def reset(self) -> None:
        self._kept.clear()


def _layers(unet: Any) -> Iterator[nn.Module]:
    """What a UNet's blocks are made of: residual blocks, transformers, and the layers that change the resolution."""
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for kind in ("resnets", "attentions", "downsamplers", "upsamplers"):
            layers = getattr(block, kind, None) or ()
            yield from (layer for layer in layers if layer is not None)


@dataclass
class PyramidAttention(Cache):
    """Attention computed in every n-th step only, in the middle of the denoising; diffusers' own.

    spatial_attention_block_skip_range: 2 computes self-attention in every second step; null in every step.
    cross_attention_block_skip_range: the same of cross-attention, which transformers with joint attention haven't.
    timestep_skip_range: noise levels (1000 is pure noise) between which it is skipped.
    """

    key = "cache.pyramid_attention"
    source = _PYRAMID
    classes: ClassVar[tuple[str, ...]] = tuple(KEEPS_ATTENTION)
    does = "use the attention of earlier steps again, in the middle of the denoising"

    spatial_attention_block_skip_range: int | None = 2
    cross_attention_block_skip_range: int | None = 4
    timestep_skip_range: list[int] = field(default_factory=lambda: [100, 800])

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        ranges = ("spatial_attention_block_skip_range", "cross_attention_block_skip_range")
        for name in ranges:
            value = getattr(self, name)
            if value is not None and value < 2:
                instead = f"cache.{name}=2, or null to say so"
                yield self.wrong(name, "every step would compute it", instead)
        spatial, cross = (getattr(self, name) for name in ranges)
        part = setting.denoiser
        crosses = part is None or KEEPS_ATTENTION.get(part.class_name, True)
        if spatial is None and (cross is None or not crosses):
            lacks = (
                f"; {part.class_name} has no cross-attention" if cross is not None and part else ""
            )
            instead = f"cache.{ranges[0]}=2, or cache=none"
            yield self.wrong(ranges[0], f"nothing would be skipped{lacks}", instead)
        between = self.timestep_skip_range
        if len(between) != 2 or not between[0] < between[1]:
            why = "is not two noise levels, the lower one first"
            yield self.wrong("timestep_skip_range", why, "cache.timestep_skip_range=[100,800]")

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        from diffusers import PyramidAttentionBroadcastConfig
        from diffusers.hooks import HookRegistry, apply_pyramid_attention_broadcast
        from diffusers.models.attention import AttentionModuleMixin
        from diffusers.models.attention_processor import Attention, MochiAttention

        (denoiser,) = self.parts(pipeline, context).values()
        kinds = (Attention, AttentionModuleMixin, MochiAttention)
        attentions = [module for module in denoiser.modules() if isinstance(module, kinds)]

        def forget() -> None:
            for module in attentions:
                HookRegistry.check_if_exists_or_initialize(module).reset_stateful_hooks()

        # A UNet's pipeline doesn't do that itself, and no pipeline does after a call that was left half-way.
        steps = Steps(pipeline, begins=forget)
        skipped = SkippedCalls(self.key, "attention calls skipped", steps)
        skipped.watch(attentions)
        given: dict[str, Any] = self._given()
        now = PyramidAttentionBroadcastConfig(
            **given, current_timestep_callback=lambda: steps.timestep
        )
        apply_pyramid_attention_broadcast(denoiser, now)
        for module in attentions:
            registry = HookRegistry.check_if_exists_or_initialize(module)
            if hook := registry.get_hook("pyramid_attention_broadcast"):
                hook.state = _StateOfBranch(steps)
        steps.follow(denoiser)
        return skipped

    def _given(self) -> dict[str, object]:
        """What diffusers' own configuration takes, beside what tells it the step."""
        between = tuple(self.timestep_skip_range)
        return {
            "spatial_attention_block_skip_range": self.spatial_attention_block_skip_range,
            "cross_attention_block_skip_range": self.cross_attention_block_skip_range,
            "spatial_attention_timestep_skip_range": between,
            "cross_attention_timestep_skip_range": between,
        }

    def _lost_in(self, pipeline: str, denoiser: Component) -> str | None:
        if denoiser.class_name == _UNET:
            return super()._lost_in(pipeline, denoiser)
        if pipeline in _OWN_KEYS_AND_VALUES:
            return f"{pipeline} keeps keys and values of its own, and its attention gives back less after the first step"
        return None

    def script(self, script: Script, setting: base.Setting) -> None:
        pipeline = setting.facts.pipeline if setting.facts else ""
        if pipeline not in _ONCE_A_STEP + _TELLING_ONCE:
            raise ScriptError(
                self.key,
                f"{pipeline or 'the pipeline'} may call its denoiser twice in a step, and diffusers' own hooks would "
                "give one call what the other computed",
                "cache=none",
            )
        (denoiser,) = script.called(self.key, self.components(setting))
        now, lines = "pipe.current_timestep", []
        if setting.denoiser and setting.denoiser.class_name == _UNET:  # its pipelines don't tell it
            now = "timesteps[-1]"
            remember = "lambda unet, inputs: timesteps.append(inputs[1])"
            lines = ["timesteps = []", f"{denoiser}.register_forward_pre_hook({remember})"]
        chosen = {key: value for key, value in self._given().items() if value is not None}
        told = [*keywords(chosen), f"current_timestep_callback=lambda: {now}"]
        script.use("diffusers", "PyramidAttentionBroadcastConfig")
        script.use("diffusers.hooks", "apply_pyramid_attention_broadcast")
        script.then(
            *lines,
            call("config = PyramidAttentionBroadcastConfig", *told),
            f"apply_pyramid_attention_broadcast({denoiser}, config)",
        )


OPTIONS: dict[str, type[base.Option]] = {
    "none": NoCache,
    "deepcache": DeepCache,
    "pyramid_attention": PyramidAttention,
}
