"""NVIDIA's GPUs, as the driver's own library (NVML) knows them: which there are, how they are set up, how they are now.

Knows no torch and starts no program. NVML is asked through NVIDIA's own binding, pynvml, imported when it is first asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, NamedTuple

VISIBLE = "CUDA_VISIBLE_DEVICES"

_DRIVER_ALONE = 12
"""What NVML says of the driver's CUDA version where the driver's CUDA library isn't there."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, or a MIG instance of one: its name, and compute capability such as (9, 0), None where NVML doesn't tell.

    memory_bytes: None where NVML doesn't tell, as of a GPU that computes in the host's memory.
    uuid: NVML's name for it, the same in every process; None if unknown.
    """

    name: str
    capability: tuple[int, int] | None
    memory_bytes: int | None
    uuid: str | None = field(default=None, compare=False)


class Unusable(NamedTuple):
    """Why a GPU that seems to be here can't be computed on, and what would change that, beside the processor."""

    reason: str
    instead: str


@contextmanager
def _started() -> Iterator[str | None]:
    """Within it NVML can be asked. Gives the reason where it can't: it isn't there, or doesn't start."""
    import pynvml

    reason = None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        reason = f"NVML can't be started: its error {error.value}"
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            reason = "NVML (libnvidia-ml, which comes with the driver) can't be loaded"
    try:
        yield reason
    finally:
        if reason is None:
            _asked("nvmlShutdown")


def _asked(function: str, *of: Any) -> Any:
    """What NVML answers; None where this GPU, this driver or this pynvml doesn't know it."""
    import pynvml

    try:
        return getattr(pynvml, function)(*of)
    except (pynvml.NVMLError, AttributeError, UnicodeDecodeError):
        return None


def _switch(function: str, handle: Any) -> bool | None:
    """Whether something is on; of two answers, now and after a restart, the first."""
    found = _asked(function, handle)
    return None if found is None else bool(found[0] if isinstance(found, list) else found)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


# Which there are -----------------------------------------------------------------------------------


def visible_names() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES leaves of the GPUs, as it names them; none if it hides all, None if it says nothing.

    CUDA looks no further than the first entry that names no GPU.
    """
    named = os.environ.get(VISIBLE)
    if named is None:
        return None
    return list(takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(","))))


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, one for each entry, in NVML's order.

    NVML counts by PCI address, as CUDA does in the process of a run, which is told so unless CUDA_DEVICE_ORDER is
    set. A run records the GPU that it had.
    """
    names = visible_names()
    with _started() as reason:
        if reason:
            return ()
        handles = [
            _asked("nvmlDeviceGetHandleByIndex", at)
            for at in range(_asked("nvmlDeviceGetCount") or 0)
        ]
        seen = {
            _asked("nvmlDeviceGetUUID", handle) or str(at): gpu
            for at, handle in enumerate(filter(None, handles))
            if (gpu := _computed_on(handle))
        }
        if names is None:
            return tuple(seen.values())
        found = takewhile(lambda gpu: gpu is not None, (_named(name, seen) for name in names))
        return tuple(gpu for gpu in found if gpu)


def _computed_on(handle: Any) -> Gpu | None:
    """What CUDA makes of a GPU that is named as a whole: of one that is divided into MIG instances, the first."""
    if not _switch("nvmlDeviceGetMigMode", handle):
        return _facts(handle)
    return next(map(_facts, _instances(handle)), None)


