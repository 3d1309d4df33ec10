"""Which calls are timed, and what a step is."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from PIL import Image

from fastdiff.bench.timing import StepClock, Timed, first_call, steady_calls
from fastdiff.config import Bench, Generation
from fastdiff.result import Latency


def picture() -> Image.Image:
    found = Image.new("RGB", (16, 16), "white")
    found.putpixel((0, 0), (1, 2, 3))
    return found


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A pipeline whose n-th call takes `1 + n` seconds before its first step and `step_s` for every step."""

    def __init__(self, clock: Clock, step_s: float = 0.25) -> None:
        self.clock, self.step_s, self.calls = clock, step_s, 0

    def __call__(
        self,
        prompt: Any,
        num_inference_steps: int = 4,
        generator: Any = None,
        callback_on_step_end: Any = None,
    ) -> Any:
        self.clock.now += 1 + self.calls
        self.calls += 1
        for index in range(num_inference_steps):
            self.clock.now += self.step_s
            callback_on_step_end(self, index, 0, {})
        return type("Output", (), {"images": [picture()]})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_the_first_call_is_timed_with_all_that_it_costs_and_told_step_by_step(
    clock: Clock,
) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline = Fake(clock)
    timed = first_call(pipeline, Generation("a", steps=4), "cpu", lambda *event: told.append(event))
    assert pipeline.calls == 1
    assert timed.first_call_s == 1 + 4 * 0.25
    assert len(timed.pictures) == 1
    assert told == [("first call", done, 4) for done in (1, 2, 3, 4)]
    assert (timed.latency.samples_s, timed.warmup_s) == ((), [])


def test_warm_up_calls_are_made_and_kept_apart_from_the_timed_ones(clock: Clock) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline, timed = Fake(clock), Timed([], 0.0)
    steady_calls(
        timed,
        pipeline,
        Generation("a", steps=4),
        Bench(warmup=2, runs=3),
        "cpu",
        lambda *event: told.append(event),
    )
    assert pipeline.calls == 5
    assert timed.warmup_s == [2.0, 3.0]  # 1 and 2 s of set-up, 4 steps of 0.25 s
    assert timed.latency.samples_s == (4.0, 5.0, 6.0)
    assert timed.latency.median_s == 5.0
    assert told == [
        ("warm-up", 0, 2),
        ("warm-up", 1, 2),
        ("timing", 0, 3),
        ("timing", 1, 3),
        ("timing", 2, 3),
    ]


def test_a_step_is_from_one_end_to_the_next_so_set_up_is_in_none(clock: Clock) -> None:
    timed = Timed([], 0.0)
    steady_calls(
        timed, Fake(clock), Generation("a", steps=4), Bench(0, 3), "cpu", lambda *event: None
    )
    assert timed.step_latency.samples_s == (0.25,) * (3 * 3)
    assert timed.warmup_s == []


def test_a_run_of_one_step_has_no_step_times(clock: Clock) -> None:
    timed = Timed([], 0.0)
    steady_calls(
        timed, Fake(clock), Generation("a", steps=1), Bench(0, 1), "cpu", lambda *event: None
    )
    assert timed.step_latency.samples_s == ()
    assert timed.step_latency.to_dict()["median"] is None
    assert len(timed.latency.samples_s) == 1


def test_a_step_clock_that_heard_nothing_has_no_steps() -> None:
    assert StepClock("cpu").steps_s() == []


def test_statistics_by_hand() -> None:
    latency = Latency((5.0, 1.0, 2.0, 4.0, 3.0))
    told = latency.to_dict()
    assert told["samples"] == [5.0, 1.0, 2.0, 4.0, 3.0]
    assert (told["median"], told["p10"], told["p90"]) == (3.0, 1.4, 4.6)
    low, high = told["ci95"]
    assert 1.0 <= low <= 3.0 <= high <= 5.0
    assert Latency((1.0, 2.0)).to_dict()["ci95"] is None


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
