"""Whole calls and single steps: by the wall clock, the device waited for, and on a GPU steps by its own events."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastdiff.config import Bench, Generation
from fastdiff.errors import InvalidOutputError, RunError
from fastdiff.latency import Latency
from fastdiff.measuring.conditions import Watch
from fastdiff.measuring.fields import Conditions, Warmup
from fastdiff.models.pictures import LastLatents, draw, what_is_wrong
from fastdiff.passes.base import Settling

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Tell = Callable[[str, int, int], None]
"""Told a phase, and how far it has come: done, of."""


@dataclass
class Timed:
    """Pictures of the first and of the last call, and the times of all calls in seconds.

    latents: what the first call's VAE decoded, in fp32 on the CPU; None where the pipeline tells none.
    latency, device_latency: the timed calls by the wall clock, and by the GPU's own events (empty off CUDA).
    conditions: what else the machine did while they were timed; notices: what a reader of the times has to know.
    """

    pictures: list[Image]
    first_call_s: float
    latents: Tensor | None = None
    last_pictures: list[Image] = field(default_factory=list)
    warmup_s: list[float] = field(default_factory=list)
    warmup: Warmup = field(default_factory=Warmup)
    latency: Latency = field(default_factory=lambda: Latency(()))
    device_latency: Latency = field(default_factory=lambda: Latency(()))
    step_latency: Latency = field(default_factory=lambda: Latency.by_call(()))
    conditions: Conditions = field(default_factory=Conditions)
    notices: list[str] = field(default_factory=list)


# Clocks --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What this machine's clocks say at one moment, in seconds.

    counted_s: by the clock that times are taken from; it only rises, and rests while the machine sleeps.
    date_s: by the one that tells the date.
    with_sleep_s: as `counted_s`, sleep included; None where the system has no such clock.
    """

    counted_s: float
    date_s: float
    with_sleep_s: float | None = None


Clock = Callable[[], Reading]


def now() -> Reading:
    """This machine's clocks, now."""
    linux = hasattr(time, "CLOCK_BOOTTIME")
    asleep_too = time.clock_gettime(time.CLOCK_BOOTTIME) if linux else None
    return Reading(time.perf_counter(), time.time(), asleep_too)


APART_S, APART = 1.0, 0.05
"""Clocks that differ by more than both, in seconds and as a share of the time: more than the date is ever corrected by."""


def seconds_between(before: Reading, after: Reading) -> float:
    """The seconds between two readings. Raises RunError if the clocks don't agree on them or didn't go forward."""
    seconds = _counted(after.counted_s - before.counted_s)
    if before.with_sleep_s is not None and after.with_sleep_s is not None:
        slept = after.with_sleep_s - before.with_sleep_s - seconds
        if _far(slept, seconds):
            raise _untrusted(f"the machine slept for {slept:.1f} s while a call was timed")
    date = after.date_s - before.date_s
    if _far(date - seconds, seconds):
        raise _untrusted(
            f"a clock jumped while a call was timed: {seconds:.1f} s by one, {date:.1f} s by the date"
        )
    return seconds


def _far(difference: float, seconds: float) -> bool:
    return not abs(difference) <= max(APART_S, APART * seconds)


def _counted(seconds: float) -> float:
    """A time that was measured. Raises RunError if it can't be one."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise _untrusted(f"a clock says that something took {seconds} s")
    return seconds


def _untrusted(what: str) -> RunError:
    return RunError(
        f"{what}\n  why: no time of this run can be trusted then, so none is reported\n"
        "  instead: run it again, and keep the machine from sleeping and its date from being set"
    )


# Calls ---------------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def first_call(
    pipeline: Any, generation: Generation, device: str, tell: Tell, clock: Clock = now
) -> Timed:
    """Call once, with everything that only the first call costs.

    Raises InvalidOutputError, and RunError for a clock that jumped.
    """
    asked = generation.steps or 0
    bad: list[str] = []
    last = LastLatents()

    def on_step(index: int, latents: Any) -> None:
        last(index, latents)
        timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", ())
        tell("first call", index + 1, max(asked, len(timesteps)))  # a solver may call twice a step
        if latents is not None and not bool(latents.isfinite().all()):
            bad.append(f"the latents are not numbers (NaN or infinite) after step {index + 1}")

    synchronize(device)
    started = clock()
    pictures = draw(pipeline, generation, on_step)
    synchronize(device)
    ended = clock()
    bad += [reason for picture in pictures if (reason := what_is_wrong(picture))]
    _refuse(bad)
    return Timed(pictures, seconds_between(started, ended), last.copied())


def _refuse(bad: list[str]) -> None:
    """Raise InvalidOutputError with the first of these reasons, if there is one."""
    if bad:
        raise InvalidOutputError(
            f"{bad[0]}\n  instead: precision=bf16 or precision=fp32 if it was fp16, which overflows on some models, or "
            "lora=none, the model's own guidance_scale and scheduler; a safety checker paints what it rejects black"
        )


def steady_calls(
    timed: Timed,
    pipeline: Any,
    generation: Generation,
    bench: Bench,
    device: str,
    tell: Tell,
    clock: Clock = now,
    watch: Watch | None = None,
    on_warm: Callable[[], None] = lambda: None,
    settling: Settling | None = None,
) -> None:
    """Warm up, then time whole calls and the steps in them; all that was found is in `timed` afterwards.

    The last call's pictures are looked at too: a graph that is replayed can go wrong where the first call did not.
    clock, watch: this machine's; tests bring their own.
    on_warm: called once between the warm-up and the first timed call.
    settling: after how many calls, the first one included, calls are alike; those are never among the timed ones.

    Raises InvalidOutputError, and RunError for a clock that jumped.
    """

    def call() -> _Call:
        return _timed_call(timed, pipeline, generation, device, clock)

    _warm_up(timed, bench, call, tell, settling or Settling(1))
    on_warm()
    calls = []
    with watch or Watch(device) as watched:
        for index in range(bench.runs):
            tell("timing", index, bench.runs)
            calls.append(call())
    timed.latency = Latency(tuple(each.seconds for each in calls))
    timed.device_latency = Latency(tuple(s for each in calls for s in each.device_s))
    timed.step_latency = Latency.by_call(each.steps_s for each in calls)
    timed.conditions = watched.conditions()
    timed.notices += watched.notices()
    _refuse([reason for picture in timed.last_pictures if (reason := what_is_wrong(picture))])


def _warm_up(
    timed: Timed, bench: Bench, call: Callable[[], _Call], tell: Tell, settling: Settling
) -> None:
    """Call as often as `bench` asks for, then on until calls don't get faster any more, with its bound."""
    done = timed.warmup_s
    least = max(bench.warmup, settling.calls - 1)
    most = max(least, bench.most_warmup)
    while len(done) < least or (
        done and len(done) < most and not is_steady(timed.first_call_s, done)
    ):
        tell("warm-up", len(done), max(least, len(done) + 1))
        done.append(call().seconds)
    if least > bench.warmup:
        timed.notices.append(
            f"calls of warm-up: {least}, though bench.warmup={bench.warmup} asks for fewer: {settling.why}"
        )
    steady = is_steady(timed.first_call_s, done)
    timed.warmup = Warmup(bench.warmup, len(done), most, steady)
    if steady is False:
        timed.notices.append(
            f"calls still got faster after {len(done)} of warm-up: times may be too long; "
            f"bench.most_warmup={2 * len(done)} lets it go on"
        )


