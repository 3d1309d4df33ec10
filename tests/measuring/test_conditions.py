"""What others took of the processors, and when a reader has to be told."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from said import cases

from fastdiff.measuring.conditions import (
    Moment,
    Room,
    Ticks,
    Watch,
    host_notices,
    host_report,
    this_moment,
    this_room,
    ticks_of,
)
from fastdiff.measuring.fields import Conditions, Host

STAT = """\
cpu  8693 10 2825 174922 417 1 49 24 7 3
cpu0 845 4 811 91556 128 1 5 8 7 3
cpu1 7847 6 2013 83366 289 0 43 16 0 0
intr 162731 0 0
ctxt 1201
"""


def test_ticks_are_read_by_processor_and_idle_ones_are_not_busy() -> None:
    assert ticks_of(STAT) == {
        0: Ticks(busy=845 + 4 + 811 + 1 + 5, stolen=8),
        1: Ticks(busy=7847 + 6 + 2013 + 0 + 43, stolen=16),
    }


def test_an_old_kernel_with_fewer_columns_and_a_text_of_something_else() -> None:
    assert ticks_of("cpu0 5 1 2 90\n") == {0: Ticks(8, 0)}
    assert ticks_of("") == {}
    assert ticks_of("cpuidle: none\n") == {}


def test_a_moment_without_proc_has_no_ticks(tmp_path: Path) -> None:
    assert this_moment(tmp_path / "stat").ticks == {}
    (tmp_path / "stat").write_text(STAT)
    assert set(this_moment(tmp_path / "stat").ticks) == {0, 1}


TWO = Room(threads=2, interop_threads=1, affinity=(0, 1), processors=2)
START = Moment(100.0, 50.0, 1.5, {0: Ticks(1000, 10), 1: Ticks(2000, 10)}, 7)


def later(
    busy: tuple[int, int], own_s: float, stolen: int = 0, seconds: float = 10.0, load: float = 2.0
) -> Moment:
    """A moment so many ticks of each processor after `START`."""
    ticks = {
        number: Ticks(START.ticks[number].busy + busy[number], 10 + stolen) for number in (0, 1)
    }
    return Moment(100.0 + seconds, 50.0 + own_s, load, ticks, 12)


def test_what_others_took_is_what_was_busy_less_this_process() -> None:
    """2 processors for 10 s: busy for 12 s, 8 of them with this run; 4 of 20 are others'."""
    found = host_report(TWO, START, later((700, 500), own_s=8.0, stolen=50))
    assert found == Host(
        threads=2,
        interop_threads=1,
        affinity=[0, 1],
        processors=2,
        load_before=1.5,
        load_after=2.0,
        watched_s=10.0,
        preempted=5,
        other_share=pytest.approx(0.2),
        steal_share=pytest.approx(0.05),
        reason=None,
    )
    json.dumps(found.to_dict(), allow_nan=False)


def test_only_the_processors_of_this_run_count() -> None:
    pinned = replace(TWO, affinity=(1,))
    found = host_report(pinned, START, later((1000, 900), own_s=9.0))
    assert found.other_share == pytest.approx(0.0)
    assert found.affinity == [1]


def test_the_kernels_tick_is_asked_for() -> None:
    slow = replace(TWO, tick_s=0.1)
    assert host_report(slow, START, later((50, 50), own_s=8.0)).other_share == pytest.approx(0.1)


def test_a_share_is_never_below_none_or_above_all() -> None:
    assert host_report(TWO, START, later((100, 100), own_s=2.5)).other_share == 0.0
    assert host_report(TWO, START, later((1100, 1100), own_s=0.0)).other_share == 1.0


@pytest.mark.parametrize(
    ("room", "before", "after", "reason"),
    [
        (
            replace(TWO, affinity=None),
            replace(START, ticks={}),
            replace(START, ticks={}, counted_s=110.0),
            "only Linux's /proc/stat tells what other programs took",
        ),
        (
            TWO,
            replace(START, ticks={}),
            later((1, 1), 0.0),
            "only Linux's /proc/stat tells what other programs took",
        ),
        (
            replace(TWO, affinity=(0, 5)),
            START,
            later((1, 1), 0.0),
            "/proc/stat doesn't name all processors that this run may use",
        ),
        (
            TWO,
            START,
            later((90, 90), 0.0, seconds=0.9),
            "0.90 s are too short to tell; a larger bench.runs makes it longer",
        ),
    ],
)
def test_what_cannot_be_known_is_null_with_the_reason(
    room: Room, before: Moment, after: Moment, reason: str
) -> None:
    found = host_report(room, before, after)
    assert (found.other_share, found.steal_share) == (None, None)
    assert found.reason == reason


