"""Facts about this machine, without importing torch and without starting a program.

NVIDIA GPUs are asked for through the driver's own library (NVML); versions come from the installed packages' metadata.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata, util
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from fastdiff.machine.hardware import answer, find_gpu, load_nvml, number, started

DISTRIBUTIONS = ("torch", "diffusers", "transformers", "torchao", "accelerate", "hydra-core")

TOOLS = frozenset({"c", "c++", "Python.h", "cuda.h"})
"""What compiling may need of a machine: compilers of two languages, Python's headers, a CUDA toolkit's headers."""


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
    torch_cuda = _built_for("cuda")
    nvml = load_nvml()
    gpus = _nvidia_gpus(nvml) if torch_cuda else ()
    builds = {name: _built_for(name) for name in ("hip", "xpu")}
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
        gpu_unusable=_gpu_unusable(nvml, gpus, torch_cuda, builds),
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


def requirement_of_torch(name: str) -> str | None:
    """What the installed torch wants of a distribution, as pip reads it: `triton==3.7.0`; None where it wants none."""
    try:
        wanted = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        return None
    found = (re.match(rf"{name}\s*([=<>!~][^;\s]*)", each) for each in wanted)
    return next((f"{name}{match[1]}" for match in found if match), None)


def tools_here() -> frozenset[str]:
    """Which of TOOLS this machine has, looked for where Inductor and Triton look; no program is started.

    Either takes the variable that names its compiler for one program, whatever it says, and looks for no other then
    (triton/runtime/build.py, torch/_inductor/cpp_builder.py).
    """
    there = {
        "c": _has_program("CC", "gcc", "clang"),
        "c++": _has_program("CXX", "clang++" if sys.platform == "darwin" else "g++"),
        "Python.h": any((folder / "Python.h").is_file() for folder in _python_headers()),
        "cuda.h": _has_cuda_headers(),
    }
    return frozenset(name for name, found in there.items() if found)


def _has_program(variable: str, *known: str) -> bool:
    """Whether the program that a variable names is there, or one of those that are known if it isn't set."""
    named = os.environ.get(variable)
    return any(map(shutil.which, known if named is None else (named,)))


def _python_headers() -> Iterator[Path]:
    """Folders of Python's headers: Debian's own scheme names another one, macOS's frameworks keep them apart."""
    for scheme in dict.fromkeys((sysconfig.get_default_scheme(), "posix_prefix")):
        yield Path(sysconfig.get_path("include", scheme))
    yield Path(sysconfig.get_path("stdlib")).parent.parent / "Headers"


_USUAL_CUDA_HOME = Path("/usr/local/cuda")


def _has_cuda_headers() -> bool:
    """Whether the CUDA toolkit that torch would take has the headers that generated C++ includes.

    Those in pip's packages, such as nvidia-cuda-runtime's, don't count: torch looks nowhere else (torch/utils/cpp_extension.py).
    """
    home, beside = _cuda_home(), os.environ.get("CUDA_INC_PATH")
    if home is None:
        return False
    folders = [home / "include", *([Path(beside)] if beside else [])]
    headers = ("cuda.h", "cuda_runtime.h")
    return all(any((folder / header).is_file() for folder in folders) for header in headers)


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
    """The version of `cuda`, `hip` or `xpu` that the installed torch was built for, read from its version file."""
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
_OTHERS = {"hip": "AMD's ROCm", "xpu": "Intel's GPUs, version"}
"""What else torch may be built for, by its version file's names."""

_LIBRARY_NOT_FOUND = 12


def _gpu_unusable(
    nvml: Any, gpus: Sequence[Gpu], torch_cuda: str | None, others: Mapping[str, str | None]
) -> Unusable | None:
    """Why a GPU that this machine seems to have can't be computed on; None if none seems to be, or one can.

    others: the versions of what else torch is built for.
    """
    torch = f"the installed torch {version_of('torch') or ''}".strip()
    for name, words in _OTHERS.items():
        if version := others.get(name):
            return Unusable(
                f"{torch} is built for {words} {version}, which fastdiff can't use yet",
                "an NVIDIA GPU with a CUDA build of torch",
            )
    if not gpus and not any(map(os.path.exists, _SIGNS_OF_NVIDIA)):
        return None
    here = "there is an NVIDIA driver here, but"
    if torch_cuda is None:
        return Unusable(f"{here} {torch} is built without CUDA", "a CUDA build of torch")
    with started(nvml) as reason:
        if reason:
            way = (
                f"in a container --gpus all and {_CAPABILITIES}, after a driver's update a restart"
            )
            return Unusable(f"{here} nothing can be learned of its GPUs: {reason}", way)
        runs = ctypes.c_int()
        ask = getattr(nvml, "nvmlSystemGetCudaDriverVersion_v2", None)
        code = None if ask is None else ask(ctypes.byref(runs))
    if not gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        way = "a job with a GPU, or a MIG instance" if visible is None else "unset that variable"
        return Unusable(f"{here} no GPU is visible to this process{hidden}", way)
    if code == _LIBRARY_NOT_FOUND:
        way = f"the driver's whole installation, in a container {_CAPABILITIES}"
        return Unusable(f"{here} not its CUDA library (libcuda)", way)
    return _too_old(runs.value, torch, torch_cuda) if code == 0 else None


