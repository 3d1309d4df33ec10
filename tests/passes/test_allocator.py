"""`allocator`: huge pages, which a process has from its beginning or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakePlan, Ran

from fastdiff.errors import PlanError, RunError
from fastdiff.passes import allocator
from fastdiff.passes.allocator import TUNABLES, VARIABLE, HugePages, SeenPages, lacks
from fastdiff.passes.effects import Observed

here = pytest.mark.skipif(lacks() is not None, reason=f"no huge pages here: {lacks()}")


@pytest.fixture
def has_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "lacks", lambda: None)


def test_its_process_begins_with_the_variable_and_keeps_a_user_s_own(
    has_pages: None, shapes_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    plan = shapes_plan("allocator=huge_pages")
    assert plan.variables == {VARIABLE: ":".join(TUNABLES)}
    assert shapes_plan().variables == {}
    monkeypatch.setenv(VARIABLE, "glibc.malloc.check=3")
    assert plan.variables == {VARIABLE: ":".join(["glibc.malloc.check=3", *TUNABLES])}


def test_a_process_that_began_without_it_is_told_how_to_begin(
    has_pages: None, shapes_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(RunError) as raised:
        Ran(shapes_plan("allocator=huge_pages"))
    assert str(raised.value) == (
        "allocator=huge_pages must be chosen before the process begins\n"
        "  instead: GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mxfast=0 python ..., or "
        "allocator=default"
    )


@pytest.mark.parametrize(
    ("library", "modes", "reason"),
    [
        (("glibc", "2.31"), "always [madvise] never", "needs Linux with glibc 2.35 or newer; here: glibc 2.31"),
        (("", ""), "always [madvise] never", "needs Linux with glibc 2.35 or newer; here: another C library"),
        (("glibc", "2.36"), "always madvise [never]", "huge pages are switched off on this machine: {} says never"),
        (("glibc", "2.36"), None, "the kernel has no huge pages to give: {} can't be read"),
        (("glibc", "2.36"), "always [madvise] never", None),
    ],
)  # fmt: skip
def test_machines_without_huge_pages_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shapes_plan: MakePlan,
    library: tuple[str, str],
    modes: str | None,
    reason: str | None,
) -> None:
    file = tmp_path / "enabled"
    if modes:
        file.write_text(modes)
    monkeypatch.setattr(allocator, "_MODES", file)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: library)
    if reason is None:
        assert shapes_plan("allocator=huge_pages").variables
        return
    with pytest.raises(PlanError) as raised:
        shapes_plan("allocator=huge_pages")
    (problem,) = raised.value.problems
    assert problem.reason == reason.format(file)
    assert problem.instead == "allocator=default"


def test_memory_without_a_huge_page_is_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "huge_bytes", lambda: 0)
    assert SeenPages(HugePages.key).effect(Observed()).empty
    monkeypatch.setattr(allocator, "huge_bytes", lambda: 300_500_000)
    effect = SeenPages(HugePages.key).effect(Observed())
    assert str(effect) == "allocator.huge_pages 300 MB in huge pages"


@pytest.mark.exhaustive
@here
@pytest.mark.slow
def test_a_run_has_its_memory_in_huge_pages_and_draws_the_same_picture(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fastdiff", "allocator=huge_pages", "bench=once"),
            *("generation.steps=2", "hydra.run.dir=run"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (effect,) = (e for e in report["effects"] if e["pass"] == "allocator.huge_pages")
    assert effect["changed"] >= 10
    assert report["quality"]["identical"]
    assert "glibc.malloc.hugetlb=1" in report["environment"]["environment_variables"][VARIABLE]