FASTER = 0.03
"""A call that took this much less than those before it is one more sign that the pipeline isn't warm yet."""


def is_steady(first_call_s: float, warmup_s: Sequence[float]) -> bool | None:
    """Whether calls have stopped getting faster: the newest isn't over 3 % below the median of up to three before it.

    Of two before it the faster one counts, so that one slow call isn't taken for a trend. A single call has only the
    first one to be compared with: as fast within 3 %, it is steady; otherwise nobody can tell, and the answer is None, as
    for no call at all.

    Simulated 4000 times each, with calls that scatter by 1 % or 3 % (standard deviation) and one in twenty that takes 30 %
    longer: where all are equally fast, a warm-up of 2 becomes 2.1 or 2.3 calls on average, one of 3 becomes 3.0 or 3.2, and
    none came to a bound of 10. Where what is left to gain halves with every call, half of them end within 1 % of the final
    time and 19 of 20 within 13 %.
    """
    *before, newest = warmup_s or [math.nan]
    if not before:
        return True if abs(newest - first_call_s) <= FASTER * first_call_s else None
    return newest >= (1 - FASTER) * statistics.median_low(before[-3:])


@dataclass(frozen=True)
class _Call:
    """One call's seconds by the wall clock, by the device's own events (none off CUDA), and its steps' seconds."""

    seconds: float
    device_s: Sequence[float]
    steps_s: Sequence[float]


def _timed_call(
    timed: Timed, pipeline: Any, generation: Generation, device: str, clock: Clock
) -> _Call:
    steps, whole = StepClock(device, clock), StepClock(device, clock)
    synchronize(device)
    started = clock()
    whole(0, None)
    timed.last_pictures = draw(pipeline, generation, steps)
    whole(1, None)
    synchronize(device)
    seconds = seconds_between(started, clock())
    try:
        return _Call(seconds, whole.steps_s() if device == "cuda" else (), steps.steps_s())
    except (
        RuntimeError
    ) as error:  # the device's events; the call itself has its time by the wall clock
        said = f"the device's events can't be read, so its own times are missing: {error}"
        timed.notices += [said] if said not in timed.notices else []
        return _Call(seconds, (), ())


class StepClock:
    """Notes when steps end: by events on a GPU, so that nothing waits, by the wall clock elsewhere.

    The host runs ahead of a GPU: by the wall clock a step there would be the time that it takes to ask for it.
    """

    def __init__(self, device: str, clock: Clock = now) -> None:
        self._device, self._clock = device, clock
        self._marks: list[Any] = []

    def __call__(self, index: int, latents: Any) -> None:
        if self._device in ("cuda", "mps"):
            import torch

            events = torch.cuda if self._device == "cuda" else torch.mps
            event = events.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(self._clock().counted_s)

    def steps_s(self) -> list[float]:
        """Seconds from one step's end to the next's; the first step, with its set-up, is left out. To be asked once.

        On a GPU the last event must have been waited for. Raises RunError for a time that can't be one, RuntimeError for
        events that can't be read.
        """
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device in ("cuda", "mps"):
            # An event of Apple's that ends two pairs would be waited for twice, and the second time for ever.
            return [_counted(earlier.elapsed_time(later) / 1000) for earlier, later in pairs]
        return [_counted(later - earlier) for earlier, later in pairs]
