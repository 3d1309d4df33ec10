"""Facts about this machine, without importing torch and without starting a program.

NVIDIA GPUs are asked for through the driver's own library; versions come from the installed packages' metadata.
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
from pathlib import Path
from typing import Any

from fastdiff.machine.nvml import Gpu, Unusable, visible_gpus, why_unusable
from fastdiff.machine.toolchain import tools_here

DISTRIBUTIONS = ("torch", "diffusers", "transformers", "torchao", "accelerate", "hydra-core")

TOOLS = frozenset({"c", "c++", "Python.h", "cuda.h"})
"""What compiling may need of a machine: compilers of two languages, Python's headers, a CUDA toolkit's headers."""


@dataclass(frozen=True)
class Environment:
    """What planning needs to know about a machine. Tests build their own.

    threads: processors that this process may use.
    memory_bytes, available_memory_bytes: of the host; None where the system doesn't say.
    torch_cuda: the CUDA version that torch was built with; None for a CPU build.
    gpu_unusable: why a GPU that seems to be here can't be computed on; None if none seems to be, or one can.
    cuda_order: how CUDA counts GPUs in a run's process; by PCI_BUS_ID as NVML does, unless the user says otherwise.
    versions: of installed distributions, by name.
    modules: import names that `has_module` knows without looking; tests fill it.
    tools: those of TOOLS that `has_tool` knows without looking; tests fill it.
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
    gpu_unusable: Unusable | None = None
    cuda_order: str = "PCI_BUS_ID"
    versions: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, bool] = field(default_factory=dict)
    tools: frozenset[str] | None = None

    def device(self, asked: str) -> str:
        """The device that `auto` means here; any other name stays as it is."""
        if asked != "auto":
            return asked
        if self.has_cuda:
            return "cuda"
        return "mps" if self.has_mps else "cpu"

    @property
    def has_cuda(self) -> bool:
        """Whether the installed torch can compute on a GPU here, as far as can be told without it."""
        return bool(self.gpus and self.torch_cuda and not self.gpu_unusable)

    def room_bytes(self, device: str) -> int | None:
        """Memory that a run may take: all of its GPU's own, else what is available of the host's. None if unknown."""
        own = self.gpus[0].memory_bytes if device == "cuda" and self.gpus else None
        return own or self.available_memory_bytes

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

    def has_tool(self, name: str) -> bool:
        """Whether one of TOOLS is here; no program is started to find out."""
        return name in (tools_here() if self.tools is None else self.tools)

    def describe(self, device: str) -> str:
        """The device in words, for the screen: `cpu, 2 threads`."""
        if device == "cuda" and self.gpus:
            return f"cuda, {self.gpus[0].name}"
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"cpu, {threads}" if device == "cpu" else device

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["cpu_flags"] = sorted(self.cpu_flags & _INTERESTING_FLAGS)
        del data["modules"], data["tools"]
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
    builds = _torch_builds()
    gpus = visible_gpus() if "cuda" in builds else ()
    return Environment(
        python=platform.python_version(),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        cpu_flags=flags,
        threads=available_processors(),
        memory_bytes=total,
        available_memory_bytes=available,
        gpus=gpus,
        has_mps=sys.platform == "darwin" and platform.machine() == "arm64",
        torch_cuda=builds.get("cuda"),
        gpu_unusable=why_unusable(gpus, version_of("torch"), builds),
        cuda_order=os.environ.get("CUDA_DEVICE_ORDER") or "PCI_BUS_ID",
        versions={name: v for name in DISTRIBUTIONS if (v := version_of(name))},
    )


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution; None when it isn't installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


FASTDIFF_VERSION = version_of("fastdiff-inference") or "0+unknown"
"""fastdiff's own; unknown in a checkout that nobody installed."""


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
        name = _macs_processor() if sys.platform == "darwin" else platform.processor()
        return name or platform.machine(), frozenset()
    found = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = found.get("flags") or found.get("Features") or ""
    return found.get("model name", platform.machine()), frozenset(flags.split())


def _macs_processor() -> str | None:
    """A Mac's processor by the name that it is sold under: Python says `arm` of every one since the M1."""
    name, libc = b"machdep.cpu.brand_string", ctypes.CDLL(None)
    buffer, size = ctypes.create_string_buffer(128), ctypes.c_size_t(128)
    if libc.sysctlbyname(name, buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    return buffer.value.decode(errors="replace") or None


def _host_memory() -> tuple[int, int]:
    """Total and available memory in bytes, within the limit that a container sets."""
    import psutil

    memory = psutil.virtual_memory()
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return memory.total, memory.available
    return min(memory.total, limit), min(memory.available, limit - used)


def _torch_builds() -> dict[str, str]:
    """What the installed torch was built for (`cuda`, `hip`, `xpu`) with its version, read from torch's version file."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return {}
    return dict(re.findall(r"^(cuda|hip|xpu)\b.*=\s*['\"]([\d.]+)", text, re.MULTILINE))
