"""Where the time of a call goes: text encoders, denoiser, scheduler and VAE apart.

Parts are wrapped on the pipeline's own objects for calls that nobody else times, and everything is put back afterwards.
What runs inside a part is the part's: only the outermost call counts.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastdiff.config import Generation
from fastdiff.measuring.fields import PartTimes
from fastdiff.measuring.timing import synchronize
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.given import modules_of
from fastdiff.models.pictures import draw

TEXT_ENCODERS, DENOISER, SCHEDULER, VAE = "text_encoders", "denoiser", "scheduler", "vae"
PARTS = (TEXT_ENCODERS, DENOISER, SCHEDULER, VAE)

_LONG_CALL_S = 5.0
Look = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Given the denoiser's forward and the arguments of a call of it."""


@dataclass(frozen=True)
class Method:
    """A method of a pipeline's object, and the part that its time belongs to."""

    part: str
    owner: Any
    name: str


def methods_of(pipeline: Any) -> list[Method]:
    """What a pipeline calls in each part. Text encoders are known by their names, as diffusers gives them."""
    modules = modules_of(pipeline)
    denoiser, vae = denoiser_name(pipeline), _facts(pipeline).vae
    found = [Method(TEXT_ENCODERS, m, "forward") for n, m in modules.items() if "text_encoder" in n]
    if denoiser:
        found.append(Method(DENOISER, modules[denoiser], "forward"))
    scheduler = getattr(pipeline, "scheduler", None)
    steps = ("set_timesteps", "scale_model_input", "step")
    found += [Method(SCHEDULER, scheduler, name) for name in steps if hasattr(scheduler, name)]
    if vae:
        own = modules[vae.name]
        found += [Method(VAE, own, name) for name in ("encode", "decode") if hasattr(own, name)]
    return found


def denoiser_name(pipeline: Any) -> str | None:
    """Name of the component that runs once a step; None where it can't be told."""
    found = _facts(pipeline).denoiser
    return found.name if found else None


def _facts(pipeline: Any) -> ModelFacts:
    """The pipeline as planning would see it, by the components that it has now."""
    parts = {
        name: Component(name, "", type(module).__name__, None, None)
        for name, module in modules_of(pipeline).items()
    }
    return ModelFacts(type(pipeline).__name__, parts)


@contextmanager
def around_parts(
    pipeline: Any, enter: Callable[[str], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Within it, each outermost call of a part runs inside `enter(part)`."""
    inside: list[str] = []

    def wrapped(part: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)  # pipelines look at signatures
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return inner(*args, **kwargs)
            inside.append(part)
            try:
                with enter(part):
                    return inner(*args, **kwargs)
            finally:
                inside.pop()

        return call

    with ExitStack() as stack:
        for method in methods_of(pipeline):
            inner = getattr(method.owner, method.name)
            stack.enter_context(replaced(method.owner, method.name, wrapped(method.part, inner)))
        yield


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within it, the object has another method; afterwards its own, its class's one if it had none itself."""
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if had:
            own[name] = before
        else:
            del own[name]


@dataclass
class Stopwatch:
    """Times of parts in one call: by events on CUDA, so that nothing waits, by the wall clock elsewhere.

    On mps the device is waited for at each mark: two of Apple's events with nothing between them can't be told apart.
    """

    device: str
    marks: list[tuple[str, Any, Any]] = field(default_factory=list)

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        started = self._now()
        yield
        self.marks.append((part, started, self._now()))

    def _now(self) -> Any:
        if self.device != "cuda":
            synchronize(self.device)
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> list[tuple[str, float]]:
        """Part and seconds of every call of one, in their order; on CUDA once the device has been waited for."""
        if self.device == "cuda":
            return [(part, start.elapsed_time(end) / 1000) for part, start, end in self.marks]
        return [(part, end - start) for part, start, end in self.marks]


def calls_for(call_s: float, runs: int) -> int:
    """How many calls to look at: as many as were timed but three at most, or one where a call is long."""
    return 1 if call_s > _LONG_CALL_S else min(3, runs)


def time_parts(pipeline: Any, generation: Generation, device: str, calls: int) -> PartTimes:
    """Seconds of one call in each part, of the call whose whole is the median.

    calls: how many to look at, at least 1. On CUDA parts are the device's time, from events; `whole` is the wall clock's
    everywhere.
    """
    found = []
    for _ in range(calls):
        watch = Stopwatch(device)
        synchronize(device)
        started = time.perf_counter()
        with around_parts(pipeline, watch.running):
            draw(pipeline, generation)
        synchronize(device)
        found.append((time.perf_counter() - started, watch.seconds()))
    whole, marks = sorted(found, key=lambda call: call[0])[(calls - 1) // 2]
    parts = {name: sum((s for part, s in marks if part == name), 0.0) for name in PARTS}
    return PartTimes(
        **parts,
        other=max(0.0, whole - sum(parts.values())),  # two clocks differ by microseconds
        whole=whole,
        denoiser_calls=sum(part == DENOISER for part, _ in marks),
        calls=calls,
        reason=None,
    )


def at_first_denoiser_call(pipeline: Any, denoiser: str, generation: Generation, look: Look) -> Any:
    """What `look` makes of the denoiser's first call; the pipeline's call is left there. None if there is no such call.

    Shapes are those of every call of this generation.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise _Enough(look(inner, args, kwargs))

    part = getattr(pipeline, denoiser)
    inner = part.forward
    try:
        with replaced(part, "forward", forward):
            draw(pipeline, generation)
    except _Enough as enough:
        return enough.found
    finally:
        # What a whole call does at its end: offload, empty step caches.
        pipeline.maybe_free_model_hooks()
    return None


class _Enough(Exception):
    """Leaves a pipeline's call once its denoiser was looked at."""

    def __init__(self, found: Any) -> None:
        super().__init__("seen")
        self.found = found
