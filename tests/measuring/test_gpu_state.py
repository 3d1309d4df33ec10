"""What NVML says of a GPU, asked of a library made for the test."""

from __future__ import annotations

from typing import Any

import pytest

from fastdiff.measuring.gpu_state import GpuState, gpu_notices, gpu_state_now, gpu_troubles

UUID = "8932f937-d72c-4106-c12f-20bd9faed9f6"


class Nvml:
    """A driver's library with one GPU in it: answers by writing where a pointer points, and returns NVML's codes."""

    def __init__(self, **changed: Any) -> None:
        self.init = 0
        self.known = {"nvmlDeviceGetHandleByUUID": f"GPU-{UUID}"}
        self.numbers = {
            ("nvmlDeviceGetClockInfo", 1): 1980,
            ("nvmlDeviceGetClockInfo", 2): 3201,
            ("nvmlDeviceGetTemperature", 0): 57,
            ("nvmlDeviceGetPowerUsage",): 412_345,
            ("nvmlDeviceGetCurrentClocksThrottleReasons",): 0x4 | 0x40,
        }
        self.processes = 1
        self.started = self.ended = 0
        self.__dict__.update(changed)

    def nvmlInit_v2(self) -> int:
        self.started += not self.init
        return self.init

    def nvmlShutdown(self) -> int:
        self.ended += 1
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, infos: Any) -> int:
        assert (handle.value, count._obj.value, infos) == (77, 0, None)
        count._obj.value = self.processes
        return 7 if self.processes else 0

    def __getattr__(self, ask: str) -> Any:
        if "HandleBy" in ask:

            def handle_by(name: bytes, found: Any) -> int:
                found._obj.value = 77
                return 0 if self.known.get(ask) == name.decode() else 6

            return handle_by

        def number(handle: Any, *rest: Any) -> int:
            assert handle.value == 77
            *of, found = rest
            value = self.numbers.get((ask, *of))
            found._obj.value = value or 0
            return 3 if value is None else 0

        return number


def state(nvml: Any, *names: str) -> dict[str, Any]:
    return GpuState(nvml, names or (f"GPU-{UUID}",))()


def test_what_the_driver_says_is_in_the_units_of_its_names() -> None:
    nvml = Nvml()
    assert state(nvml) == {
        "reason": None,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "temperature_c": 57,
        "power_w": 412.345,
        "slowed_by": ["sw_power_cap", "hw_thermal_slowdown"],
        "compute_processes": 1,
    }
    assert (nvml.started, nvml.ended) == (1, 1)


def test_what_this_gpu_does_not_say_is_null() -> None:
    found = state(Nvml(numbers={("nvmlDeviceGetClockInfo", 1): 1980}))
    assert found["sm_clock_mhz"] == 1980
    assert [found[name] for name in ("memory_clock_mhz", "power_w", "slowed_by")] == [None] * 3
    assert found["reason"] is None


def test_an_older_driver_without_a_function_leaves_it_null() -> None:
    class Older(Nvml):
        nvmlDeviceGetComputeRunningProcesses_v3 = None  # type: ignore[assignment]

    found = state(Older())
    assert (found["compute_processes"], found["temperature_c"]) == (None, 57)


def test_no_process_at_all_is_a_number() -> None:
    assert state(Nvml(processes=0))["compute_processes"] == 0


def test_the_gpu_is_found_by_the_first_name_that_nvml_knows() -> None:
    nvml = Nvml(known={"nvmlDeviceGetHandleByPciBusId_v2": "0000:3b:00.0"})
    assert state(nvml, f"GPU-{UUID}", f"MIG-{UUID}", "0000:3b:00.0")["temperature_c"] == 57


@pytest.mark.parametrize(
    ("nvml", "names", "reason"),
    [
        (None, ["GPU-1"], "NVML (libnvidia-ml, which comes with the driver) can't be loaded"),
        (Nvml(init=18), ["GPU-1"], "NVML can't be started: its error 18"),
        (
            Nvml(),
            ["GPU-1", "0000:3b:00.0"],
            "NVML knows no GPU GPU-1 or 0000:3b:00.0",
        ),
        (Nvml(), [], "NVML knows no GPU of this run"),
    ],
)
def test_a_missing_nvml_is_a_reason_and_no_error(nvml: Any, names: list[str], reason: str) -> None:
    found = GpuState(nvml, names)()
    assert found.pop("reason") == reason
    assert set(found) == set(state(Nvml())) - {"reason"}
    assert set(found.values()) == {None}
    assert nvml is None or nvml.started == nvml.ended


# Notices -------------------------------------------------------------------------------------------


def known(**said: Any) -> dict[str, Any]:
    return state(Nvml()) | {"slowed_by": ["gpu_idle", "sw_power_cap"]} | said


@pytest.mark.parametrize(
    ("before", "after", "notices"),
    [
        ({}, {}, []),
        ({"slowed_by": None, "compute_processes": None}, {"slowed_by": None}, []),
        (
            {},
            {"slowed_by": ["hw_thermal_slowdown", "hw_slowdown"], "temperature_c": 91},
            [
                "the GPU slowed itself down (hw_slowdown, hw_thermal_slowdown; 91 °C): times may be too "
                "long; cool it and run again"
            ],
        ),
        (
            {"compute_processes": 2},
            {},
            [
                "2 processes hold this GPU: if another computed while calls were timed, times are too long; "
                "end it and run again"
            ],
        ),
        (
            {},
            {"reason": "NVML can't be started: its error 18"},
            ["the GPU's clocks and temperature are unknown: NVML can't be started: its error 18"],
        ),
    ],
)
def test_a_reader_is_told_of_a_hot_or_shared_gpu(
    before: dict[str, Any], after: dict[str, Any], notices: list[str]
) -> None:
    assert gpu_notices(known(**before), known(**after)) == notices


@pytest.mark.gpu
def test_on_a_gpu_its_clock_and_temperature_are_known() -> None:
    import torch

    from fastdiff.measuring.gpu_state import this_gpu

    torch.randn(1024, 1024, device="cuda").square()
    found = this_gpu()()
    assert found["reason"] is None
    assert found["sm_clock_mhz"] > 100
    assert 0 < found["temperature_c"] < 120


def test_a_gpu_that_cannot_be_asked_costs_whoever_asks_nothing() -> None:
    def gone() -> Any:
        raise RuntimeError("driver gone")

    state = gpu_state_now(gone)
    assert state["reason"] == "it can't be asked (RuntimeError: driver gone)"
    hot = known(slowed_by=["hw_slowdown"], temperature_c=88)
    assert gpu_troubles(state, hot) == gpu_troubles(hot, state) == {}
