"""Facts about this machine, without importing torch and without starting a program.

NVIDIA GPUs are asked for through the driver's own library (NVML); versions come from the installed packages' metadata.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

from fastdiff.machine import answer, find_gpu, load_nvml, number, started

DISTRIBUTIONS = ("torch", "diffusers", "transformers", "torchao", "accelerate", "hydra-core")

TOOLS = frozenset({"c", "c++", "Python.h", "cuda.h"})
"""What compiling may need of a machine: compilers of two languages, Python's headers, a CUDA toolkit's headers."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, or a MIG instance of one: its name, and compute capability such as (9, 0).

    memory_bytes: None where NVML doesn't tell, as of a GPU that computes in the host's memory.
    uuid: NVML's name for it, the same in every process; None if unknown.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int | None
    uuid: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Environment:
    """What planning needs to know about a machine. Tests build their own.

    threads: processors that this process may use.
    memory_bytes, available_memory_bytes: of the host; None where the system doesn't say.
    torch_cuda: the CUDA version that torch was built with; None for a CPU build.
    gpu_unusable: why a GPU that seems to be here can't be computed on; None if none seems to be, or one can.
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
    gpu_unusable: str | None = None
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
    torch_cuda = _built_for("cuda")
    nvml = load_nvml()
    gpus = _nvidia_gpus(nvml) if torch_cuda else ()
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
        torch_cuda=torch_cuda,
        gpu_unusable=_gpu_unusable(nvml, gpus, torch_cuda, _built_for("hip")),
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


def tools_here() -> frozenset[str]:
    """Which of TOOLS this machine has, looked for where Inductor and Triton look; no program is started.

    Triton takes gcc, clang or what CC names, and no other C compiler.
    """
    kept_apart = ("cl",) if os.name == "nt" else ()
    there = {
        "c": _has_program("CC", ("gcc", "clang", *kept_apart)),
        "c++": _has_program("CXX", ("g++", "clang++", "c++", *kept_apart)),
        "Python.h": any((folder / "Python.h").is_file() for folder in _python_headers()),
        "cuda.h": (home := _cuda_home()) is not None and (home / "include" / "cuda.h").is_file(),
    }
    return frozenset(name for name, found in there.items() if found)


def _has_program(variable: str, known: Iterable[str]) -> bool:
    """Whether the program that a variable names, or one that is known, is on the PATH."""
    named = shlex.split(os.environ.get(variable, ""))[:1]
    return any(shutil.which(program) for program in (*named, *known))


def _python_headers() -> Iterator[Path]:
    """Folders of Python's headers: Debian's own scheme names another one, macOS's frameworks keep them apart."""
    for scheme in dict.fromkeys((sysconfig.get_default_scheme(), "posix_prefix")):
        yield Path(sysconfig.get_path("include", scheme))
    yield Path(sysconfig.get_path("stdlib")).parent.parent / "Headers"


_USUAL_CUDA_HOME = Path("/usr/local/cuda")


def _cuda_home() -> Path | None:
    """The CUDA toolkit that torch would take: the one that is named, else nvcc's, else the usual place."""
    if named := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(named)
    if nvcc := shutil.which("nvcc"):
        return Path(nvcc).parent.parent
    return _USUAL_CUDA_HOME if _USUAL_CUDA_HOME.is_dir() else None


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