def _instances(handle: Any) -> Iterator[Any]:
    """The MIG instances of a GPU that this process may see."""
    numbers = range(_asked("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    asked = (_asked("nvmlDeviceGetMigDeviceHandleByIndex", handle, number) for number in numbers)
    return (instance for instance in asked if instance is not None)


def _named(entry: str, seen: Mapping[str, Gpu]) -> Gpu | None:
    """The GPU that an entry of CUDA_VISIBLE_DEVICES names: by number, by the beginning of its UUID, or as a MIG instance.

    An instance that NVML doesn't know counts as the first GPU, for it may well be there.
    """
    if entry.isdigit():
        return list(seen.values())[int(entry)] if int(entry) < len(seen) else None
    if entry.startswith("MIG-"):
        instance = _find([entry]) or _instance_by_numbers(entry)
        if instance is not None:
            return _facts(instance)
        return next((replace(gpu, uuid=None) for gpu in seen.values()), None)
    fitting = [gpu for uuid, gpu in seen.items() if uuid.startswith(entry)]
    return fitting[0] if len(fitting) == 1 else None


def _instance_by_numbers(entry: str) -> Any:
    """The MIG instance that drivers before R470 call `MIG-GPU-<uuid>/<GPU instance>/<compute instance>`; None if none is."""
    match = re.fullmatch(r"MIG-(GPU-[\w-]+)/(\d+)/(\d+)", entry)
    whole = _find([match[1]]) if match else None
    if match is None or whole is None:
        return None
    numbers = ("nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId")
    wanted = [int(match[2]), int(match[3])]
    return next(
        (i for i in _instances(whole) if [_asked(number, i) for number in numbers] == wanted), None
    )


def _facts(handle: Any) -> Gpu:
    """What NVML says of a GPU or an instance. Of an instance it tells name and memory, and its GPU the capability."""
    whole = _asked("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
    memory = _asked("nvmlDeviceGetMemoryInfo", handle)
    return Gpu(
        _asked("nvmlDeviceGetName", handle) or "NVIDIA GPU",
        _asked("nvmlDeviceGetCudaComputeCapability", handle if whole is None else whole),
        (memory.total or None) if memory is not None else None,
        _asked("nvmlDeviceGetUUID", handle),
    )


def _find(names: Sequence[str]) -> Any:
    """NVML's handle of a GPU, by the first of its names that NVML knows; None where it knows none."""
    for name in names:
        by = "UUID" if name.startswith(("GPU-", "MIG-")) else "PciBusId"
        handle = _asked(f"nvmlDeviceGetHandleBy{by}", name)
        if handle is not None:
            return handle
    return None


# Why none can be computed on -----------------------------------------------------------------------

_SIGNS_OF_NVIDIA = (
    "/proc/driver/nvidia/version",
    "/dev/nvidiactl",
    "/dev/nvhost-gpu",
    "/dev/nvgpu",
)
_OTHERS = {"hip": "AMD's ROCm", "xpu": "Intel's GPUs, version"}
"""What else torch may be built for, by its version file's names."""

_CAPABILITIES = "NVIDIA_DRIVER_CAPABILITIES=compute,utility"


def why_unusable(
    gpus: Sequence[Gpu], torch_version: str | None, builds: Mapping[str, str | None]
) -> Unusable | None:
    """Why a GPU that this machine seems to have can't be computed on; None if none seems to be, or one can.

    gpus: those that are visible. builds: the versions of `cuda`, `hip` and `xpu` that the installed torch is built for.
    """
    torch, torch_cuda = f"the installed torch {torch_version or ''}".strip(), builds.get("cuda")
    for name, words in _OTHERS.items():
        if version := builds.get(name):
            return Unusable(
                f"{torch} is built for {words} {version}, which fastdiff can't use yet",
                "an NVIDIA GPU with a CUDA build of torch",
            )
    if not gpus and not any(map(os.path.exists, _SIGNS_OF_NVIDIA)):
        return None
    here = "there is an NVIDIA driver here, but"
    if torch_cuda is None:
        return Unusable(f"{here} {torch} is built without CUDA", "a CUDA build of torch")
    with _started() as reason:
        driver = None if reason else _driver_cuda()
    if reason:
        return Unusable(
            f"{here} nothing can be learned of its GPUs: {reason}",
            f"in a container --gpus all and {_CAPABILITIES}, after a driver's update a restart",
        )
    if not gpus:
        visible = os.environ.get(VISIBLE)
        hidden = "" if visible is None else f" ({VISIBLE}={visible})"
        way = "a job with a GPU, or a MIG instance" if visible is None else "unset that variable"
        return Unusable(f"{here} no GPU is visible to this process{hidden}", way)
    if driver == _DRIVER_ALONE:
        way = f"the driver's whole installation, in a container {_CAPABILITIES}"
        return Unusable(f"{here} not its CUDA library (libcuda)", way)
    return _too_old(driver, torch, torch_cuda) if driver else None


def _driver_cuda() -> int | None:
    """The newest CUDA that the driver runs, 12040 for 12.4; _DRIVER_ALONE without its CUDA library; None if NVML doesn't say."""
    import pynvml

    try:
        return int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError as error:
        missing = error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
        return _DRIVER_ALONE if missing else None


def _too_old(driver: int, torch: str, torch_cuda: str) -> Unusable | None:
    """Whether a driver can't run torch's CUDA.

    A driver runs every CUDA of its own major version and those before it
    (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
    """
    runs, built = driver // 1000, int(torch_cuda.partition(".")[0])
    if runs >= built:
        return None
    return Unusable(
        f"{torch} is built for CUDA {torch_cuda}, and this machine's NVIDIA driver runs CUDA {_version(driver)} at most",
        f"a driver of CUDA {built}, or a torch that is built for CUDA {_version(driver)}",
    )


def _version(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


# One of them ---------------------------------------------------------------------------------------

_SM, _MEMORY, _DIE = 1, 2, 0

_SETTINGS = (
    *("count", "driver", "driver_cuda", "max_sm_clock_mhz", "max_memory_clock_mhz"),
    *("sm_clock_setting_mhz", "power_limit_w", "mig", "persistence", "ecc"),
)
_STATE = (
    *("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w"),
    *("slowed_by", "compute_processes"),
)
_SLOWED = (
    *("gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "sync_boost"),
    *("sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"),
    "display_clock_setting",
)
"""Reasons for a clock that isn't at its highest, in NVML's words, from its lowest bit on."""


def gpu_names(properties: Any) -> list[str]:
    """What NVML may know a GPU by, from torch's properties: its UUID, and its PCI address where this torch tells it."""
    names = []
    if uuid := str(getattr(properties, "uuid", "")):
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        names += [f"GPU-{bare}", f"MIG-{bare}"]
    parts = (getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
    address = [part for part in parts if part is not None]
    if len(address) == 3:
        names.append("{:04x}:{:02x}:{:02x}.0".format(*address))
    return names


def gpu_settings(names: Sequence[str]) -> dict[str, Any]:
    """How one GPU is set up, as NVML says; `reason` says why nothing is known, or is None.

    names: what NVML may know it by, best first: UUIDs (`GPU-...`, `MIG-...`) and PCI addresses (`0000:3b:00.0`).
    count: of GPUs in the machine. driver_cuda: the newest CUDA that the driver runs. max_sm_clock_mhz,
    max_memory_clock_mhz: how fast it may ever run; sm_clock_setting_mhz: what it was told to run at. power_limit_w,
    mig, persistence, ecc: as set now. Each is None where this GPU or driver doesn't know it.
    """
    with _started() as reason:
        if reason:
            return _unknown(_SETTINGS, reason)
        cuda = _asked("nvmlSystemGetCudaDriverVersion_v2")
        return _of_one(names, _SETTINGS, _settings) | {
            "count": _asked("nvmlDeviceGetCount"),
            "driver": _asked("nvmlSystemGetDriverVersion"),
            "driver_cuda": None if cuda is None else _version(cuda),
        }


def _settings(handle: Any) -> dict[str, Any]:
    return {
        "max_sm_clock_mhz": _asked("nvmlDeviceGetMaxClockInfo", handle, _SM),
        "max_memory_clock_mhz": _asked("nvmlDeviceGetMaxClockInfo", handle, _MEMORY),
        "sm_clock_setting_mhz": _asked("nvmlDeviceGetApplicationsClock", handle, _SM),
        "power_limit_w": _watts(_asked("nvmlDeviceGetEnforcedPowerLimit", handle)),
        "mig": _switch("nvmlDeviceGetMigMode", handle),
        "persistence": _switch("nvmlDeviceGetPersistenceMode", handle),
        "ecc": _switch("nvmlDeviceGetEccMode", handle),
    }


def gpu_state(names: Sequence[str]) -> dict[str, Any]:
    """The state of one GPU now, as the report has it; `reason` says why nothing is known, or is None.

    names: as of `gpu_settings`. sm_clock_mhz, memory_clock_mhz, temperature_c, power_w; slowed_by: why its clock isn't
    at its highest, in NVML's words; compute_processes: how many hold it, this one included where NVML may see it. Each
    is None where NVML doesn't say.
    """
    with _started() as reason:
        return _unknown(_STATE, reason) if reason else _of_one(names, _STATE, _state)


def _state(handle: Any) -> dict[str, Any]:
    slowed = _asked("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    processes = _asked("nvmlDeviceGetComputeRunningProcesses_v3", handle)
    return {
        "sm_clock_mhz": _asked("nvmlDeviceGetClockInfo", handle, _SM),
        "memory_clock_mhz": _asked("nvmlDeviceGetClockInfo", handle, _MEMORY),
        "temperature_c": _asked("nvmlDeviceGetTemperature", handle, _DIE),
        "power_w": _watts(_asked("nvmlDeviceGetPowerUsage", handle)),
        "slowed_by": None
        if slowed is None
        else [name for bit, name in enumerate(_SLOWED) if slowed & (1 << bit)],
        "compute_processes": None if processes is None else len(processes),
    }


def this_gpu_state() -> dict[str, Any]:
    """The state of the GPU that torch computes on, whatever CUDA_VISIBLE_DEVICES calls it.

    That it can't be asked costs whoever asks nothing.
    """
    try:
        import torch

        return gpu_state(gpu_names(torch.cuda.get_device_properties()))
    except Exception as error:
        return _unknown(_STATE, f"it can't be asked ({type(error).__name__}: {error})")


def _of_one(
    names: Sequence[str], fields: Sequence[str], ask: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
    handle = _find(names)
    if handle is None:
        return _unknown(fields, f"NVML knows no GPU {' or '.join(names) or 'of this run'}")
    return {"reason": None} | dict.fromkeys(fields) | ask(handle)


def _unknown(fields: Sequence[str], reason: str) -> dict[str, Any]:
    return {"reason": reason} | dict.fromkeys(fields)
