"""Facts about this machine, without importing torch and without starting a program.

NVIDIA GPUs are asked for through the driver's own library (NVML); versions come from the installed packages' metadata.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata, util
from itertools import takewhile
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("torch", "diffusers", "transformers", "torchao", "accelerate", "hydra-core")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: its name, compute capability such as (9, 0), and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class Environment:
    """What planning needs to know about a machine. Tests build their own.

    threads: processors that this process may use.
    memory_bytes, available_memory_bytes: of the host; None where the system doesn't say.
    torch_cuda: the CUDA version that torch was built with; None for a CPU build.
    versions: of installed distributions, by name.
    modules: import names that `has_module` knows without looking; tests fill it.
    """

    python: str
    os: str
    cpu: str
    cpu_flags: frozenset[str]
    threads: int
    memory_bytes: int | None
    available_memory_bytes: int | None
    gpus: tuple[Gpu, ...] = ()
    has_mps: bool = False
    torch_cuda: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, bool] = field(default_factory=dict)

    def device(self, asked: str) -> str:
        """The device that `auto` means here; any other name stays as it is."""
        if asked != "auto":
            return asked
        if self.gpus and self.torch_cuda:
            return "cuda"
        return "mps" if self.has_mps else "cpu"

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability of the first GPU, the one that runs use."""
        return self.gpus[0].capability if self.gpus else None

    def processor_computes_in(self, precision: str) -> bool:
        """Whether the processor has arithmetic of its own for a precision; without it fp32 is faster."""
        needed = _ARITHMETIC.get(precision)
        return needed is None or bool(self.cpu_flags & needed)

    def has_module(self, name: str) -> bool:
        """Whether a top-level module could be imported; nothing is imported to find out."""
        if name in self.modules:
            return self.modules[name]
        return util.find_spec(name) is not None

    def describe(self, device: str) -> str:
        """The device in words, for the screen: `cpu, 2 threads`."""
        if device == "cuda" and self.gpus:
            return f"cuda, {self.gpus[0].name}"
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"cpu, {threads}" if device == "cpu" else device

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["cpu_flags"] = sorted(self.cpu_flags & _INTERESTING_FLAGS)
        del data["modules"]
        return data


_ARITHMETIC = {
    "bf16": frozenset({"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"}),
    "fp16": frozenset({"avx512_fp16", "amx_fp16", "fphp", "asimdhp"}),
}
"""Flags of which a processor needs one, in Linux's words."""

_INTERESTING_FLAGS = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"}.union(*_ARITHMETIC.values())
)


@cache
def this_machine() -> Environment:
    """Look at the machine once in a process."""
    cpu, flags = _processor()
    total, available = _host_memory()
    torch_cuda = _torch_cuda()
    return Environment(
        python=platform.python_version(),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        cpu_flags=flags,
        threads=available_processors(),
        memory_bytes=total,
        available_memory_bytes=available,
        gpus=_nvidia_gpus() if torch_cuda else (),
        has_mps=sys.platform == "darwin" and platform.machine() == "arm64",
        torch_cuda=torch_cuda,
        versions={name: v for name in DISTRIBUTIONS if (v := version_of(name))},
    )


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution; None when it isn't installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def available_processors() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> tuple[str, frozenset[str]]:
    """The processor's name and what it can do, in the system's own words."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    found = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = found.get("flags") or found.get("Features") or ""
    return found.get("model name", platform.machine()), frozenset(flags.split())


def _host_memory() -> tuple[int | None, int | None]:
    """Total and available memory in bytes, within the limit that a container sets."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None, None
    kib = dict(re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB$", text, re.MULTILINE))
    total, available = int(kib["MemTotal"]) * 1024, int(kib["MemAvailable"]) * 1024
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, limit - used)


def _torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built with, read from its version file."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return None
    match = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else None


def _nvidia_gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, asked of the driver's NVML library, in NVML's order.

    NVML counts by PCI address. So does CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID; without it CUDA puts what it takes for
    the fastest first, which can't be known here: of different GPUs in one machine another one may then be the first.
    A run records the one that it had. Names of MIG instances aren't looked up: all GPUs count as visible.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1" if sys.platform != "win32" else "nvml.dll")
    except OSError:
        return ()
    if nvml.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        found = {i: gpu for i in range(count.value) if (gpu := _ask_nvml(nvml, i))}
        by_name = visible is not None and "GPU-" in visible
        uuids = {i: _uuid(nvml, i) for i in found} if by_name else {}
    finally:
        nvml.nvmlShutdown()
    if visible is None or "MIG-" in visible:
        return tuple(found.values())
    # CUDA looks no further than the first entry that names no GPU.
    chosen = (_index(part.strip(), uuids) for part in visible.split(","))
    return tuple(found[index] for index in takewhile(found.__contains__, chosen))


def _index(named: str, uuids: Mapping[int, str]) -> int:
    """Which GPU an entry of CUDA_VISIBLE_DEVICES names, by number or by the beginning of its UUID; -1 if none."""
    if named.isdigit():
        return int(named)
    fitting = [index for index, uuid in uuids.items() if named and uuid.startswith(named)]
    return fitting[0] if len(fitting) == 1 else -1


def _uuid(nvml: ctypes.CDLL, index: int) -> str:
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    nvml.nvmlDeviceGetUUID(handle, name, len(name))
    return name.value.decode()


def _ask_nvml(nvml: ctypes.CDLL, index: int) -> Gpu | None:
    handle = ctypes.c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return None
    name = ctypes.create_string_buffer(96)
    major, minor = ctypes.c_int(), ctypes.c_int()
    memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
    nvml.nvmlDeviceGetName(handle, name, len(name))
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    nvml.nvmlDeviceGetMemoryInfo(handle, memory)
    return Gpu(name.value.decode(), (major.value, minor.value), int(memory[0]))