def test_a_system_that_counts_no_preemption_and_no_load() -> None:
    silent = replace(START, preempted=None, load=None)
    found = host_report(TWO, silent, replace(silent, counted_s=110.0))
    assert (found.preempted, found.load_before, found.load_after) == (None, None, None)


# Notices -------------------------------------------------------------------------------------------


def host(**known: Any) -> Host:
    """Two processors on which nothing else happened."""
    return replace(host_report(TWO, START, later((1000, 1000), own_s=20.0)), **known)


@pytest.mark.parametrize("case", cases(__file__, "conditions.yaml", "host"))
def test_a_reader_is_told_of_a_busy_machine(case: dict[str, Any]) -> None:
    assert host_notices(host(**case["machine"]), "cpu") == case["said"]


def test_a_run_on_a_gpu_needs_one_processor_only() -> None:
    many = host(affinity=list(range(8)), processors=8, threads=16)
    assert host_notices(replace(many, other_share=0.85), "cuda") == []
    assert host_notices(replace(many, other_share=0.90), "cuda") == [
        "others took 90% of this run's 8 CPUs while calls were timed: times are too long; end them "
        "and run again, or compare only runs that took turns"
    ]


# The watch -----------------------------------------------------------------------------------------


def test_a_watch_looks_when_it_begins_and_when_it_ends() -> None:
    moments = iter([START, later((900, 900), own_s=6.0)])
    with Watch("cpu", lambda: next(moments), lambda: TWO) as watch:
        pass
    assert watch.conditions() == Conditions(host_report(TWO, START, later((900, 900), 6.0)))
    assert len(watch.notices()) == 1
    assert "others took 60%" in watch.notices()[0]


def test_on_cuda_the_gpu_is_asked_before_and_after() -> None:
    moments = iter([START, later((1000, 1000), own_s=20.0)])
    state = {"reason": None, "slowed_by": ["sw_power_cap"], "compute_processes": 1}
    states = iter([state | {"temperature_c": 41}, state | {"temperature_c": 63}])
    with Watch("cuda", lambda: next(moments), lambda: TWO, lambda: next(states)) as watch:
        pass
    gpu = watch.conditions().gpu
    assert (gpu.before.temperature_c, gpu.after.temperature_c) == (41, 63)
    assert watch.notices() == []


@pytest.mark.parametrize("case", cases(__file__, "conditions.yaml", "gpu"))
def test_a_reader_is_told_of_a_hot_shared_or_unknown_gpu(case: dict[str, Any]) -> None:
    usual = {
        "reason": None,
        "temperature_c": 57,
        "slowed_by": ["gpu_idle", "sw_power_cap"],
        "compute_processes": 1,
    }
    moments = iter([START, later((1000, 1000), own_s=20.0)])
    states = iter([usual | case["before"], usual | case["after"]])
    with Watch("cuda", lambda: next(moments), lambda: TWO, lambda: next(states)) as watch:
        pass
    assert watch.notices() == case["said"]
    json.dumps(watch.conditions().to_dict(), allow_nan=False)


def test_an_error_in_a_timed_call_is_not_hidden() -> None:
    moments = iter([START, START])
    with pytest.raises(ValueError, match="it"), Watch("cpu", lambda: next(moments), lambda: TWO):
        raise ValueError("it")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_on_this_machine_everything_is_known() -> None:
    with Watch("cpu") as watch:
        pass
    found = watch.conditions().host
    assert found.threads == this_room().threads >= 1
    assert found.affinity == sorted(os.sched_getaffinity(0))
    assert found.load_before >= 0
    assert found.preempted >= 0
    assert "too short to tell" in found.reason
    json.dumps(watch.conditions().to_dict(), allow_nan=False)
