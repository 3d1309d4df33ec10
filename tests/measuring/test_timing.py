"""Which calls are timed, and what a step is."""

from __future__ import annotations

import dataclasses
import math
import time
from itertools import pairwise
from typing import Any

import pytest
from conftest import silent
from PIL import Image

from fastdiff.config import Bench, Generation
from fastdiff.errors import RunError
from fastdiff.measuring.conditions import Moment, Room, Watch
from fastdiff.measuring.fields import Warmup
from fastdiff.measuring.timing import (
    Reading,
    StepClock,
    Timed,
    first_call,
    is_steady,
    now,
    seconds_between,
    steady_calls,
)
from fastdiff.passes.base import Settling


def picture() -> Image.Image:
    found = Image.new("RGB", (16, 16), "white")
    found.putpixel((0, 0), (1, 2, 3))
    return found


class Clock:
    """Clocks that go on only when they are told to, all at once."""

    def __init__(self) -> None:
        self.reading = Reading(100.0, 1_000_000.0, 200.0)

    def __call__(self) -> Reading:
        return self.reading

    def pass_s(self, counted: float, date: float | None = None, asleep: float = 0.0) -> None:
        """Let time pass; the date may see another time, and the machine may sleep on top."""
        self.reading = Reading(
            self.reading.counted_s + counted,
            self.reading.date_s + asleep + (counted if date is None else date),
            (self.reading.with_sleep_s or 0.0) + counted + asleep,
        )


class Fake:
    """A pipeline whose n-th call takes `set_up_s[n]` before its first step and `step_s` for every step.

    Without `set_up_s` it takes `1 + n`. In the call `sleeps_in` the machine sleeps for a minute.
    """

    sleeps_in: int | None = None

    def __init__(self, clock: Clock, set_up_s: tuple[float, ...] = (), step_s: float = 0.25):
        self.clock, self.set_up_s, self.step_s, self.calls = clock, set_up_s, step_s, 0

    def __call__(
        self,
        prompt: Any,
        num_inference_steps: int = 4,
        generator: Any = None,
        callback_on_step_end: Any = None,
    ) -> Any:
        set_up_s = self.set_up_s[self.calls] if self.set_up_s else 1.0 + self.calls
        self.clock.pass_s(set_up_s, asleep=60.0 if self.calls == self.sleeps_in else 0.0)
        self.calls += 1
        for index in range(num_inference_steps):
            self.clock.pass_s(self.step_s)
            callback_on_step_end(self, index, 0, {})
        return type("Output", (), {"images": [picture()]})


def quiet(clock: Clock) -> Watch:
    """A watch on a machine where nobody else does anything."""
    return Watch("cpu", lambda: Moment(clock().counted_s, 0.0, None), lambda: Room(2, 1, (0, 1), 2))


def steady(
    pipeline: Fake,
    bench: Bench,
    timed: Timed | None = None,
    device: str = "cpu",
    tell: Any = silent,
    steps: int = 4,
    **more: Any,
) -> Timed:
    """What is found of a fake pipeline on a quiet machine; its first call is `timed`'s."""
    timed, clock = timed or Timed([], 0.0), pipeline.clock
    a = Generation("a", steps=steps)
    steady_calls(timed, pipeline, a, bench, device, tell, clock, quiet(clock), **more)
    return timed


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_call_is_timed_with_all_that_it_costs_and_told_step_by_step(
    clock: Clock,
) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline = Fake(clock)
    timed = first_call(
        pipeline, Generation("a", steps=4), "cpu", lambda *event: told.append(event), clock
    )
    assert pipeline.calls == 1
    assert timed.first_call_s == 1 + 4 * 0.25
    assert len(timed.pictures) == 1
    assert told == [("first call", done, 4) for done in (1, 2, 3, 4)]
    assert (timed.latency.samples_s, timed.warmup_s) == ((), [])
    assert timed.warmup == Warmup()


def test_warm_up_calls_are_made_and_kept_apart_from_the_timed_ones(clock: Clock) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline = Fake(clock)
    timed = steady(pipeline, Bench(warmup=2, runs=3), tell=lambda *event: told.append(event))
    assert pipeline.calls == 5
    assert timed.warmup_s == [2.0, 3.0]  # 1 and 2 s of set-up, 4 steps of 0.25 s
    assert timed.warmup == Warmup(asked=2, calls=2, most=10, steady=True)
    assert timed.latency.samples_s == (4.0, 5.0, 6.0)
    assert timed.latency.median_s == 5.0
    assert timed.notices == []
    assert told == [
        ("warm-up", 0, 2),
        ("warm-up", 1, 2),
        ("timing", 0, 3),
        ("timing", 1, 3),
        ("timing", 2, 3),
    ]