_CAPABILITIES = "NVIDIA_DRIVER_CAPABILITIES=compute,utility"


def _too_old(driver: int, torch: str, torch_cuda: str) -> Unusable | None:
    """Whether a driver can't run torch's CUDA. driver: the newest CUDA that it runs, 12040 for 12.4.

    A driver runs every CUDA of its own major version and those before it
    (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
    """
    runs, built = driver // 1000, int(torch_cuda.partition(".")[0])
    if runs >= built:
        return None
    newest = f"{runs}.{driver % 1000 // 10}"
    return Unusable(
        f"{torch} is built for CUDA {torch_cuda}, and this machine's NVIDIA driver runs CUDA {newest} at most",
        f"a driver of CUDA {built}, or a torch that is built for CUDA {newest}",
    )


def _nvidia_gpus(nvml: Any) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, one for each entry, asked of the driver's NVML library, in NVML's order.

    NVML counts by PCI address, as CUDA does in the process of a run, which is told so unless CUDA_DEVICE_ORDER is
    set. A run records the GPU that it had.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with started(nvml) as reason:
        if reason:
            return ()
        handles = [
            h for i in range(number(nvml, "nvmlDeviceGetCount_v2") or 0) if (h := _handle(nvml, i))
        ]
        seen = {
            answer(nvml, "nvmlDeviceGetUUID", handle) or str(at): gpu
            for at, handle in enumerate(handles)
            if (gpu := _computed_on(nvml, handle))
        }
        if visible is None:
            return tuple(seen.values())
        named = (_named(nvml, entry.strip(), seen) for entry in visible.split(","))
        # CUDA looks no further than the first entry that names no GPU.
        return tuple(gpu for gpu in takewhile(lambda gpu: gpu is not None, named) if gpu)


def _computed_on(nvml: Any, handle: Any) -> Gpu | None:
    """What CUDA makes of a GPU that is named as a whole: of one that is divided into MIG instances, the first."""
    divided = number(nvml, "nvmlDeviceGetMigMode", handle, answers=2)
    if not divided:
        return _ask_nvml(nvml, handle)
    return next((_ask_nvml(nvml, instance) for instance in _instances(nvml, handle)), None)


def _instances(nvml: Any, handle: Any) -> Iterator[Any]:
    """The MIG instances of a GPU that this process may see."""
    for index in range(number(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        instance = ctypes.c_void_p()
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index, ctypes.byref(instance)) == 0:
            yield instance


def _named(nvml: Any, entry: str, seen: Mapping[str, Gpu]) -> Gpu | None:
    """The GPU that an entry of CUDA_VISIBLE_DEVICES names: by number, by the beginning of its UUID, or as a MIG instance.

    An instance that NVML doesn't know counts as the first GPU, for it may well be there.
    """
    if entry.isdigit():
        return list(seen.values())[int(entry)] if int(entry) < len(seen) else None
    if entry.startswith("MIG-"):
        instance = find_gpu(nvml, [entry]) or _instance_by_numbers(nvml, entry)
        if instance is not None:
            return _ask_nvml(nvml, instance)
        return next((replace(gpu, uuid=None) for gpu in seen.values()), None)
    fitting = [gpu for uuid, gpu in seen.items() if entry and uuid.startswith(entry)]
    return fitting[0] if len(fitting) == 1 else None


def _instance_by_numbers(nvml: Any, entry: str) -> Any:
    """The MIG instance that drivers before R470 call `MIG-GPU-<uuid>/<GPU instance>/<compute instance>`; None if none is."""
    match = re.fullmatch(r"MIG-(GPU-[\w-]+)/(\d+)/(\d+)", entry)
    whole = find_gpu(nvml, [match[1]]) if match else None
    if match is None or whole is None:
        return None
    asked = ("nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId")
    wanted = [int(match[2]), int(match[3])]
    fitting = (i for i in _instances(nvml, whole) if [number(nvml, a, i) for a in asked] == wanted)
    return next(fitting, None)


def _handle(nvml: Any, index: int) -> Any:
    handle = ctypes.c_void_p()
    asked = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    return handle if asked == 0 else None


def _ask_nvml(nvml: Any, handle: Any) -> Gpu:
    """What NVML says of a GPU or an instance."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
    whole = ctypes.c_void_p()
    # Of an instance NVML tells name and memory, and its GPU the capability.
    asked = getattr(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", None)
    if asked is None or asked(handle, ctypes.byref(whole)) != 0:
        whole = handle
    code = nvml.nvmlDeviceGetCudaComputeCapability(whole, ctypes.byref(major), ctypes.byref(minor))
    told = nvml.nvmlDeviceGetMemoryInfo(handle, memory) == 0 and memory[0] > 0
    return Gpu(
        answer(nvml, "nvmlDeviceGetName", handle) or "NVIDIA GPU",
        (major.value, minor.value) if code == 0 else None,
        int(memory[0]) if told else None,
        answer(nvml, "nvmlDeviceGetUUID", handle),
    )
