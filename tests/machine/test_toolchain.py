"""What compiling needs of a machine, looked for in folders made for the test."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from fastdiff.machine import toolchain


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with one empty folder of programs, and no headers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX", "CUDA_HOME", "CUDA_PATH", "CUDA_INC_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "_python_headers", lambda: [tmp_path / "include"])
    monkeypatch.setattr(toolchain, "_USUAL_CUDA_HOME", tmp_path / "cuda")
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
    monkeypatch.setattr(toolchain.sys, "platform", "linux")
    assert toolchain.tools_here() == set()
    program(bare / name)
    assert toolchain.tools_here() == ({tool} if tool else set())


def test_a_macs_cpp_compiler_is_clang(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "clang++")
    monkeypatch.setattr(toolchain.sys, "platform", "darwin")
    assert toolchain.tools_here() == {"c++"}


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
    assert toolchain.tools_here() == {"c", "c++"}
    monkeypatch.setenv(variable, named)
    assert toolchain.tools_here() == {"c", "c++"} - (set() if works else {tool})


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
    assert toolchain.tools_here() == set()
    (bare / "include" / "Python.h").write_text("")
    assert toolchain.tools_here() == {"Python.h"}


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
    assert toolchain.tools_here() == set()  # a compiler without its headers
    (home / "include").mkdir()
    (home / "include" / "cuda.h").write_text("")
    assert toolchain.tools_here() == set()  # the driver's part of it alone
    (home / "include" / "cuda_runtime.h").write_text("")
    assert toolchain.tools_here() == {"cuda.h"}


def test_what_torch_wants_is_read_from_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    wants = ["filelock", 'triton==3.7.0; platform_system == "Linux"', "triton-other>=1"]
    monkeypatch.setattr(metadata, "requires", lambda name: wants)
    assert toolchain.requirement_of_torch("triton") == "triton==3.7.0"
    assert toolchain.requirement_of_torch("sympy") is None
