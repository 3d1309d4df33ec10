"""`allocator`: how the C library gets memory from the system."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.errors import MachineProblem, RunError
from fastdiff.passes import base
from fastdiff.passes.effects import Effect, Observed, Pending
from fastdiff.script import Script, ScriptError

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = ("glibc.malloc.hugetlb=1", "glibc.malloc.mxfast=0")
"""Huge pages for what the system maps; and no list of small blocks that are kept apart, which would break pages up."""

_OLDEST = (2, 35)
_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPPED = Path("/proc/self/smaps_rollup")
_SOURCE = "https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html"


@dataclass
class Default(base.Option):
    """As it is."""

    slot = "allocator"


@dataclass(frozen=True)
class SeenPages(Pending):
    """Tells how much of the process's memory is in huge pages."""

    key: str

    def effect(self, observed: Observed) -> Effect:
        return Effect(self.key, huge_bytes() // 1_000_000, "MB in huge pages")


@dataclass
class HugePages(base.Option, base.Pass):
    """glibc's allocator asks the kernel for huge pages. Set by an environment variable when the run's process begins.

    The same numbers come out: nothing is computed otherwise.
    """

    slot = "allocator"
    key = "allocator.huge_pages"
    stage = base.Stage.FLAGS
    fidelity = base.Fidelity.EXACT
    does = "memory in huge pages, for the whole process"
    requires = (base.Requirement(device="cpu", instead="allocator=default", source=_SOURCE),)
    source = _SOURCE

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return ()

    def variables(self) -> Mapping[str, str]:
        own = os.environ.get(VARIABLE)  # a user's other tunables stay; glibc takes the last of each
        return {VARIABLE: ":".join([*([own] if own else []), *TUNABLES])}

    def check(self, setting: base.Setting) -> base.Findings:
        if reason := lacks():
            yield MachineProblem("allocator=huge_pages", reason, "allocator=default", self.source)

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        """Raises RunError in a process that began without the variable."""
        given = os.environ.get(VARIABLE, "").split(":")
        if not set(TUNABLES) <= set(given):
            raise RunError(
                "allocator=huge_pages must be chosen before the process begins\n"
                f"  instead: {VARIABLE}={':'.join(TUNABLES)} python ..., or allocator=default"
            )
        return SeenPages(self.key)

    def script(self, script: Script, setting: base.Setting) -> None:
        raise ScriptError(
            "allocator=huge_pages",
            "a script can't set what its own process begins with",
            f"allocator=default, and {VARIABLE}={':'.join(TUNABLES)} before the script's python",
        )


def lacks() -> str | None:
    """Why this machine has no huge pages to give; None if it has."""
    library, version = platform.libc_ver()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if library != "glibc" or numbers < _OLDEST:
        here = f"{library} {version}".strip() or "another C library"
        return f"needs Linux with glibc 2.35 or newer; here: {here}"
    try:
        modes = _MODES.read_text()
    except OSError:
        return f"the kernel has no huge pages to give: {_MODES} can't be read"
    if "[never]" in modes:
        return f"huge pages are switched off on this machine: {_MODES} says never"
    return None


def huge_bytes() -> int:
    """Bytes of this process's memory that lie in huge pages."""
    found = re.search(r"^AnonHugePages:\s+(\d+) kB", _MAPPED.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


OPTIONS: dict[str, type[base.Option]] = {"default": Default, "huge_pages": HugePages}
