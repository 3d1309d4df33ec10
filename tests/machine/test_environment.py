"""What is known of a machine, read from its own files and simulated drivers."""

from __future__ import annotations

import ctypes
import dataclasses
import json
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdiff.machine import environment
from fastdiff.machine.environment import Environment, Gpu, Unusable, this_machine, version_of

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_520_809_984)
A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 42_298_834_944)
T4 = Gpu("Tesla T4", (7, 5), 15_843_721_216)


def machine(**facts: Any) -> Environment:
    known: dict[str, Any] = {
        "python": "3.12.1",
        "os": "Linux",
        "cpu": "Some CPU",
        "cpu_flags": frozenset(),
        "threads": 4,
        "memory_bytes": None,
        "available_memory_bytes": None,
    }
    return Environment(**(known | facts))


# The machine that runs the tests -------------------------------------------------------------------


def test_this_machine_is_described_as_plain_data() -> None:
    here = this_machine()
    data = json.loads(json.dumps(here.to_dict()))
    assert data["threads"] == environment.available_processors() >= 1
    assert data["python"].startswith("3.")
    assert not {"modules", "tools"} & set(data)
    assert data["versions"]["torch"] == metadata.version("torch")


def test_a_machine_is_looked_at_once() -> None:
    assert this_machine() is this_machine()


def test_versions_of_what_is_installed_and_what_is_not() -> None:
    assert version_of("hydra-core") == metadata.version("hydra-core")
    assert version_of("no-such-distribution") is None


def test_modules_are_found_without_being_imported() -> None:
    assert machine().has_module("diffusers") is (util.find_spec("diffusers") is not None)
    assert machine().has_module("no_such_module") is False
    assert machine(modules={"no_such_module": True}).has_module("no_such_module") is True
    assert machine(modules={"json": False}).has_module("json") is False


# Devices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "device"),
    [
        ({}, "cpu"),
        ({"gpus": (T4,), "torch_cuda": "12.8"}, "cuda"),
        ({"gpus": (T4,)}, "cpu"),
        ({"torch_cuda": "12.8"}, "cpu"),
        ({"has_mps": True}, "mps"),
        (
            {
                "gpus": (T4,),
                "torch_cuda": "13.0",
                "gpu_unusable": Unusable("a driver too old", "a newer one"),
            },
            "cpu",
        ),
    ],
)
def test_auto_is_the_best_device(facts: dict[str, Any], device: str) -> None:
    assert machine(**facts).device("auto") == device


def test_a_device_that_was_asked_for_stays() -> None:
    assert machine(gpus=(T4,), torch_cuda="12.8").device("cpu") == "cpu"


def test_a_device_in_words() -> None:
    several = machine(gpus=(H100, T4))
    assert several.describe("cuda") == "cuda, NVIDIA H100 80GB HBM3"
    assert several.describe("cpu") == "cpu, 4 threads"
    assert dataclasses.replace(several, threads=1).describe("cpu") == "cpu, 1 thread"
    assert several.describe("mps") == "mps"
    assert several.capability == (9, 0)
    assert machine().capability is None


@pytest.mark.parametrize(
    ("flags", "multiplies"),
    [
        ({"avx2", "avx512f"}, False),
        ({"avx512_bf16"}, True),
        ({"amx_bf16", "amx_tile"}, True),
        ({"bf16"}, True),
    ],
)
def test_bf16_arithmetic_is_told_by_the_processors_flags(flags: set[str], multiplies: bool) -> None:
    assert machine(cpu_flags=frozenset(flags)).processor_computes_in("bf16") is multiplies


