"""What of the machine explains a difference between two runs, beside what planning has to know.

Read from Linux's own files and asked of NVML, without torch and without starting a program. A run's own process asks
once; planning doesn't. None where the system doesn't say.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NO_LIMIT = 1 << 60
"""What the first version of control groups gives for no limit at all is above this, in bytes."""
_CPU = "sys/devices/system/cpu"
_CONTAINERS = {".dockerenv": "docker", "run/.containerenv": "podman"}
_SM_CLOCK, _MEMORY_CLOCK = 1, 2
_OOM_COUNTS = ("memory.events", "memory.oom_control")
"""Where the second and the first version of control groups count what was ended for want of memory."""


@dataclass(frozen=True)
class Files:
    """The system's files below a root, which tests choose."""

    root: Path = Path("/")

    def text(self, path: str) -> str | None:
        """A file's text without the white space around it; None where there is no such file, or not for us."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except (OSError, ValueError):
            return None

    def number(self, path: str) -> int | None:
        text = self.text(path)
        return int(text) if text and re.fullmatch(r"-?\d+", text) else None

    def folders(self, parent: str, pattern: str) -> list[str]:
        """Names in a folder that a whole pattern fits."""
        try:
            names = [path.name for path in (self.root / parent).iterdir()]
        except OSError:
            return []
        return [name for name in names if re.fullmatch(pattern, name)]

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()


# The processor and its memory ----------------------------------------------------------------------


def processor(files: Files) -> dict[str, Any]:
    """Cores, who may use them, and how fast they may run.

    logical, physical: of the machine; smt: whether a core runs two threads at once now.
    affinity: the processors that this process may run on, as Linux writes lists: `0-3,8`.
    governor, max_mhz: of the first of them; None in most virtual machines.
    cgroup_cpus: so many processors' time a control group leaves; None without a limit.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    first = f"{_CPU}/cpu{allowed[0] if allowed else 0}/cpufreq"
    smt, khz = files.number(f"{_CPU}/smt/active"), files.number(f"{first}/cpuinfo_max_freq")
    return {
        "logical": os.cpu_count(),
        "physical": _physical_cores(files),
        "smt": None if smt is None else smt == 1,
        "affinity": ranges(allowed) or None,
        "governor": files.text(f"{first}/scaling_governor"),
        "max_mhz": khz // 1000 if khz else None,
        "numa_nodes": len(files.folders("sys/devices/system/node", r"node\d+")) or None,
        "cgroup_cpus": _cgroup_cpus(files),
    }


