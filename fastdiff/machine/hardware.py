"""What of the machine explains a difference between two runs, beside what planning has to know.

Read from the system, without torch and without starting a program. A run's own process asks
once; planning doesn't. None where the system doesn't say.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NO_LIMIT = 1 << 60
"""What the first version of control groups gives for no limit at all is above this, in bytes."""
_CPU = "sys/devices/system/cpu"
_CONTAINERS = {".dockerenv": "docker", "run/.containerenv": "podman"}
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
    import psutil

    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    first = f"{_CPU}/cpu{allowed[0] if allowed else 0}/cpufreq"
    smt, khz = files.number(f"{_CPU}/smt/active"), files.number(f"{first}/cpuinfo_max_freq")
    return {
        "logical": os.cpu_count(),
        "physical": psutil.cpu_count(logical=False),
        "smt": None if smt is None else smt == 1,
        "affinity": ranges(allowed) or None,
        "governor": files.text(f"{first}/scaling_governor"),
        "max_mhz": khz // 1000 if khz else None,
        "numa_nodes": len(files.folders("sys/devices/system/node", r"node\d+")) or None,
        "cgroup_cpus": _cgroup_cpus(files),
    }


def host_memory(files: Files) -> dict[str, Any]:
    """The host's memory in bytes, a control group's limit on it, swap, and how Linux hands out large pages."""
    import psutil

    pages = files.text("sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = re.search(r"\[(\w+)\]", pages)
    return {
        "bytes": psutil.virtual_memory().total,
        "swap_bytes": psutil.swap_memory().total,
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
