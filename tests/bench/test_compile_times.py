"""What the compile cache saved: the cold run's seconds lie beside the cache and move with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdiff.bench import compile_times
from fastdiff.bench.compile_times import read, records_folder, setting_key
from fastdiff.composition import compose
from fastdiff.result import Observed

COLD, WARM = Observed(cache="cold", compile_s=96.0), Observed(cache="warm", compile_s=5.5)
MISSES, HITS = {"fxgraph_cache_miss": 1}, {"fxgraph_cache_hit": 1}
FROZEN = {"fxgraph_cache_bypass": 1}


def judged(
    record: Path,
    observed: Observed,
    counts: dict[str, int],
    outcomes: Sequence[Any] = (),
    built: bool = True,
) -> dict[str, Any]:
    return compile_times.judged(record, observed, counts, outcomes, built=built)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "fastdiff" / "0123.json"


def test_a_cold_run_is_put_on_record_and_a_warm_one_says_what_it_saved(record: Path) -> None:
    assert judged(record, COLD, MISSES, ()) == {
        "cache": "cold",
        "cold_compile_s": 96.0,
        "saved_s": None,
        "saved_reason": "this run filled the cache",
    }
    assert judged(record, WARM, HITS, ()) == {
        "cache": "warm",
        "cold_compile_s": 96.0,
        "saved_s": 90.5,
        "saved_reason": None,
    }


def test_a_warm_run_without_a_record_says_so(record: Path) -> None:
    assert judged(record, WARM, HITS, ()) == {
        "cache": "warm",
        "cold_compile_s": None,
        "saved_s": None,
        "saved_reason": (
            f"no cold run of this setting on this machine is on record in {record.parent}"
        ),
    }


def test_a_run_that_found_a_part_is_not_put_on_record(record: Path) -> None:
    part = "part of the cache was missing and was compiled again"
    assert judged(record, COLD, MISSES | HITS, ())["saved_reason"] == part
    assert not record.exists()
    judged(record, COLD, MISSES, ())
    later = judged(record, replace(COLD, compile_s=50.0), MISSES | HITS, ())
    assert later == {
        "cache": "cold",
        "cold_compile_s": 96.0,
        "saved_s": None,
        "saved_reason": part,
    }


def test_packages_that_were_partly_reused_are_not_put_on_record(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Some:
        loaded = (SimpleNamespace(built=True), SimpleNamespace(built=False))

    monkeypatch.setattr(compile_times, "Packages", Some)
    assert "part of the cache" in judged(record, COLD, {}, [Some(), object()])["saved_reason"]
    assert not record.exists()


def test_frozen_graphs_are_planned_again_and_their_code_is_taken(record: Path) -> None:
    assert judged(record, COLD, FROZEN, ())["saved_reason"] == "this run filled the cache"
    again = judged(record, replace(COLD, compile_s=20.0), FROZEN, built=False)
    assert again == {
        "cache": "warm",
        "cold_compile_s": 96.0,
        "saved_s": 76.0,
        "saved_reason": (
            "frozen graphs are planned again in every process; their native code was in the cache"
        ),
    }
    assert read(record) == 96.0


def test_frozen_graphs_of_which_some_code_had_to_be_built_again_are_cold(record: Path) -> None:
    judged(record, COLD, FROZEN)
    again = judged(record, replace(COLD, compile_s=20.0), FROZEN)
    assert (again["cache"], again["saved_s"]) == ("cold", None)
    assert again["saved_reason"] == "part of the cache was missing and was compiled again"


def test_a_damaged_index_is_cold_and_the_record_stays(record: Path) -> None:
    judged(record, COLD, MISSES, ())
    found = judged(record, replace(COLD, compile_s=20.0), MISSES, ())
    assert found == {
        "cache": "cold",
        "cold_compile_s": 96.0,
        "saved_s": None,
        "saved_reason": "the cache's index was missing or damaged, and was written again",
    }
    assert read(record) == 96.0


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", '{"compile_s": "9"}', '{"compile_s": NaN}'),
        *('{"compile_s": -1}', '{"compile_s": true}', '{"compile_s": null}'),
    ],
)
def test_a_broken_record_is_none(text: str, record: Path) -> None:
    record.parent.mkdir()
    record.write_text(text)
    assert read(record) is None
    assert judged(record, WARM, HITS, ())["saved_s"] is None


def test_a_record_that_cannot_be_written_is_said(record: Path) -> None:
    record.parent.write_text("a file")
    found = judged(record, COLD, MISSES, ())
    assert found["cold_compile_s"] == 96.0
    assert found["saved_reason"].startswith(f"can't be put on record in {record.parent} (")


def test_nothing_compiled(shapes_plan: Any) -> None:
    setting = shapes_plan().setting
    assert compile_times.compile_times(setting, Observed(), (), frozenset()) == {
        "cache": "none",
        "cold_compile_s": None,
        "saved_s": None,
        "saved_reason": "nothing was compiled",
    }


def test_the_record_belongs_to_what_is_compiled(shapes_plan: Any) -> None:
    plain = setting_key(shapes_plan("compile=regional").setting)
    same = ("generation.prompt=a blue star", "generation.seed=3", "bench=once", "quality=none")
    for word in (*same, "compile.cache_dir=elsewhere"):
        assert setting_key(shapes_plan("compile=regional", word).setting) == plain, word
    others = ("precision=bf16", "generation.height=128", "attention=math", "vae=tiny")
    for word in (*others, "generation.images_per_prompt=2", "compile.conv_1x1_as_mm=true"):
        assert setting_key(shapes_plan("compile=regional", word).setting) != plain, word
    setting = shapes_plan("compile=regional").setting
    elsewhere = replace(setting.environment, cpu="Another CPU")
    assert setting_key(replace(setting, environment=elsewhere)) != plain


def test_records_lie_within_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("FASTDIFF_CACHE_DIR", str(tmp_path / "own"))

    def where(*overrides: str) -> Path:
        option: Any = compose(list(overrides)).compile
        return records_folder(option)

    assert where("compile=default") == tmp_path / "inductor" / "fastdiff"
    named = where("compile=default", f"compile.cache_dir={tmp_path / 'mine'}")
    assert named == tmp_path / "mine" / "fastdiff"
    assert where("compile=aot") == tmp_path / "own" / "aot" / "fastdiff"


CODE = """if True:
    import sys, json, torch, torch._inductor.config
    torch._inductor.config.cpp_cache_precompile_headers = False  # they take long, and have their own place
    from conftest import Ran, plan_of
    from fastdiff.bench.compile_times import compile_times, native_code
    from fastdiff.bench.observing import compile_counters
    plan = plan_of(
        "device=cpu", "model=local", f"model.path={sys.argv[1]}", "generation.steps=1", "generation.height=32",
        "generation.width=32", "compile=default", "compile.targets=[denoiser]",
        f"compile.freezing={sys.argv[3]}", f"compile.cache_dir={sys.argv[2]}",
    )
    before = native_code(plan.setting)
    ran = Ran(plan)
    found = compile_times(plan.setting, compile_counters(), ran.built.outcomes, before)
    print(json.dumps([found["cache"], found]))
    """


@pytest.mark.slow
def test_a_cache_is_warm_in_another_place_and_cold_where_it_is_damaged(
    smallest_folder: Path, tmp_path: Path
) -> None:
    """An empty folder, the same one moved, its index as garbage, its code cut short; and frozen weights, twice."""
    import json

    def run(cache: Path, freezing: str = "false") -> tuple[str, Any, str]:
        ended = subprocess.run(
            [sys.executable, "-c", CODE, str(smallest_folder), str(cache), freezing],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(["tests", "."])},
            cwd=Path(__file__).parent.parent.parent,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if ended.returncode:
            return "failed", None, ended.stderr
        said, found = json.loads(ended.stdout.strip().splitlines()[-1])
        return said, found, ""

    said, first, _ = run(tmp_path / "one")
    assert (said, first["saved_reason"]) == ("cold", "this run filled the cache")
    shutil.move(tmp_path / "one", tmp_path / "two")

    said, moved, _ = run(tmp_path / "two")
    assert (said, moved["cold_compile_s"]) == ("warm", first["cold_compile_s"])
    assert moved["saved_s"] is not None
    assert moved["saved_reason"] is None

    for name in ("fxgraph", "aotautograd"):
        for path in (tmp_path / "two" / name).rglob("*"):
            if path.is_file():
                path.write_bytes(b"garbage")
    said, _, _ = run(tmp_path / "two")
    assert said == "cold"

    for path in (tmp_path / "two").rglob("*.py"):
        path.write_text("garbage(")
    said, _, message = run(tmp_path / "two")
    assert said == "failed"
    assert (
        f"fastdiff.errors.RunError: compile.default: compiling failed, and {tmp_path / 'two'} held compiled "
        "code already, which may be damaged\n"
        f"  instead: remove that folder, or compile.cache_dir=DIR, an empty one\n"
    ) in message

    said, first, _ = run(tmp_path / "frozen", "true")
    assert (said, first["saved_reason"]) == ("cold", "this run filled the cache")
    said, again, _ = run(tmp_path / "frozen", "true")
    assert (said, again["cold_compile_s"]) == ("warm", first["cold_compile_s"])
    assert again["saved_s"] is not None