# Files of the system -------------------------------------------------------------------------------


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files of the system by path; whatever isn't here doesn't exist."""
    contents: dict[str, str] = {}

    def read(path: Path, *_: Any, **__: Any) -> str:
        if str(path) not in contents:
            raise FileNotFoundError(path)
        return contents[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    return contents


MEMORY = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:   12000000 kB\n"


def test_memory_is_what_the_system_says(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = MEMORY
    assert environment._host_memory() == (16_384_000_000, 12_288_000_000)


def test_memory_stays_within_a_containers_limit(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = MEMORY
    files["/sys/fs/cgroup/memory.max"] = "4000000000\n"
    files["/sys/fs/cgroup/memory.current"] = "1000000000\n"
    assert environment._host_memory() == (4_000_000_000, 3_000_000_000)


def test_a_container_without_a_limit(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = MEMORY
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert environment._host_memory() == (16_384_000_000, 12_288_000_000)


def test_memory_where_the_system_does_not_say(files: dict[str, str]) -> None:
    assert environment._host_memory() == (None, None)


def test_the_processor_of_a_pc_and_of_an_arm_machine(files: dict[str, str]) -> None:
    files["/proc/cpuinfo"] = "model name\t: Some CPU @ 2GHz\nflags\t\t: fpu avx2 avx512_bf16\n"
    assert environment._processor() == (
        "Some CPU @ 2GHz",
        frozenset({"fpu", "avx2", "avx512_bf16"}),
    )
    files["/proc/cpuinfo"] = "BogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16\n"
    assert environment._processor()[1] == {"fp", "asimd", "bf16"}


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: Optional[str] = '12.8'", "12.8"),
        ('cuda = "13.0"', "13.0"),
        ("cuda: Optional[str] = None", None),
        ("hip: Optional[str] = '6.2'", None),
    ],
)
def test_torchs_cuda_version_is_read_from_its_own_file(
    line: str, cuda: str | None, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(origin="/site/torch/__init__.py")
    monkeypatch.setattr(util, "find_spec", lambda name: spec)
    files["/site/torch/version.py"] = f"__version__ = '2.13.0'\n{line}\n"
    assert environment._built_for("cuda") == cuda


def test_no_torch_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert environment._built_for("cuda") is None


# The driver ----------------------------------------------------------------------------------------


class Nvml:
    """Answers as NVML does, for these GPUs."""

    def __init__(self, *gpus: Gpu, works: bool = True) -> None:
        self.gpus, self.works, self.is_shut_down = gpus, works, False

    def nvmlInit_v2(self) -> int:
        return 0 if self.works else 9

    def nvmlShutdown(self) -> int:
        self.is_shut_down = True
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, size: int) -> int:
        name.value = self.gpus[handle.value - 1].name.encode()
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, name: Any, size: int) -> int:
        name.value = f"GPU-{handle.value - 1}a-uuid".encode()
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self.gpus[handle.value - 1].capability
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory[0] = self.gpus[handle.value - 1].memory_bytes
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        return 6  # not found

    def nvmlDeviceGetMigMode(self, handle: Any, now: Any, later: Any) -> int:
        return 3  # not supported


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (H100, A100, T4)),
        ("0", (H100,)),
        ("2,0", (T4, H100)),
        (" 1 , 2 ", (A100, T4)),
        ("", ()),
        ("-1", ()),
        ("0,9,1", (H100,)),
        ("1,-1,0", (A100,)),
        ("GPU-1a-uuid", (A100,)),
        ("GPU-2, GPU-0a", (T4, H100)),
        ("GPU-0a,GPU-9", (H100,)),
        ("GPU-", ()),  # which one is it?
    ],
)
def test_gpus_are_those_that_cuda_would_show(
    visible: str | None, expected: tuple[Gpu, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml(H100, A100, T4)
    see(monkeypatch, visible)
    found = environment._nvidia_gpus(nvml)
    assert found == expected
    uuids = {H100: "GPU-0a-uuid", A100: "GPU-1a-uuid", T4: "GPU-2a-uuid"}
    assert [gpu.uuid for gpu in found] == [uuids[gpu] for gpu in expected]
    assert nvml.is_shut_down


def see(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    """What CUDA_VISIBLE_DEVICES says."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


