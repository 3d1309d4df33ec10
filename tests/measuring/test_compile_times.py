"""What the compile cache saved: the cold run's seconds lie beside the cache and move with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TorchServer

from fastdiff.measuring import compile_times
from fastdiff.measuring.compile_times import native_code, read, records_folder, setting_key
from fastdiff.measuring.fields import Compiling
from fastdiff.passes.effects import Observed
from fastdiff.runs.process import events_of

COLD, WARM = Observed(cache="cold", compile_s=96.0), Observed(cache="warm", compile_s=5.5)
MISSES, HITS = {"fxgraph_cache_miss": 1}, {"fxgraph_cache_hit": 1}
FROZEN = {"fxgraph_cache_bypass": 1}


def judged(
    record: Path,
    observed: Observed,
    counts: dict[str, int],
    outcomes: Sequence[Any] = (),
    built: bool = True,
    held: bool = True,
) -> tuple[Any, ...]:
    """Cache, cold_compile_s, saved_s and its reason."""
    found = compile_times.judged(record, observed, counts, outcomes, built=built, held=held)
    return found.cache, found.cold_compile_s, found.saved_s, found.saved_reason


FILLED = "this run filled the cache"
PART = "part of the cache was missing and was compiled again"
NOTHING_TAKEN = "a cold run is on record, and nothing was taken from the cache: it was emptied, damaged or switched off"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "fastdiff" / "0123.json"


def test_a_cold_run_is_put_on_record_and_a_warm_one_says_what_it_saved(record: Path) -> None:
    unknown = f"no cold run of this setting on this machine is on record in {record.parent}"
    assert judged(record, WARM, HITS) == ("warm", None, None, unknown)
    assert judged(record, COLD, MISSES) == ("cold", 96.0, None, FILLED)
    assert judged(record, WARM, HITS) == ("warm", 96.0, 90.5, None)


def test_a_run_that_found_a_part_is_not_put_on_record(record: Path) -> None:
    outcomes = [SimpleNamespace(reused=False), SimpleNamespace(reused=True)]
    assert judged(record, COLD, MISSES | HITS) == ("cold", None, None, PART)
    assert judged(record, COLD, {}, outcomes) == ("cold", None, None, PART)
    assert not record.exists()
    judged(record, COLD, MISSES)
    later = judged(record, replace(COLD, compile_s=50.0), MISSES | HITS)
    assert later == ("cold", 96.0, None, PART)


def test_frozen_graphs_are_planned_again_and_their_code_is_taken(record: Path) -> None:
    again = replace(COLD, compile_s=20.0)
    assert judged(record, COLD, FROZEN) == ("cold", 96.0, None, FILLED)
    assert judged(record, again, FROZEN, built=False) == (
        *("warm", 96.0, 76.0),
        "frozen graphs are planned again in every process; their native code was in the cache",
    )
    assert judged(record, again, FROZEN) == ("cold", 96.0, None, PART)  # some had to be built
    assert read(record) == 96.0
    # In an emptied folder they are as cold as any.
    emptied = judged(record, replace(COLD, compile_s=80.0), FROZEN, held=False)
    assert emptied == ("cold", 80.0, None, NOTHING_TAKEN)


@pytest.mark.parametrize("counts", [MISSES, {}])
@pytest.mark.parametrize(("built", "held"), [(True, True), (True, False), (False, False)])
def test_the_quickest_cold_run_stays_on_record(
    counts: dict[str, int], built: bool, held: bool, record: Path
) -> None:
    said = []
    for compile_s in (60.0, 50.0, 90.0, 62.0):
        observed = Observed(cache="cold", compile_s=compile_s)
        said.append((*judged(record, observed, counts, built=built, held=held), read(record)))
    assert said == [
        ("cold", 60.0, None, FILLED, 60.0),
        *[("cold", 50.0, None, NOTHING_TAKEN, 50.0)] * 3,
    ]
    assert judged(record, WARM, HITS)[2] == 44.5


@pytest.mark.parametrize("counts", [MISSES, {}])
def test_code_beside_a_damaged_index_may_be_taken_and_the_record_stays(
    counts: dict[str, int], record: Path
) -> None:
    beside = replace(COLD, compile_s=20.0)
    assert judged(record, beside, counts, built=False)[1] is None
    judged(record, COLD, MISSES)
    assert judged(record, beside, counts, built=False) == (
        *("cold", 96.0, None),
        "graphs were planned again; native code may have been taken from the cache, whose index was missing, "
        "damaged or switched off",
    )
    assert read(record) == 96.0


def test_native_code_is_known_by_its_place_in_the_cache(shapes_plan: Any, tmp_path: Path) -> None:
    setting = shapes_plan("compile=regional", f"compile.cache_dir={tmp_path}").setting
    for name in ("ab/one.so", "triton/x/kernel.cubin", "triton/y/kernel.cubin", "ab/one.cpp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = {"ab/one.so", "triton/x/kernel.cubin", "triton/y/kernel.cubin"}
    assert native_code(setting) == found
    assert native_code(shapes_plan().setting) == frozenset()


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
    assert judged(record, WARM, HITS)[2] is None


def test_a_record_that_cannot_be_written_is_said(record: Path) -> None:
    record.parent.write_text("a file")
    _, cold_s, _, reason = judged(record, COLD, MISSES)
    assert cold_s == 96.0
    assert reason.startswith(f"can't be put on record in {record.parent} (")


def test_nothing_compiled(shapes_plan: Any) -> None:
    setting = shapes_plan().setting
    found = compile_times.compile_times(setting, Observed(), (), frozenset())
    assert found == Compiling(saved_reason="nothing was compiled")


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


def test_records_lie_within_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes_plan: Any
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("FASTDIFF_CACHE_DIR", str(tmp_path / "own"))

    def where(*overrides: str) -> Path | None:
        return records_folder(shapes_plan(*overrides).setting)

    assert where("compile=default") == tmp_path / "inductor" / "fastdiff"
    named = where("compile=default", f"compile.cache_dir={tmp_path / 'mine'}")
    assert named == tmp_path / "mine" / "fastdiff"
    assert where("compile=aot") == tmp_path / "own" / "aot" / "fastdiff"


CODE = """
import torch
from torch._inductor import config
config.cpp_cache_precompile_headers = False  # they take long, and have their own place
config.cpp.vec_isa_ok, config.cpp.simdlen = True, 1  # nor are all vector instructions tried: none is used
from torch._dynamo.utils import counters
from conftest import Ran, plan_of
from fastdiff.measuring.compile_times import compile_times, native_code
from fastdiff.measuring.observing import compile_counters
model, cache, *choices = json.loads((folder / "words.json").read_text())
found = []
for freezing in choices:
    plan = plan_of(
        "device=cpu", "model=local", f"model.path={model}", "generation.steps=1", "generation.height=32",
        "generation.width=32", "compile=default", "compile.targets=[vae_decode]", f"compile.freezing={freezing}",
        f"compile.cache_dir={cache}",
    )
    torch._dynamo.reset()
    counters.clear()
    before = native_code(plan.setting)
    ran = Ran(plan)
    found.append(compile_times(plan.setting, compile_counters(), ran.built.outcomes, before).to_dict())
