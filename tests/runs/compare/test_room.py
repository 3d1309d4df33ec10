"""How many players fit, by numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_players import plan_of

from fastdiff.machine.environment import Gpu
from fastdiff.runs.compare.seats import SPARE, Seats, estimated_bytes, from_peak, room_bytes, seats

GB = 10**9


@pytest.mark.parametrize(
    ("a", "b", "room", "expected"),
    [
        (4 * GB, 4 * GB, 12 * GB, Seats.TOGETHER),
        (4 * GB, 4 * GB, 11 * GB, Seats.IN_TURN),
        (4 * GB, 1 * GB, 8 * GB, Seats.IN_TURN),  # two of A are needed for the noise floor
        (1 * GB, 4 * GB, 6 * GB, Seats.TOGETHER),
        (None, 4 * GB, 4 * GB, Seats.TOGETHER),  # what isn't known is tried
        (4 * GB, 4 * GB, None, Seats.TOGETHER),
    ],
)
def test_three_or_one_at_a_time(
    a: int | None, b: int | None, room: int | None, expected: Seats
) -> None:
    assert seats(a, b, room) is expected


def test_a_run_is_judged_by_its_weights_in_its_precision() -> None:
    plain, half = plan_of([]), plan_of(["precision=bf16"])
    facts = plain.setting.facts
    assert facts is not None
    assert facts.parameters is not None
    assert estimated_bytes(plain) == round(facts.parameters * 4 * 1.2)
    assert estimated_bytes(half) == round(facts.parameters * 2 * 1.2)
    assert estimated_bytes(replace(plain, setting=replace(plain.setting, facts=None))) is None


def test_the_room_is_the_devices_own_with_some_to_spare() -> None:
    plan = plan_of([])
    gpu = Gpu("a GPU", (9, 0), 80 * GB)
    here = replace(plan.setting.environment, available_memory_bytes=10 * GB, gpus=(gpu,))
    on_cpu = replace(plan, setting=replace(plan.setting, environment=here))
    on_cuda = replace(on_cpu, setting=replace(on_cpu.setting, device="cuda"))
    unknown = replace(here, available_memory_bytes=None)
    assert room_bytes(on_cpu) == round(10 * GB * SPARE)
    assert room_bytes(on_cuda) == round(80 * GB * SPARE)
    nobody = replace(on_cpu, setting=replace(on_cpu.setting, environment=unknown))
    assert room_bytes(nobody) is None


def test_a_real_peak_is_scaled_as_the_estimates_are() -> None:
    assert from_peak(10 * GB, 4 * GB, 8 * GB) == 5 * GB
    assert from_peak(10 * GB, 16 * GB, 8 * GB) == 20 * GB
    assert from_peak(1 * GB, 4 * GB, 8 * GB) == 4 * GB, "never below its own weights"
    assert from_peak(10 * GB, None, 8 * GB) == 10 * GB
    assert from_peak(10 * GB, 4 * GB, None) == 10 * GB