class Divided(Nvml):
    """One GPU, divided into instances: those of these numbers, and as many that another container has."""

    numbers = (7, 9)

    def __init__(self, whole: Gpu, *instances: Gpu, hidden: int = 1) -> None:
        super().__init__(whole, *instances)
        self.hidden = hidden

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def nvmlDeviceGetMigMode(self, handle: Any, now: Any, later: Any) -> int:
        now._obj.value, later._obj.value = 1, 0
        return 0

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> int:
        count._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int, instance: Any) -> int:
        if not self.hidden <= index < self.hidden + len(self.gpus) - 1:
            return 6
        instance._obj.value = 2 + index - self.hidden
        return 0

    def nvmlDeviceGetGpuInstanceId(self, handle: Any, number: Any) -> int:
        number._obj.value = self.numbers[handle.value - 2]
        return 0

    def nvmlDeviceGetComputeInstanceId(self, handle: Any, number: Any) -> int:
        number._obj.value = 0
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        known = {b"GPU-0a-uuid": 1, b"MIG-7": 2, b"MIG-9": 3}
        handle._obj.value = known.get(name, 0)
        return 0 if name in known else 6

    def nvmlDeviceGetUUID(self, handle: Any, name: Any, size: int) -> int:
        name.value = ("GPU-0a-uuid", "MIG-7", "MIG-9")[handle.value - 1].encode()
        return 0

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Any, whole: Any) -> int:
        if handle.value == 1:
            return 2  # no instance
        whole._obj.value = 1
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        return (
            3
            if handle.value > 1
            else super().nvmlDeviceGetCudaComputeCapability(handle, major, minor)
        )


SMALL = Gpu("NVIDIA H100 MIG 1g.10gb", (9, 0), 10_200_547_328)
LARGE = Gpu("NVIDIA H100 MIG 3g.40gb", (9, 0), 42_144_366_592)


@pytest.mark.parametrize(
    ("visible", "expected", "uuids"),
    [
        ("MIG-7", (SMALL,), ["MIG-7"]),
        ("MIG-9,MIG-7", (LARGE, SMALL), ["MIG-9", "MIG-7"]),
        ("MIG-GPU-0a-uuid/9/0", (LARGE,), ["MIG-9"]),  # as drivers before R470 name it
        (None, (SMALL,), ["MIG-7"]),  # CUDA takes the first instance that it may see
        ("0", (SMALL,), ["MIG-7"]),
        ("GPU-0a-uuid", (SMALL,), ["MIG-7"]),
        ("1", (), []),
        ("MIG-GPU-0a-uuid/3/0", (SMALL,), [None]),  # which NVML doesn't know: it may well be there
        ("MIG-8932f937", (SMALL,), [None]),
    ],
)
def test_an_instance_of_a_gpu_has_its_own_memory(
    visible: str | None,
    expected: tuple[Gpu, ...],
    uuids: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, visible)
    found = environment._nvidia_gpus(Divided(H100, SMALL, LARGE))
    assert found == expected
    assert [gpu.uuid for gpu in found] == uuids


def test_a_gpu_that_is_divided_without_an_instance_for_us_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, None)
    assert environment._nvidia_gpus(Divided(H100)) == ()


def test_a_gpu_that_computes_in_the_hosts_memory_has_none_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unified(Nvml):
        def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
            return 3  # not supported

    see(monkeypatch, None)
    gb10 = Gpu("NVIDIA GB10", (12, 1), None)
    assert environment._nvidia_gpus(Unified(gb10)) == (gb10,)
    here = machine(gpus=(gb10,), torch_cuda="13.0", available_memory_bytes=100)
    assert (here.room_bytes("cuda"), here.room_bytes("cpu")) == (100, 100)
    assert machine(gpus=(T4,), torch_cuda="13.0").room_bytes("cuda") == T4.memory_bytes


def test_a_gpu_that_tells_neither_name_nor_capability_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mute(Nvml):
        def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
            return 3

        def nvmlDeviceGetName(self, handle: Any, name: Any, size: int) -> int:
            return 3

    see(monkeypatch, None)
    (found,) = environment._nvidia_gpus(Mute(H100))
    assert (found.name, found.capability) == ("NVIDIA GPU", None)
    assert machine(gpus=(found,), torch_cuda="13.0").capability is None


def test_no_driver_and_a_driver_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, None)
    assert environment._nvidia_gpus(None) == ()
    assert environment._nvidia_gpus(Nvml(H100, works=False)) == ()


# GPUs that can't be computed on --------------------------------------------------------------------

DRIVER = "/proc/driver/nvidia/version"
TORCH = f"the installed torch {metadata.version('torch')}"
HERE = "there is an NVIDIA driver here, but"