@pytest.mark.parametrize(("steps", "runs"), [(4, 3), (1, 1)])
def test_a_step_is_from_one_end_to_the_next_so_set_up_is_in_none(
    steps: int, runs: int, clock: Clock
) -> None:
    timed = steady(Fake(clock), Bench(0, runs), steps=steps)
    assert timed.step_latency.samples_s == (0.25,) * (steps - 1) * runs
    assert timed.step_latency.calls == (steps - 1,) * runs
    assert len(timed.latency.samples_s) == runs
    assert (timed.warmup_s, timed.device_latency.samples_s) == ([], ())
    assert StepClock("cpu").steps_s() == []  # of one that heard nothing


def test_what_the_machine_did_is_watched_around_the_timed_calls_only(clock: Clock) -> None:
    timed = steady(Fake(clock, (9.0, 1.0, 1.0)), Bench(warmup=1, runs=2, most_warmup=1))
    assert timed.conditions.host is not None
    assert timed.conditions.host.watched_s == 2 * (1.0 + 4 * 0.25)
    assert timed.conditions.gpu is None


@pytest.mark.parametrize("warmup", [0, 2])
def test_who_asks_is_told_when_the_warm_up_is_over(warmup: int, clock: Clock) -> None:
    pipeline, made = Fake(clock), []
    bench = Bench(warmup=warmup, runs=3, most_warmup=warmup)
    steady(pipeline, bench, on_warm=lambda: made.append(pipeline.calls))
    assert made == [warmup]


# Warm-up -------------------------------------------------------------------------------------------


def test_the_warm_up_goes_on_while_calls_get_faster(clock: Clock) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline = Fake(clock, (9.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0))
    timed = steady(
        pipeline, Bench(warmup=1, runs=1), Timed([], 50.0), tell=lambda *event: told.append(event)
    )
    assert timed.warmup_s == [10.0, 5.0, 3.0, 2.0, 2.0, 2.0]
    assert timed.warmup == Warmup(asked=1, calls=6, most=10, steady=True)
    assert timed.latency.samples_s == (2.0,)
    assert timed.notices == []
    assert told == [*(("warm-up", done, done + 1) for done in range(6)), ("timing", 0, 1)]


@pytest.mark.parametrize(
    ("set_up_s", "first_s", "bench", "made", "is_steady"),
    [
        ((9.0, 7.0, 5.0, 3.0), 50.0, Bench(1, 1, most_warmup=3), 3, False),  # ends at its bound
        ((), 0.0, Bench(0, 1), 0, None),  # none asked for is none, whatever its bound
        ((1.0, 1.0), 2.02, Bench(1, 1), 1, True),  # as fast as the first one
        ((1.0, 1.0), 50.0, Bench(1, 1, most_warmup=1), 1, None),  # where no second is allowed
    ],
)
def test_a_warm_up_says_how_it_went(
    set_up_s: tuple[float, ...],
    first_s: float,
    bench: Bench,
    made: int,
    is_steady: bool | None,
    clock: Clock,
) -> None:
    timed = steady(Fake(clock, set_up_s), bench, Timed([], first_s))
    assert timed.warmup == Warmup(bench.warmup, made, bench.most_warmup, is_steady)
    assert timed.warmup_s == [1.0 + s for s in set_up_s[:made]]
    slower = "calls still got faster after 3 of warm-up: times may be too long; bench.most_warmup=6 lets it go on"
    assert timed.notices == ([slower] if is_steady is False else [])


@pytest.mark.parametrize(
    ("first", "calls", "expected"),
    [
        (1.0, [], None),
        (1.0, [1.0], True),
        (1.03, [1.0], True),
        (1.1, [1.0], None),  # the first call costs what no other does
        (1.0, [9.0], None),  # compiled again in the second call
        (9.0, [1.0, 1.0], True),
        (9.0, [1.0, 0.98], True),
        (9.0, [1.0, 0.96], False),
        (9.0, [1.0, 1.5], True),  # slower isn't faster
        (9.0, [5.0, 1.0, 1.0], True),  # the slow one is no trend
        (9.0, [1.0, 1.3, 1.0], True),
        (9.0, [1.0, 0.98, 0.96, 0.94], False),  # a slow trend shows over three
        (9.0, [5.0, 3.0, 2.0, 1.0, 1.0, 1.0], True),
    ],
)
def test_calls_are_steady_once_the_newest_is_no_faster_than_those_before_it(
    first: float, calls: list[float], expected: bool | None
) -> None:
    assert is_steady(first, calls) is expected