def _built_for(platform_name: str) -> str | None:
    """The version of `cuda` or `hip` that the installed torch was built for, read from its version file."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return None
    match = re.search(rf"^{platform_name}\b.*=\s*['\"]([\d.]+)", text, re.MULTILINE)
    return match.group(1) if match else None


_SIGNS_OF_NVIDIA = (
    "/proc/driver/nvidia/version",
    "/dev/nvidiactl",
    "/dev/nvhost-gpu",
    "/dev/nvgpu",
)
_SIGN_OF_AMD = "/dev/kfd"


def _gpu_unusable(
    nvml: Any, gpus: Sequence[Gpu], torch_cuda: str | None, torch_hip: str | None
) -> str | None:
    """Why a GPU that this machine seems to have can't be computed on; None if none seems to be, or one can.

    A driver runs every CUDA of its own major version and those before it
    (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
    """
    torch = f"the installed torch {version_of('torch') or ''}".strip()
    if torch_hip:
        built = f"{torch} is built for AMD's ROCm {torch_hip}, which fastdiff doesn't use yet"
        return built if os.path.exists(_SIGN_OF_AMD) else None
    if not any(map(os.path.exists, _SIGNS_OF_NVIDIA)):
        return None
    if torch_cuda is None:
        return f"there is an NVIDIA driver here, but {torch} is built without CUDA"
    with started(nvml) as reason:
        if reason:
            return (
                f"there is an NVIDIA driver here, but nothing can be learned of its GPUs: {reason} (in a container: "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
            )
        runs = number(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    if not gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        return f"there is an NVIDIA driver here, but no GPU is visible to this process{hidden}"
    if runs is not None and runs // 1000 < int(torch_cuda.partition(".")[0]):
        newest = f"{runs // 1000}.{runs % 1000 // 10}"
        return f"{torch} is built for CUDA {torch_cuda}, and this machine's NVIDIA driver runs CUDA {newest} at most"
    return None


def _nvidia_gpus(nvml: Any) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, asked of the driver's NVML library, in NVML's order.

    NVML counts by PCI address, as CUDA does in the process of a run, which is told so unless CUDA_DEVICE_ORDER is
    set. A run records the GPU that it had. Of MIG instances CUDA takes the first that is named; where NVML knows none of
    that name, all GPUs count as visible.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with started(nvml) as reason:
        if reason:
            return ()
        handles = {
            i: h
            for i in range(number(nvml, "nvmlDeviceGetCount_v2") or 0)
            if (h := _handle(nvml, i))
        }
        found = {i: gpu for i, handle in handles.items() if (gpu := _ask_nvml(nvml, handle))}
        if visible is None:
            return tuple(found.values())
        chosen = []
        for entry in (part.strip() for part in visible.split(",")):
            if entry.startswith("MIG-"):
                instance = find_gpu(nvml, [entry])
                mig = _ask_nvml(nvml, instance) if instance is not None else None
                return (mig,) if mig else tuple(found.values())
            # CUDA looks no further than the first entry that names no GPU.
            if (gpu := _named(entry, found)) is None:
                break
            chosen.append(gpu)
    return tuple(chosen)


def _named(entry: str, found: Mapping[int, Gpu]) -> Gpu | None:
    """The GPU that an entry of CUDA_VISIBLE_DEVICES names, by number or by the beginning of its UUID."""
    if entry.isdigit():
        return found.get(int(entry))
    fitting = [gpu for gpu in found.values() if entry and (gpu.uuid or "").startswith(entry)]
    return fitting[0] if len(fitting) == 1 else None


def _handle(nvml: Any, index: int) -> Any:
    handle = ctypes.c_void_p()
    asked = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    return handle if asked == 0 else None


def _ask_nvml(nvml: Any, handle: Any) -> Gpu | None:
    """What NVML says of a GPU; None where it doesn't tell its compute capability, without which nothing can be planned."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
    whole = ctypes.c_void_p()
    # Of an instance NVML tells name and memory, and its GPU the capability.
    asked = getattr(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", None)
    if asked is None or asked(handle, ctypes.byref(whole)) != 0:
        whole = handle
    if (
        nvml.nvmlDeviceGetCudaComputeCapability(whole, ctypes.byref(major), ctypes.byref(minor))
        != 0
    ):
        return None
    told = nvml.nvmlDeviceGetMemoryInfo(handle, memory) == 0 and memory[0] > 0
    return Gpu(
        answer(nvml, "nvmlDeviceGetName", handle) or "NVIDIA GPU",
        (major.value, minor.value),
        int(memory[0]) if told else None,
        answer(nvml, "nvmlDeviceGetUUID", handle),
    )
