"""Whole calls and single steps, by the wall clock, the device waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastdiff.bench.pictures import draw, what_is_wrong
from fastdiff.config import Bench, Generation
from fastdiff.errors import InvalidOutputError
from fastdiff.result import Latency

if TYPE_CHECKING:
    from PIL.Image import Image

Tell = Callable[[str, int, int], None]
"""Told a phase, and how far it has come: done, of."""


@dataclass
class Timed:
    """Pictures of the first and of the last call, and the times of all calls in seconds."""

    pictures: list[Image]
    first_call_s: float
    last_pictures: list[Image] = field(default_factory=list)
    warmup_s: list[float] = field(default_factory=list)
    latency: Latency = field(default_factory=lambda: Latency(()))
    step_latency: Latency = field(default_factory=lambda: Latency(()))


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def first_call(pipeline: Any, generation: Generation, device: str, tell: Tell) -> Timed:
    """Call once, with everything that only the first call costs. Raises InvalidOutputError."""
    total = generation.steps or 0
    bad: list[str] = []

    def on_step(index: int, latents: Any) -> None:
        tell("first call", index + 1, total)
        if latents is not None and not bool(latents.isfinite().all()):
            bad.append(f"the latents are not numbers (NaN or infinite) after step {index + 1}")

    synchronize(device)
    started = time.perf_counter()
    pictures = draw(pipeline, generation, on_step)
    synchronize(device)
    seconds = time.perf_counter() - started
    bad += [reason for picture in pictures if (reason := what_is_wrong(picture))]
    _refuse(bad)
    return Timed(pictures, seconds)


def _refuse(bad: list[str]) -> None:
    """Raise InvalidOutputError with the first of these reasons, if there is one."""
    if bad:
        raise InvalidOutputError(
            f"{bad[0]}\n  instead: precision=bf16 or precision=fp32; fp16 overflows on some models, "
            "and a safety checker paints what it rejects black"
        )


def steady_calls(
    timed: Timed, pipeline: Any, generation: Generation, bench: Bench, device: str, tell: Tell
) -> None:
    """Warm up, then time whole calls and the steps in them. Raises InvalidOutputError.

    The last call's pictures are looked at too: a graph that is replayed can go wrong where the first call did not.
    """
    for index in range(bench.warmup):
        tell("warm-up", index, bench.warmup)
        timed.warmup_s.append(_timed_call(timed, pipeline, generation, StepClock(device)))
    calls, steps = [], []
    for index in range(bench.runs):
        tell("timing", index, bench.runs)
        clock = StepClock(device)
        calls.append(_timed_call(timed, pipeline, generation, clock))
        steps += clock.steps_s()
    timed.latency, timed.step_latency = Latency(tuple(calls)), Latency(tuple(steps))
    _refuse([reason for picture in timed.last_pictures if (reason := what_is_wrong(picture))])


def _timed_call(timed: Timed, pipeline: Any, generation: Generation, clock: StepClock) -> float:
    synchronize(clock.device)
    started = time.perf_counter()
    timed.last_pictures = draw(pipeline, generation, clock)
    synchronize(clock.device)
    return time.perf_counter() - started


class StepClock:
    """Notes when steps end: by events on a GPU, so that nothing waits, by the wall clock elsewhere."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._cuda = device == "cuda"
        self._marks: list[Any] = []

    def __call__(self, index: int, latents: Any) -> None:
        if self._cuda:
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def steps_s(self) -> list[float]:
        """Seconds from one step's end to the next's; the first step, with its set-up, is left out."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._cuda:
            return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]
        return [later - earlier for earlier, later in pairs]
