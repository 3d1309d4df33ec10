"""How fast an NVIDIA GPU is clocked, how hot it is and who holds it, asked of the driver's own library (NVML)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from fastdiff.machine.hardware import find_gpu, gpu_names, load_nvml, not_found, number, started

_SM, _MEMORY = 1, 2
_DIE = 0
_SLOWED = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
_IN_DISTRESS = {
    "hw_slowdown",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
}
"""Of these, what a GPU does when it is too hot or badly fed; a power cap is everyday life under full load."""


class GpuState:
    """Asks one GPU of NVML.

    nvml: the loaded library; None where it can't be loaded.
    names: what NVML may know the GPU by, best first: UUIDs (`GPU-...`, `MIG-...`) and PCI addresses (`0000:3b:00.0`).
    """

    def __init__(self, nvml: Any, names: Sequence[str]) -> None:
        self._nvml, self._names = nvml, names

    def __call__(self) -> dict[str, Any]:
        """Its state now, as the report has it; `reason` says why nothing is known, or is None.

        sm_clock_mhz, memory_clock_mhz, temperature_c, power_w; slowed_by: why its clock isn't at its highest, in NVML's
        words; compute_processes: how many hold it, this one included where NVML may see it. Each is None where NVML
        doesn't say.
        """
        with started(self._nvml) as reason:
            return unknown(reason) if reason else self._asked()

    def _asked(self) -> dict[str, Any]:
        nvml, handle = self._nvml, find_gpu(self._nvml, self._names)
        if handle is None:
            return unknown(not_found(self._names))
        power_mw = number(nvml, "nvmlDeviceGetPowerUsage", handle)
        slowed = number(
            nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle, kind=ctypes.c_ulonglong
        )
        return {
            "reason": None,
            "sm_clock_mhz": number(nvml, "nvmlDeviceGetClockInfo", handle, _SM),
            "memory_clock_mhz": number(nvml, "nvmlDeviceGetClockInfo", handle, _MEMORY),
            "temperature_c": number(nvml, "nvmlDeviceGetTemperature", handle, _DIE),
            "power_w": None if power_mw is None else power_mw / 1000,
            "slowed_by": None
            if slowed is None
            else [name for bit, name in _SLOWED.items() if slowed & bit],
            "compute_processes": self._processes(handle),
        }

    def _processes(self, handle: Any) -> int | None:
        """Room for none is offered, so that NVML says how many there are: by its error for too little room."""
        insufficient_size = 7
        count = ctypes.c_uint(0)
        function = getattr(self._nvml, "nvmlDeviceGetComputeRunningProcesses_v3", None)
        if function is None or function(handle, ctypes.byref(count), None) not in (
            0,
            insufficient_size,
        ):
            return None
        return int(count.value)


def unknown(reason: str) -> dict[str, Any]:
    """A state of which nothing is known."""
    return {"reason": reason} | dict.fromkeys(
        (
            "sm_clock_mhz",
            "memory_clock_mhz",
            "temperature_c",
            "power_w",
            "slowed_by",
            "compute_processes",
        )
    )


def this_gpu() -> GpuState:
    """The GPU that torch computes on, whatever CUDA_VISIBLE_DEVICES calls it."""
    import torch

    return GpuState(load_nvml(), gpu_names(torch.cuda.get_device_properties()))


def gpu_troubles(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """What makes work on the GPU take longer than it should, by its state before and after it, and what mends it.

    Nothing where the state is unknown.
    """
    if before["reason"] or after["reason"]:
        return {}
    slowed = {name for state in (before, after) for name in state["slowed_by"] or ()}
    processes = max(state["compute_processes"] or 0 for state in (before, after))
    found = {}
    if distress := ", ".join(sorted(slowed & _IN_DISTRESS)):
        hot = f"the GPU slowed itself down ({distress}; {after['temperature_c']} °C)"
        found[hot] = "times may be too long; cool it and run again"
    if processes > 1:
        found[f"{processes} processes hold this GPU"] = (
            "if another computed while calls were timed, times are too long; end it and run again"
        )
    return found


def gpu_notices(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What a reader of the times has to know of the GPU's state before and after them."""
    if reason := before["reason"] or after["reason"]:
        return [f"the GPU's clocks and temperature are unknown: {reason}"]
    return [f"{trouble}: {advice}" for trouble, advice in gpu_troubles(before, after).items()]


def gpu_state_now(gpu: Callable[[], Callable[[], dict[str, Any]]] = this_gpu) -> dict[str, Any]:
    """The state of this process's GPU; that it can't be asked costs whoever asks nothing."""
    try:
        return gpu()()
    except Exception as error:
        return unknown(f"it can't be asked ({type(error).__name__}: {error})")