class Old(Nvml):
    """A driver of CUDA 12.4."""

    def nvmlSystemGetCudaDriverVersion_v2(self, number: Any) -> int:
        number._obj.value = 12040
        return 0


class WithoutCuda(Nvml):
    """A container that was given the driver's NVML, but not its CUDA."""

    def nvmlSystemGetCudaDriverVersion_v2(self, number: Any) -> int:
        return 12


NOT_LOADED = "NVML (libnvidia-ml, which comes with the driver) can't be loaded"
LEARN = "in a container --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility, after a driver's update a restart"
OTHER = "which fastdiff can't use yet"
NVIDIAS = "an NVIDIA GPU with a CUDA build of torch"


@pytest.mark.parametrize(
    ("signs", "nvml", "gpus", "builds", "expected"),
    [
        ([], None, (), {}, None),
        ([], None, (), {"cuda": "13.0"}, None),
        (
            [DRIVER],
            None,
            (),
            {},
            (f"{HERE} {TORCH} is built without CUDA", "a CUDA build of torch"),
        ),
        ([], None, (), {"hip": "6.4"}, (f"{TORCH} is built for AMD's ROCm 6.4, {OTHER}", NVIDIAS)),
        (
            [],
            None,
            (),
            {"xpu": "20250301"},
            (f"{TORCH} is built for Intel's GPUs, version 20250301, {OTHER}", NVIDIAS),
        ),
        (
            ["/dev/nvhost-gpu"],  # a Jetson
            None,
            (),
            {"cuda": "13.0"},
            (f"{HERE} nothing can be learned of its GPUs: {NOT_LOADED}", LEARN),
        ),
        (
            [DRIVER],
            Nvml(works=False),
            (),
            {"cuda": "13.0"},
            (
                f"{HERE} nothing can be learned of its GPUs: NVML can't be started: its error 9",
                LEARN,
            ),
        ),
        (
            [],  # as under WSL
            Old(H100),
            (H100,),
            {"cuda": "13.0"},
            (
                f"{TORCH} is built for CUDA 13.0, and this machine's NVIDIA driver runs CUDA 12.4 at most",
                "a driver of CUDA 13, or a torch that is built for CUDA 12.4",
            ),
        ),
        ([DRIVER], Old(H100), (H100,), {"cuda": "12.8"}, None),  # one major version is enough
        ([DRIVER], Old(H100), (H100,), {"cuda": "11.8"}, None),
        ([DRIVER], Nvml(H100), (H100,), {"cuda": "13.0"}, None),  # which doesn't say
        (
            [DRIVER],
            WithoutCuda(H100),
            (H100,),
            {"cuda": "13.0"},
            (
                f"{HERE} not its CUDA library (libcuda)",
                "the driver's whole installation, in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            ),
        ),
    ],
)
def test_why_a_gpu_that_is_here_cannot_be_used(
    signs: list[str],
    nvml: Any,
    gpus: tuple[Gpu, ...],
    builds: dict[str, str],
    expected: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment.os.path, "exists", lambda path: path in signs)
    assert environment._gpu_unusable(nvml, gpus, builds.get("cuda"), builds) == expected


def test_a_gpu_that_is_hidden_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.os.path, "exists", lambda path: path == DRIVER)
    reason = f"{HERE} no GPU is visible to this process"
    see(monkeypatch, None)
    assert environment._gpu_unusable(Nvml(), (), "13.0", {}) == (
        reason,
        "a job with a GPU, or a MIG instance",
    )
    see(monkeypatch, "-1")
    assert environment._gpu_unusable(Nvml(H100), (), "13.0", {}) == (
        f"{reason} (CUDA_VISIBLE_DEVICES=-1)",
        "unset that variable",
    )


# What compiling needs ------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with one empty folder of programs, and no headers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX", "CUDA_HOME", "CUDA_PATH", "CUDA_INC_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "_python_headers", lambda: [tmp_path / "include"])
    monkeypatch.setattr(environment, "_USUAL_CUDA_HOME", tmp_path / "cuda")
    return tmp_path


