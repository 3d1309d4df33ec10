"""What else the machine did while turns were taken, with injected counters: players' own work is no one else's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_players import ready_of

from fastdiff.measuring.conditions import Moment, Ticks
from fastdiff.runs.compare import conditions
from fastdiff.runs.compare.conditions import Watch, notices, processor_s, waited_children_s


def watched(
    busy_s: float, players_s: float, ready: Sequence[dict[str, Any]], seconds: float = 10.0
) -> dict[str, Any] | None:
    """Conditions after so many seconds on one CPU, which was busy for `busy_s`, `players_s` of it with players."""
    moments = [
        Moment(0.0, 1.0, 0.5, {0: Ticks(0, 0)}, 3),
        Moment(seconds, 1.0, 1.5, {0: Ticks(round(busy_s * 100), 0)}, 9),
    ]
    spent = [2.0, 2.0 + players_s]
    watch = Watch(lambda: ready, lambda: spent.pop(0), lambda: moments.pop(0))
    with watch:
        pass
    return watch.to_dict()


@pytest.fixture(autouse=True)
def _no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "waited_children_s", lambda: 0.0)


def test_what_players_computed_is_not_taken_by_others() -> None:
    found = watched(busy_s=9.0, players_s=8.5, ready=[ready_of()])
    assert found is not None
    assert found["host"]["other_share"] == pytest.approx(0.05)
    assert (found["host"]["load_before"], found["host"]["load_after"]) == (0.5, 1.5)
    assert found["host"]["preempted"] is None
    assert found["gpu"] is None
    assert notices(found, "cpu", 3) == []


def test_a_busy_machine_widens_intervals_and_leaves_ratios() -> None:
    found = watched(busy_s=9.0, players_s=5.0, ready=[ready_of()])
    assert found is not None
    assert notices(found, "cpu", 3) == [
        "others took 40% of the players' one CPU while turns were taken: the ratios still hold, "
        "with wider intervals, and the seconds are too long"
    ]


def test_what_passes_between_stretches_of_turns_is_left_out() -> None:
    """Two stretches of 10 s on one CPU, 8 s and 10 s busy, all but 1 s of it with players; 50 s lie between."""
    moments = [
        Moment(0.0, 0.0, 0.1, {0: Ticks(0, 0)}),
        Moment(10.0, 0.0, 0.2, {0: Ticks(800, 100)}),
        Moment(60.0, 0.0, 0.3, {0: Ticks(5000, 4000)}),
        Moment(70.0, 0.0, 0.4, {0: Ticks(6000, 4100)}),
    ]
    spent = [0.0, 8.0, 100.0, 109.0]
    watch = Watch(lambda: [ready_of()], lambda: spent.pop(0), lambda: moments.pop(0))
    for _ in range(2):
        with watch:
            pass
    found = watch.to_dict()
    assert found is not None
    assert found["host"]["watched_s"] == pytest.approx(20.0)
    assert found["host"]["other_share"] == pytest.approx(1 / 20)
    assert found["host"]["steal_share"] == pytest.approx(2 / 20)
    assert (found["host"]["load_before"], found["host"]["load_after"]) == (0.1, 0.4)


def test_nothing_is_known_before_any_turn() -> None:
    assert Watch(lambda: [ready_of()], lambda: 0.0).to_dict() is None


def test_what_is_too_short_to_tell_asks_for_more_pairs() -> None:
    found = watched(busy_s=0.1, players_s=0.1, ready=[ready_of()], seconds=0.5)
    assert found is not None
    assert found["host"]["other_share"] is None
    assert found["host"]["reason"] == (
        "0.50 s are too short to tell; a larger compare.pairs makes it longer"
    )


def test_threads_that_crowd_are_told() -> None:
    ready = ready_of()
    ready["room"]["threads"] = 4
    found = watched(busy_s=9.0, players_s=9.0, ready=[ready])
    assert found is not None
    assert notices(found, "cpu", 3) == [
        "4 threads share one CPU: times are too long; OMP_NUM_THREADS=1"
    ]


def test_nothing_is_known_before_a_player_was_ready() -> None:
    assert watched(1.0, 1.0, ready=[]) is None


def test_a_gpu_that_can_not_be_asked_is_told_with_its_reason() -> None:
    found = watched(9.0, 9.0, ready=[ready_of(gpu_names=["GPU-1"])])
    assert found is not None
    assert found["gpu"]["after"]["reason"].startswith("NVML")
    assert notices(found, "cuda", 3)[0].startswith("the GPU's clocks and temperature are unknown")


def test_the_players_themselves_are_no_strangers_on_a_gpu() -> None:
    found = watched(9.0, 9.0, ready=[ready_of()])
    assert found is not None
    state = {"reason": None, "slowed_by": [], "temperature_c": 40, "compute_processes": 3}
    found["gpu"] = {"before": None, "after": state}
    assert notices(found, "cuda", 3) == []
    state["compute_processes"] = 4
    assert notices(found, "cuda", 3)[0].startswith("2 processes hold this GPU")


def test_a_process_is_asked_for_its_own_and_its_waited_childrens_seconds(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = "S 1 7 7 0 -1 4194304 100 0 0 0 150 50 20 30 20 0 4 0 9"
    (tmp_path / "7" / "stat").write_text(f"7 (a (b) c) {fields}\n")
    assert processor_s(7, tmp_path) == pytest.approx(250 / os.sysconf("SC_CLK_TCK"))
    assert processor_s(8, tmp_path) == 0.0


def test_children_that_ended_are_counted() -> None:
    assert waited_children_s() >= 0.0