# Clocks --------------------------------------------------------------------------------------------

NO_TRUST = (
    "\n  why: no time of this run can be trusted then, so none is reported"
    "\n  instead: run it again, and keep the machine from sleeping and its date from being set"
)


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        ({"counted": 0.4, "date": 3600.4}, "jumped: 0.4 s by one, 3600.4 s by the date"),
        ({"counted": 100.0, "date": 90.0}, "jumped: 100.0 s by one, 90.0 s by the date"),
        ({"counted": 2.0, "date": -50.0}, "jumped: 2.0 s by one, -50.0 s by the date"),
        ({"counted": 2.0, "asleep": 12.0}, "the machine slept for 12.0 s while a call was timed"),
        ({"counted": 0.0}, "a clock says that something took 0.0 s"),
        ({"counted": -3.0}, "a clock says that something took -3.0 s"),
        ({"counted": math.nan}, "a clock says that something took nan s"),
        ({"counted": math.inf}, "a clock says that something took inf s"),
    ],
)
def test_a_clock_that_jumps_ends_the_run(passed: dict[str, float], said: str, clock: Clock) -> None:
    before = clock()
    clock.pass_s(**passed)
    with pytest.raises(RunError) as raised:
        seconds_between(before, clock())
    said = said.replace("jumped:", "a clock jumped while a call was timed:")
    assert str(raised.value) == said + NO_TRUST


@pytest.mark.parametrize(
    ("counted", "date"), [(0.4, 1.3), (0.4, -0.5), (100.0, 104.9), (100.0, 95.1), (0.1, 0.1)]
)
def test_a_date_that_is_corrected_a_little_does_not(
    counted: float, date: float, clock: Clock
) -> None:
    before = clock()
    clock.pass_s(counted, date)
    assert seconds_between(before, clock()) == pytest.approx(counted)


def test_a_system_without_a_clock_of_its_sleep_has_the_others() -> None:
    before, after = Reading(1.0, 10.0), Reading(3.0, 12.0)
    assert seconds_between(before, after) == 2.0
    with pytest.raises(RunError, match="a clock jumped"):
        seconds_between(before, dataclasses.replace(after, date_s=60.0))


@pytest.mark.parametrize("in_call", [0, 1, 2])
def test_a_sleep_in_any_call_leaves_no_times(in_call: int, clock: Clock) -> None:
    pipeline = Fake(clock)
    pipeline.sleeps_in = 0
    with pytest.raises(RunError, match=r"slept for 60\.0 s"):
        first_call(pipeline, Generation("a", steps=4), "cpu", silent, clock)
    pipeline, timed = Fake(clock), Timed([], 2.0)
    pipeline.sleeps_in = in_call
    with pytest.raises(RunError) as raised:
        steady(pipeline, Bench(warmup=1, runs=2, most_warmup=1), timed)
    assert str(raised.value) == "the machine slept for 60.0 s while a call was timed" + NO_TRUST
    assert pipeline.calls == in_call + 1
    assert timed.latency.samples_s == ()


def test_this_machines_clocks_go_forward() -> None:
    before = now()
    assert now().counted_s >= before.counted_s
    assert before.with_sleep_s is None or before.with_sleep_s > 0


# A GPU's events ------------------------------------------------------------------------------------


@pytest.fixture
def fake_cuda(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda with events on the test's clock, 10 % fast; what was done with it, in order."""
    import torch

    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")
            self.at = clock().counted_s

        def elapsed_time(self, later: Any) -> float:
            assert done[-1] == "synchronize"
            return (later.at - self.at) * 900

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("synchronize"))
    return done


def test_on_cuda_whole_calls_and_steps_are_timed_by_events_too(
    fake_cuda: list[str], clock: Clock
) -> None:
    timed = steady(Fake(clock), Bench(0, 2), device="cuda")
    assert timed.latency.samples_s == (2.0, 3.0)
    assert timed.device_latency.samples_s == pytest.approx((1.8, 2.7))
    assert timed.step_latency.samples_s == pytest.approx((0.225,) * 6)
    assert fake_cuda == ["synchronize", *["event"] * 6, "synchronize"] * 2


def test_an_event_that_goes_backwards_ends_the_run(fake_cuda: list[str], clock: Clock) -> None:
    pipeline = Fake(clock, (5.0,), step_s=-1.0)
    with pytest.raises(RunError) as raised:
        steady(pipeline, Bench(0, 1), device="cuda")
    assert str(raised.value) == "a clock says that something took -0.9 s" + NO_TRUST


# On a GPU ------------------------------------------------------------------------------------------


