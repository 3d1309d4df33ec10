"""What compiling needs of a machine, looked for where torch, Inductor and Triton look. No program is started."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


def requirement_of_torch(name: str) -> str | None:
    """What the installed torch wants of a distribution, as pip reads it: `triton==3.7.0`; None where it wants none."""
    try:
        wanted = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        return None
    found = (re.match(rf"{name}\s*([=<>!~][^;\s]*)", each) for each in wanted)
    return next((f"{name}{match[1]}" for match in found if match), None)


def tools_here() -> frozenset[str]:
    """Compilers of C and C++, Python's headers and a CUDA toolkit's, so far as this machine has them.

    Inductor and Triton each take the variable that names its compiler for one program, whatever it says, and looks for no other then
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
