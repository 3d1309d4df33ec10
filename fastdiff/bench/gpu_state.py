"""How fast an NVIDIA GPU is clocked, how hot it is and who holds it, asked of the driver's own library (NVML)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

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
        if self._nvml is None:
            return _unknown("NVML (libnvidia-ml, which comes with the driver) can't be loaded")
        if code := self._nvml.nvmlInit_v2():
            return _unknown(f"NVML can't be started: its error {code}")
        try:
            return self._asked()
        finally:
            self._nvml.nvmlShutdown()

    def _asked(self) -> dict[str, Any]:
        handle = self._handle()
        if handle is None:
            return _unknown(f"NVML knows no GPU {' or '.join(self._names) or 'of this run'}")
        power_mw = self._number("nvmlDeviceGetPowerUsage", handle)
        slowed = self._number(
            "nvmlDeviceGetCurrentClocksThrottleReasons", handle, kind=ctypes.c_ulonglong
        )
        return {
            "reason": None,
            "sm_clock_mhz": self._number("nvmlDeviceGetClockInfo", handle, _SM),
            "memory_clock_mhz": self._number("nvmlDeviceGetClockInfo", handle, _MEMORY),
            "temperature_c": self._number("nvmlDeviceGetTemperature", handle, _DIE),
            "power_w": None if power_mw is None else power_mw / 1000,
            "slowed_by": None
            if slowed is None
            else [name for bit, name in _SLOWED.items() if slowed & bit],
            "compute_processes": self._processes(handle),
        }

    def _handle(self) -> Any:
        for name in self._names:
            handle = ctypes.c_void_p()
            by_uuid = name.startswith(("GPU-", "MIG-"))
            ask = "nvmlDeviceGetHandleByUUID" if by_uuid else "nvmlDeviceGetHandleByPciBusId_v2"
            if getattr(self._nvml, ask)(name.encode(), ctypes.byref(handle)) == 0:
                return handle
        return None

    def _number(self, ask: str, handle: Any, *of: int, kind: Any = ctypes.c_uint) -> int | None:
        """What an NVML function of one number says; None where this GPU or driver doesn't know it."""
        found = kind()
        function = getattr(self._nvml, ask, None)
        if function is None or function(handle, *of, ctypes.byref(found)) != 0:
            return None
        return int(found.value)

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


def _unknown(reason: str) -> dict[str, Any]:
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

    return GpuState(load_nvml(), names_of(torch.cuda.get_device_properties()))


def load_nvml() -> Any:
    """NVML's library; None where there is none."""
    try:
        return ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None


def names_of(properties: Any) -> list[str]:
    """A GPU's names from torch's properties: its UUID, and its PCI address where this torch tells it."""
    names = []
    if uuid := str(getattr(properties, "uuid", "")):
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        names += [f"GPU-{bare}", f"MIG-{bare}"]
    parts = (getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
    address = [part for part in parts if part is not None]
    if len(address) == 3:
        names.append("{:04x}:{:02x}:{:02x}.0".format(*address))
    return names


def gpu_notices(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What a reader of the times has to know of the GPU's state before and after them."""
    reason = before["reason"] or after["reason"]
    if reason:
        return [f"the GPU's clocks and temperature are unknown: {reason}"]
    notices = []
    slowed = {name for state in (before, after) for name in state["slowed_by"] or ()}
    if found := sorted(slowed & _IN_DISTRESS):
        notices.append(
            f"the GPU slowed itself down ({', '.join(found)}; {after['temperature_c']} °C): times may be "
            "too long; cool it and run again"
        )
    processes = max(state["compute_processes"] or 0 for state in (before, after))
    if processes > 1:
        notices.append(
            f"{processes} processes hold this GPU: if another computed while calls were timed, times are "
            "too long; end it and run again"
        )
    return notices