def host_memory(files: Files) -> dict[str, Any]:
    """The host's memory in bytes, a control group's limit on it, swap, and how Linux hands out large pages."""
    text = files.text("proc/meminfo") or ""
    kib = dict(re.findall(r"^(MemTotal|SwapTotal):\s*(\d+) kB$", text, re.MULTILINE))
    pages = files.text("sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = re.search(r"\[(\w+)\]", pages)
    return {
        "bytes": int(kib["MemTotal"]) * 1024 if "MemTotal" in kib else None,
        "swap_bytes": int(kib["SwapTotal"]) * 1024 if "SwapTotal" in kib else None,
        "cgroup_bytes": _cgroup_memory_bytes(files),
        "transparent_hugepages": chosen.group(1) if chosen else None,
    }


def ranges(numbers: Iterable[int]) -> str:
    """Numbers that rise, as Linux writes lists: `0-3,8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _physical_cores(files: Files) -> int | None:
    cores = {
        (
            files.text(f"{_CPU}/{name}/topology/physical_package_id"),
            files.text(f"{_CPU}/{name}/topology/core_id"),
        )
        for name in files.folders(_CPU, r"cpu\d+")
    }
    known = {core for core in cores if None not in core}
    return len(known) or None


def _cgroup_levels(files: Files, controller: str) -> Iterator[str]:
    """This process's control groups, the innermost and all around it, below the controller's root.

    The second version keeps all controllers in one tree (`0::/a/b`), the first has a tree for each (`4:memory:/a/b`).
    A container often shows its own group as the root, so the root is always among them.
    """
    for line in (files.text("proc/self/cgroup") or "").splitlines():
        _, names, path = (*line.split(":", 2), "", "")[:3]
        if names and controller not in names.split(","):
            continue
        base = f"sys/fs/cgroup/{controller}" if names else "sys/fs/cgroup"
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield "/".join([base, *parts[:depth]])


def _cgroup_cpus(files: Files) -> float | None:
    """The tightest limit, in processors."""
    found = []
    for group in _cgroup_levels(files, "cpu"):
        quota, period = (*(files.text(f"{group}/cpu.max") or "").split(), "", "")[:2]
        if not quota:
            quota = str(files.number(f"{group}/cpu.cfs_quota_us") or "")
            period = str(files.number(f"{group}/cpu.cfs_period_us") or "")
        if quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _cgroup_memory_bytes(files: Files) -> int | None:
    found = []
    for group in _cgroup_levels(files, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = files.number(f"{group}/{name}")
            if limit is not None and limit < _NO_LIMIT:
                found.append(limit)
    return min(found, default=None)


def oom_kills(files: Files) -> int | None:
    """How many processes the kernel has ended for want of memory since it began to count; None where it doesn't.

    Of this process's control group, where that counts: a kill on the whole machine's behalf is among them, another
    container's is not. Elsewhere of the whole machine.
    Source: `oom_kill` in Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, https://docs.kernel.org
    """
    groups = _cgroup_levels(files, "memory")
    counts = (f"{group}/{name}" for group in groups for name in _OOM_COUNTS)
    for path in (*counts, "proc/vmstat"):
        found = re.search(r"^oom_kill (\d+)$", files.text(path) or "", re.MULTILINE)
        if found:
            return int(found.group(1))
    return None


# The system ----------------------------------------------------------------------------------------


def system(files: Files, variables: Mapping[str, str]) -> dict[str, Any]:
    """Kernel, C library, and what stands between the system and the hardware.

    container: `docker`, `kubernetes`, ...; None where nothing hints at one.
    virtual_machine: whether the processor says that a hypervisor runs it; hardware: the maker's name for the machine.
    """
    flags = re.search(r"^flags\s*:(.*)$", files.text("proc/cpuinfo") or "", re.MULTILINE)
    maker = (files.text(f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name"))
    return {
        "kernel": platform.release(),
        "libc": " ".join(filter(None, platform.libc_ver())) or None,
        "container": _container(files, variables),
        "virtual_machine": "hypervisor" in flags.group(1).split() if flags else None,
        "hardware": " ".join(filter(None, maker)) or None,
    }


def _container(files: Files, variables: Mapping[str, str]) -> str | None:
    if "KUBERNETES_SERVICE_HOST" in variables:
        return "kubernetes"
    if variables.get("container"):  # systemd-nspawn, lxc and podman tell their children
        return variables["container"]
    return next((kind for path, kind in _CONTAINERS.items() if files.exists(path)), None)


# The GPU -------------------------------------------------------------------------------------------


def load_nvml() -> Any:
    """NVML's library, which comes with the driver; None where there is none."""
    try:
        return ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None


def gpu(nvml: Any, names: Sequence[str]) -> dict[str, Any]:
    """How one GPU is set up, as NVML says; `reason` says why nothing is known, or is None.

    names: what NVML may know it by, best first: UUIDs (`GPU-...`, `MIG-...`) and PCI addresses (`0000:3b:00.0`).
    count: of GPUs in the machine. driver_cuda: the newest CUDA that the driver runs. max_sm_clock_mhz,
    max_memory_clock_mhz: how fast it may ever run; sm_clock_setting_mhz: what it was told to run at. power_limit_w,
    mig, persistence, ecc: as set now. Each is None where this GPU or driver doesn't know it.
    """
    unknown: dict[str, Any] = dict.fromkeys(
        (
            *("count", "driver", "driver_cuda", "max_sm_clock_mhz", "max_memory_clock_mhz"),
            *("sm_clock_setting_mhz", "power_limit_w", "mig", "persistence", "ecc"),
        )
    )
    with started(nvml) as reason:
        return unknown | ({"reason": reason} if reason else _asked_gpu(nvml, names))


@contextmanager
def started(nvml: Any) -> Iterator[str | None]:
    """Within it NVML can be asked. Gives the reason where it can't: it isn't there (None), or doesn't start."""
    if nvml is None:
        yield "NVML (libnvidia-ml, which comes with the driver) can't be loaded"
    elif code := nvml.nvmlInit_v2():
        yield f"NVML can't be started: its error {code}"
    else:
        try:
            yield None
        finally:
            nvml.nvmlShutdown()


def not_found(names: Sequence[str]) -> str:
    """Why nothing is known of a GPU that NVML doesn't know by any of its names."""
    return f"NVML knows no GPU {' or '.join(names) or 'of this run'}"


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


def _asked_gpu(nvml: Any, names: Sequence[str]) -> dict[str, Any]:
    cuda = number(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    whole = {
        "count": number(nvml, "nvmlDeviceGetCount_v2"),
        "driver": answer(nvml, "nvmlSystemGetDriverVersion"),
        "driver_cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
    }
    handle = find_gpu(nvml, names)
    if handle is None:
        return whole | {"reason": not_found(names)}
    power_mw = number(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
    return whole | {
        "reason": None,
        "max_sm_clock_mhz": number(nvml, "nvmlDeviceGetMaxClockInfo", handle, _SM_CLOCK),
        "max_memory_clock_mhz": number(nvml, "nvmlDeviceGetMaxClockInfo", handle, _MEMORY_CLOCK),
        "sm_clock_setting_mhz": number(nvml, "nvmlDeviceGetApplicationsClock", handle, _SM_CLOCK),
        "power_limit_w": None if power_mw is None else power_mw / 1000,
        "mig": _switch(nvml, "nvmlDeviceGetMigMode", handle, answers=2),
        "persistence": _switch(nvml, "nvmlDeviceGetPersistenceMode", handle),
        "ecc": _switch(nvml, "nvmlDeviceGetEccMode", handle, answers=2),
    }


def find_gpu(nvml: Any, names: Sequence[str]) -> Any:
    """NVML's handle of a GPU, by the first of its names that NVML knows; None where it knows none."""
    for name in names:
        handle = ctypes.c_void_p()
        by_uuid = name.startswith(("GPU-", "MIG-"))
        ask = "nvmlDeviceGetHandleByUUID" if by_uuid else "nvmlDeviceGetHandleByPciBusId_v2"
        if getattr(nvml, ask)(name.encode(), ctypes.byref(handle)) == 0:
            return handle
    return None


def number(
    nvml: Any, ask: str, *of: Any, answers: int = 1, kind: Any = ctypes.c_uint
) -> int | None:
    """The first of the numbers of a C type that an NVML function answers with; None where it can't."""
    found = [kind() for _ in range(answers)]
    function = getattr(nvml, ask, None)
    if function is None or function(*of, *map(ctypes.byref, found)) != 0:
        return None
    return int(found[0].value)


def _switch(nvml: Any, ask: str, handle: Any, answers: int = 1) -> bool | None:
    """Whether something is on; of two answers, now and after a restart, the first."""
    found = number(nvml, ask, handle, answers=answers)
    return None if found is None else bool(found)


def answer(nvml: Any, ask: str, *of: Any) -> str | None:
    """What an NVML function answers in words; None where it can't."""
    buffer = ctypes.create_string_buffer(96)
    function = getattr(nvml, ask, None)
    if function is None or function(*of, buffer, len(buffer)) != 0:
        return None
    return buffer.value.decode(errors="replace") or None
