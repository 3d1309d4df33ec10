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

from fastdiff import environment
from fastdiff.environment import Environment, Gpu, this_machine, version_of

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
    assert "modules" not in data
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
    assert environment._torch_cuda() == cuda


def test_no_torch_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert environment._torch_cuda() is None


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
        ("MIG-8932f937-d72c-4106-c12f-20bd9faed9f6", (H100, A100, T4)),
    ],
)
def test_gpus_are_those_that_cuda_would_show(
    visible: str | None, expected: tuple[Gpu, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml(H100, A100, T4)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment._nvidia_gpus() == expected
    assert nvml.is_shut_down


def test_no_driver_and_a_driver_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert environment._nvidia_gpus() == ()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml(H100, works=False))
    assert environment._nvidia_gpus() == ()
