"""What is known of a machine, read from its own files."""

from __future__ import annotations

import ctypes
import dataclasses
import json
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fastdiff.machine import environment
from fastdiff.machine.environment import Environment, Gpu, Unusable, this_machine, version_of

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_520_809_984)
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


def test_a_run_has_its_gpus_memory_or_the_hosts_where_that_has_none_of_its_own() -> None:
    gb10 = Gpu("NVIDIA GB10", (12, 1), None)
    here = machine(gpus=(gb10,), torch_cuda="13.0", available_memory_bytes=100)
    assert (here.room_bytes("cuda"), here.room_bytes("cpu")) == (100, 100)
    assert machine(gpus=(T4,), torch_cuda="13.0").room_bytes("cuda") == T4.memory_bytes


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


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, (16_000_000_000, 12_000_000_000)),
        ("4000000000\n", (4_000_000_000, 3_000_000_000)),
        ("max\n", (16_000_000_000, 12_000_000_000)),
    ],
)
def test_memory_is_what_the_system_says_within_a_containers_limit(
    limit: str | None,
    expected: tuple[int, int],
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = SimpleNamespace(total=16_000_000_000, available=12_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: said)
    if limit:
        files["/sys/fs/cgroup/memory.max"] = limit
        files["/sys/fs/cgroup/memory.current"] = "1000000000\n"
    assert environment._host_memory() == expected


def test_the_processor_of_a_pc_and_of_an_arm_machine(files: dict[str, str]) -> None:
    files["/proc/cpuinfo"] = "model name\t: Some CPU @ 2GHz\nflags\t\t: fpu avx2 avx512_bf16\n"
    assert environment._processor() == (
        "Some CPU @ 2GHz",
        frozenset({"fpu", "avx2", "avx512_bf16"}),
    )
    files["/proc/cpuinfo"] = "BogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16\n"
    assert environment._processor()[1] == {"fp", "asimd", "bf16"}


@pytest.mark.parametrize(
    ("line", "builds"),
    [
        ("cuda: Optional[str] = '12.8'", {"cuda": "12.8"}),
        ('cuda = "13.0"', {"cuda": "13.0"}),
        ("cuda: Optional[str] = None", {}),
        ("hip: Optional[str] = '6.2'", {"hip": "6.2"}),
    ],
)
def test_what_torch_was_built_for_is_read_from_its_own_file(
    line: str, builds: dict[str, str], files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(origin="/site/torch/__init__.py")
    monkeypatch.setattr(util, "find_spec", lambda name: spec)
    assert environment._torch_builds() == {}
    files["/site/torch/version.py"] = f"__version__ = '2.13.0'\n{line}\n"
    assert environment._torch_builds() == builds
    monkeypatch.setattr(util, "find_spec", lambda name: None)  # no torch at all
    assert environment._torch_builds() == {}


def test_a_machine_is_asked_for_its_tools_unless_a_test_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "tools_here", lambda: frozenset({"c"}))
    assert [machine().has_tool(tool) for tool in ("c", "c++")] == [True, False]
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