def program(file: Path) -> None:
    """A program that nobody may start."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/nowhere\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "tool"),
    [("gcc", "c"), ("clang", "c"), ("cc", None), ("g++", "c++"), ("clang++", None), ("c++", None)],
)
def test_compilers_are_looked_for_and_none_is_started(
    bare: Path, name: str, tool: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.sys, "platform", "linux")
    assert environment.tools_here() == set()
    program(bare / name)
    assert environment.tools_here() == ({tool} if tool else set())


def test_a_macs_cpp_compiler_is_clang(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "clang++")
    monkeypatch.setattr(environment.sys, "platform", "darwin")
    assert environment.tools_here() == {"c++"}


@pytest.mark.parametrize(("variable", "tool"), [("CC", "c"), ("CXX", "c++")])
@pytest.mark.parametrize(
    ("named", "works"), [("my-own", True), ("my-own -O2", False), ("gone", False), ("", False)]
)
def test_a_compiler_that_is_named_is_one_program_and_no_other_is_looked_for(
    bare: Path,
    variable: str,
    tool: str,
    named: str,
    works: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("my-own", "gcc", "g++"):
        program(bare / name)
    assert environment.tools_here() == {"c", "c++"}
    monkeypatch.setenv(variable, named)
    assert environment.tools_here() == {"c", "c++"} - (set() if works else {tool})


def test_torch_takes_a_named_cpp_compiler_for_one_program() -> None:
    """As the plan has it: with other words behind the program's name Inductor finds none."""
    from torch._inductor import config, cpp_builder, exc

    cpp_builder.cpp_compiler_search.cache_clear()
    named = config.patch({"cpp.cxx": (None, "g++ -O2")})
    with named, pytest.raises(exc.InvalidCxxCompiler):
        cpp_builder.get_cpp_compiler()
    cpp_builder.cpp_compiler_search.cache_clear()


def test_pythons_headers(bare: Path) -> None:
    (bare / "include").mkdir()
    assert environment.tools_here() == set()
    (bare / "include" / "Python.h").write_text("")
    assert environment.tools_here() == {"Python.h"}


@pytest.mark.parametrize("found_by", ["CUDA_HOME", "CUDA_PATH", "nvcc", "the usual place"])
def test_a_cuda_toolkit_is_found_where_torch_finds_it(
    bare: Path, found_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = bare / ("cuda" if found_by == "the usual place" else "cuda-13")
    program(home / "bin" / "nvcc")
    if found_by == "nvcc":
        monkeypatch.setenv("PATH", str(home / "bin"))
    elif found_by.startswith("CUDA"):
        monkeypatch.setenv(found_by, str(home))
    assert environment.tools_here() == set()  # a compiler without its headers
    (home / "include").mkdir()
    (home / "include" / "cuda.h").write_text("")
    assert environment.tools_here() == set()  # the driver's part of it alone
    (home / "include" / "cuda_runtime.h").write_text("")
    assert environment.tools_here() == {"cuda.h"}


def test_what_torch_wants_is_read_from_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    wants = ["filelock", 'triton==3.7.0; platform_system == "Linux"', "triton-other>=1"]
    monkeypatch.setattr(metadata, "requires", lambda name: wants)
    assert environment.requirement_of_torch("triton") == "triton==3.7.0"
    assert environment.requirement_of_torch("sympy") is None


def test_a_machine_is_asked_for_its_tools_unless_a_test_tells(bare: Path) -> None:
    assert machine().has_tool("c") is False
    program(bare / "gcc")
    assert machine().has_tool("c") is True
    assert machine(tools=frozenset()).has_tool("c") is False


def test_a_macs_processor_has_the_name_that_it_is_sold_under(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libc:
        answer = 0

        def sysctlbyname(self, name: bytes, value: Any, size: Any, *_: Any) -> int:
            assert (name, size._obj.value) == (b"machdep.cpu.brand_string", len(value))
            value.value = b"Apple M4 Max"
            return self.answer

    monkeypatch.setattr(environment.sys, "platform", "darwin")
    monkeypatch.setattr(environment.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc())
    assert environment._processor() == ("Apple M4 Max", frozenset())
    monkeypatch.setattr(Libc, "answer", -1)
    assert environment._processor() == ("arm64", frozenset())