class Metal:
    """Apple's GPU, which works behind the host: its events hold its own time, and waiting brings the host up to it.

    As in aten/src/ATen/mps/MPSEvent.mm, an event can end one pair alone.
    """

    def __init__(self, clock: Clock, step_s: float) -> None:
        self.clock, self.step_s, self.device_s = clock, step_s, 0.0
        self.ended: set[int] = set()

    def queue(self) -> None:
        self.device_s += self.step_s

    def synchronize(self) -> None:
        behind = self.device_s - self.clock().counted_s + 100.0
        if behind > 0:
            self.clock.pass_s(behind)

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        metal = self

        class Event:
            def record(self) -> None:
                self.at_s = metal.device_s

            def elapsed_time(self, end: Any) -> float:
                assert id(end) not in metal.ended, "this would wait for ever"
                metal.ended.add(id(end))
                if end.at_s <= self.at_s:
                    raise RuntimeError("End event 2 was not recorded after start event 1")
                return (end.at_s - self.at_s) * 1000

        return Event()


class OnMetal(Fake):
    """Its host takes no time for a step, its GPU does."""

    metal: Metal

    def __call__(
        self,
        prompt: Any,
        num_inference_steps: int = 4,
        generator: Any = None,
        callback_on_step_end: Any = None,
    ) -> Any:
        def queued(*step: Any) -> None:
            self.metal.queue()
            callback_on_step_end(*step)

        return super().__call__(prompt, num_inference_steps, generator, queued)


def on_metal(clock: Clock, monkeypatch: pytest.MonkeyPatch, step_s: float) -> OnMetal:
    import torch

    metal = Metal(clock, step_s)
    monkeypatch.setattr(torch.mps, "Event", metal.event)
    monkeypatch.setattr(torch.mps, "synchronize", metal.synchronize)
    pipeline = OnMetal(clock, (0.0,) * 9, step_s=0.001)
    pipeline.metal = metal
    return pipeline


def test_on_mps_a_step_takes_what_the_gpu_takes_and_not_what_asking_for_it_does(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = steady(on_metal(clock, monkeypatch, 2.0), Bench(0, 3, 0), device="mps")
    assert timed.step_latency.samples_s == pytest.approx((2.0,) * 9)
    assert timed.latency.samples_s == pytest.approx((8.0,) * 3)
    assert timed.device_latency.samples_s == ()  # CUDA's alone
    assert timed.notices == []


def test_events_that_can_not_be_read_cost_a_call_nothing_but_its_steps(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = on_metal(clock, monkeypatch, 0.0)
    pipeline.step_s = 0.25
    timed = steady(pipeline, Bench(0, 3, 0), device="mps")
    assert timed.step_latency.samples_s == ()
    assert timed.latency.samples_s == pytest.approx((1.0,) * 3)
    assert timed.notices == [
        "the device's events can't be read, so its own times are missing: End event 2 was not recorded after "
        "start event 1"
    ]


# Calls that are not like the others -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("bench", "warmup_s", "asked"),
    [
        (Bench(warmup=0, runs=1, most_warmup=0), [9.0], True),
        (Bench(warmup=1, runs=1, most_warmup=1), [9.0], False),
        (Bench(warmup=3, runs=1, most_warmup=0), [9.0, 2.0, 2.0], False),
    ],
)
def test_a_call_that_only_records_is_never_timed(
    bench: Bench, warmup_s: list[float], asked: bool, clock: Clock
) -> None:
    """The first call has been made; the second takes 9 s, the others 2 s."""
    pipeline, timed = Fake(clock, (8.0, *(1.0,) * 9)), Timed([], 5.0)
    steady(pipeline, bench, timed, settling=Settling(2, "graphs are recorded in the second call"))
    assert timed.warmup_s == warmup_s
    assert timed.latency.samples_s == (2.0,)
    assert timed.warmup.asked == bench.warmup
    said = [
        "calls of warm-up: 1, though bench.warmup=0 asks for fewer: graphs are recorded in the second call"
    ]
    assert timed.notices == (said if asked else [])


@pytest.mark.gpu
def test_on_a_gpu_steps_are_timed_by_events_and_agree_with_the_wall_clock() -> None:
    import torch

    clock, x = StepClock("cuda"), torch.randn(4096, 4096, device="cuda")
    marks = []
    for index in range(4):
        for _ in range(20):
            x = (x @ x).tanh()
        clock(index, None)
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
    steps = clock.steps_s()
    walls = [later - earlier for earlier, later in pairwise(marks)]
    assert steps == pytest.approx(walls, rel=0.5)