send(say=found)
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_cache_is_warm_in_another_place_and_cold_where_it_is_damaged(
    smallest_folder: Path, tmp_path: Path, torch_server: TorchServer
) -> None:
    """Plain and frozen weights: an empty folder, the same one moved; then its index as garbage, its code cut short."""

    def run(cache: Path, *freezing: str) -> tuple[list[Any], str]:
        """What compile_times said of each in one process, or the message with which it failed."""
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "program.py").write_text(CODE)
        words = [str(smallest_folder), str(cache), *freezing]
        (folder / "words.json").write_text(json.dumps(words))
        worker = torch_server.start("does_what_lies_there", folder, {})
        said = [event["say"] for event in events_of(worker)]
        if worker.wait():
            return [], (folder / "log.txt").read_text()
        return said[0], ""

    cold, message = run(tmp_path / "one", "false", "true")
    assert [(of["cache"], of["saved_reason"]) for of in cold] == [
        ("cold", "this run filled the cache")
    ] * 2, message
    shutil.move(tmp_path / "one", tmp_path / "two")

    moved, message = run(tmp_path / "two", "false", "true")
    assert [of["cache"] for of in moved] == ["warm", "warm"], message
    assert [of["cold_compile_s"] for of in moved] == [of["cold_compile_s"] for of in cold]
    assert None not in [of["saved_s"] for of in moved]
    assert moved[0]["saved_reason"] is None
    assert moved[1]["saved_reason"].startswith("frozen graphs are planned again in every process")

    for name in ("fxgraph", "aotautograd"):
        for path in (tmp_path / "two" / name).rglob("*"):
            if path.is_file():
                path.write_bytes(b"garbage")
    (damaged,), _ = run(tmp_path / "two", "false")
    assert (damaged["cache"], damaged["cold_compile_s"]) == ("cold", cold[0]["cold_compile_s"])
    assert "native code may have been taken from the cache" in damaged["saved_reason"]

    for path in (tmp_path / "two").rglob("*.py"):
        path.write_text("garbage(")
    _, message = run(tmp_path / "two", "false")
    assert (
        f"fastdiff.errors.RunError: compile.default: compiling failed, and {tmp_path / 'two'} held compiled "
        "code already, which may be damaged\n"
        f"  instead: remove that folder, or compile.cache_dir=DIR, an empty one\n"
    ) in message
