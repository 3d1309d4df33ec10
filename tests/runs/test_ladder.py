"""Ladders: rows that say what was measured, in rounds, resumed where they stopped."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import TorchServer

import fastdiff.runs.ladder.climb
from fastdiff.__main__ import main
from fastdiff.choices.compose import compose
from fastdiff.choices.experiments import ladder
from fastdiff.display import ladder as page
from fastdiff.display.ladder import ladder_text
from fastdiff.errors import ModelError, PlanError, UsageError
from fastdiff.machine.files import read_json, write_json
from fastdiff.models.random_weights import KEPT_IN
from fastdiff.runs.ladder.climb import OUT_OF_TIME, Climb, How, exit_code, folder_of
from fastdiff.runs.ladder.rows import LONGEST_REASON, ratio, rows, verdict
from fastdiff.runs.ladder.rungs import Rung, rungs_of
from fastdiff.runs.process import run_in_process


class Silent:
    """Nobody is told."""

    def say(self, message: str) -> None: ...

    def tell(self, phase: str, done: int, of: int) -> None: ...


def report(seconds: float, status: str = "ok", **more: Any) -> dict[str, Any]:
    """As much of a report as a row needs."""
    return {
        "status": status,
        "run_id": "x",
        "error": None if status == "ok" else {"message": "it broke"},
        "latency_s": {"median": seconds},
        "images": [{"path": "image-0.png"}],
        "quality": {"reference": "baseline", "identical": False, "psnr_db": 40.0, "ssim": 0.99},
        "peak_memory_bytes": {"device_allocated": None, "device_reserved": None, "host": 10**9},
        "compile_s": 0.0,
        "first_call_s": seconds * 2,
        "compile": {"cache": "none"},
        "applied": ["precision.bf16 5 weights"],
        "notices": [],
        "environment": {"device": "cpu", "threads": 2, "device_name": "a processor"},
        **more,
    }


def measured(name: str, *seconds: float) -> Rung:
    rung = Rung(next(e for e in ladder("sdxl_tutorial") if e.short == name), [])
    rung.plan = object()  # type: ignore[assignment]
    rung.reports = {number: report(s) for number, s in enumerate(seconds)}
    return rung


# Figures -------------------------------------------------------------------------------------------


def test_a_ratio_is_the_geometric_mean_of_the_rounds_ratios() -> None:
    found = ratio(measured("baseline", 2.0, 8.0), measured("bf16", 1.0, 2.0))
    assert found["ratio"] == pytest.approx(math.sqrt(2.0 * 4.0))
    assert found["rounds"] == 2


def test_its_interval_is_students_t_over_the_rounds() -> None:
    logs = [math.log(r) for r in (1.9, 2.0, 2.1)]
    found = ratio(measured("baseline", 1.9, 2.0, 2.1), measured("bf16", 1.0, 1.0, 1.0))
    mean = sum(logs) / 3
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / 2)
    half = 4.302653 * deviation / math.sqrt(3)  # t for 97.5 % and two degrees of freedom
    assert found["ci95"] == pytest.approx([math.exp(mean - half), math.exp(mean + half)], rel=1e-6)


def test_one_round_gives_a_ratio_and_no_interval() -> None:
    found = ratio(measured("baseline", 2.0), measured("bf16", 1.0))
    assert (found["ratio"], found["ci95"]) == (pytest.approx(2.0), None)
    assert verdict(found) is None


def test_only_rounds_that_both_rungs_finished_are_compared() -> None:
    slow, fast = measured("baseline", 2.0, 100.0), measured("bf16", 1.0)
    assert ratio(slow, fast)["ratio"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("interval", "said"), [([1.1, 1.3], "pays"), ([0.9, 1.2], "no gain"), ([0.5, 0.9], "slower")]
)
def test_a_rung_that_does_not_pay_is_marked(interval: list[float], said: str) -> None:
    assert verdict({"ratio": 1.0, "ci95": interval, "rounds": 3}) == said


def test_gains_are_over_the_nearest_measured_row_above() -> None:
    refused = Rung(ladder("sdxl_tutorial")[1], [], refused="no such GPU")
    found = rows([measured("baseline", 4.0, 4.0), refused, measured("sdpa", 1.0, 1.0)])
    assert [row["status"] for row in found] == ["ok", "incompatible", "ok"]
    assert found[1]["reason"] == "no such GPU"
    assert found[1]["published"]["latency_s"] == 4.63
    assert found[2]["gain_over"] == "baseline"
    assert found[2]["gain"]["ratio"] == pytest.approx(4.0)
    assert found[2]["speedup"]["ratio"] == pytest.approx(4.0)
    assert found[0]["gain"] is None


def test_compile_time_is_the_one_from_an_empty_cache() -> None:
    rung = measured("compile", 1.0, 1.0)
    rung.reports[0] |= {"compile": {"cache": "cold", "cache_shared": False}, "compile_s": 60.0}
    rung.reports[1] |= {"compile": {"cache": "warm", "cache_shared": False}, "compile_s": 9.0}
    (row,) = rows([rung])
    assert (row["compile_s"], row["compile_cache"]) == (60.0, "cold")
    assert page.cells(row)[-1] == "60.0 s"
    rung.reports[0]["compile"] = {"cache": "warm", "cache_shared": True}
    (row,) = rows([rung])
    assert page.cells(row)[-1] == "60.0 s warm shared"


def test_a_failed_rung_is_a_row_with_its_reason_and_the_exit_code_is_1() -> None:
    rung = measured("bf16")
    rung.reports = {0: report(1.0, "failed")}
    found = rows([measured("baseline", 1.0), rung])
    assert (found[1]["status"], found[1]["reason"]) == ("failed", "it broke")
    assert exit_code("complete", found) == 1


def test_a_long_failure_is_shortened_to_one_line() -> None:
    rung = measured("bf16")
    rung.reports = {0: report(1.0, "failed", error={"message": "line\n" * 200})}
    (row,) = rows([rung])
    assert "\n" not in row["reason"]
    assert len(row["reason"]) < LONGEST_REASON + 30
    assert row["reason"].endswith("(see its log.txt)")


def test_a_rung_that_builds_on_another_than_the_row_above_is_compared_with_that_one() -> None:
    guide = {e.short: e for e in ladder("guide")}
    seconds = {"bf16": 4.0, "fp16": 2.0, "compile_dynamic": 1.0, "int8": 3.0}
    rungs = []
    for experiment in ladder("guide"):
        rung = Rung(experiment, [], refused=None if experiment.short in seconds else "no")
        if experiment.short in seconds:
            rung.plan = object()  # type: ignore[assignment]
            rung.reports = {0: report(seconds[experiment.short])}
        rungs.append(rung)
    found = {row["experiment"].rpartition("/")[2]: row for row in rows(rungs)}
    assert guide["compile_dynamic"].published.over == guide["fp16"].published.rung
    assert (found["compile_dynamic"]["gain_over"], found["int8"]["gain_over"]) == ("fp16", "bf16")
    assert found["compile_dynamic"]["gain"]["ratio"] == pytest.approx(2.0)
    assert found["int8"]["gain"]["ratio"] == pytest.approx(4 / 3)


def test_exit_codes() -> None:
    good = [{"status": "ok"}, {"status": "incompatible"}]
    assert exit_code("complete", good) == 0
    assert exit_code("out of time", good) == OUT_OF_TIME == 75
    assert exit_code("interrupted", good) == 130
    assert exit_code("complete", [*good, {"status": "missing"}]) == 1
    assert exit_code("complete", [{"status": "incompatible"}]) == 2


# Rounds --------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Runs that take no time: (rung, round) in the order in which they were started."""
    order: list[tuple[str, str]] = []

    def run_in_process(
        plan: Any,
        request: Any,
        folder: Path,
        progress: Any,
        variables: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        order.append((folder.parent.name, folder.name))
        status = "failed" if folder.parent.name in FAILS else "ok"
        found = report(
            1.0, status, run_id=fastdiff.runs.ladder.climb.run_id(plan.setting.run, plan.device)
        )
        found["asked"] = {
            "reference": asdict(request.reference),
            "variables": dict(variables or {}),
        }
        found["asked"]["weights"] = os.environ.get(KEPT_IN)
        found |= {"config": {}, "overrides": []}
        write_json(folder / "report.json", found)
        return found

    monkeypatch.setattr(fastdiff.runs.ladder.climb, "run_in_process", run_in_process)
    monkeypatch.setattr(fastdiff.runs.ladder.climb, "write_run_page", lambda folder, found: None)
    FAILS.clear()
    return order


FAILS: set[str] = set()


def climb(folder: Path, make_plan: Any, *overrides: str, **how: Any) -> Climb:
    words = ["model=shapes", "device=cpu", *overrides]
    plan_of = lambda each: make_plan(*each)  # noqa: E731
    rungs = rungs_of("sdxl_tutorial", words, plan_of)
    return Climb("sdxl_tutorial", rungs, words, How(**how), folder, Silent())


def test_the_first_round_begins_with_the_first_row_and_every_round_has_its_own_order(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    assert climb(tmp_path, shapes_plan, rounds=4).go() == "complete"
    assert ran[0] == ("baseline", "round-1")
    by_round = [[name for name, at in ran if at == f"round-{n}"] for n in (1, 2, 3, 4)]
    assert all(sorted(names) == sorted(by_round[0]) for names in by_round)
    assert len({tuple(names) for names in by_round}) > 1
    assert len(ran) == 24
    data = read_json(tmp_path / "ladder.json")
    assert data["state"] == "complete"
    assert [row["rounds"] for row in data["rows"]] == [4] * 6
    assert (tmp_path / "ladder.md").is_file()


def test_the_order_depends_on_the_seed_alone(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    climb(tmp_path / "a", shapes_plan, rounds=2).go()
    climb(tmp_path / "b", shapes_plan, rounds=2).go()
    climb(tmp_path / "c", shapes_plan, rounds=2, seed=1).go()
    assert ran[:12] == ran[12:24]
    assert ran[:12] != ran[24:]


def test_quality_is_against_the_first_rows_first_picture(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    climb(tmp_path, shapes_plan, rounds=1).go()
    own = read_json(tmp_path / "baseline" / "round-1" / "report.json")["asked"]["reference"]
    other = read_json(tmp_path / "int8" / "round-1" / "report.json")["asked"]["reference"]
    assert own["pictures"] == "own"
    assert other["name"] == "baseline"
    assert other["pictures"] == [str(tmp_path / "baseline" / "round-1" / "image-0.png")]


def test_every_rung_compiles_into_an_empty_cache_of_its_own_that_is_removed_at_the_end(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    (tmp_path / "int8" / "compiled").mkdir(parents=True)
    climb(tmp_path, shapes_plan, rounds=1).go()
    variables = read_json(tmp_path / "int8" / "round-1" / "report.json")["asked"]["variables"]
    assert variables["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "int8" / "compiled" / "inductor")
    assert variables["FASTDIFF_CACHE_DIR"] == str(tmp_path / "int8" / "compiled" / "own")
    assert not (tmp_path / "int8" / "compiled").exists()


def test_random_weights_are_drawn_once_and_are_gone_at_the_end(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEPT_IN, raising=False)
    (tmp_path / ".weights").mkdir()  # as a process leaves it
    climb(tmp_path, shapes_plan, rounds=1).go()
    told = {read_json(tmp_path / name / at / "report.json")["asked"]["weights"] for name, at in ran}
    assert told == {str(tmp_path / ".weights")}
    assert not (tmp_path / ".weights").exists()
    assert KEPT_IN not in os.environ


def test_a_folder_for_random_weights_that_the_user_named_is_used_and_stays(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setenv(KEPT_IN, str(kept))
    climb(tmp_path / "ladder", shapes_plan, rounds=1).go()
    report_file = tmp_path / "ladder" / "int8" / "round-1" / "report.json"
    assert read_json(report_file)["asked"]["weights"] == str(kept)
    assert kept.is_dir()
    assert os.environ[KEPT_IN] == str(kept)


def left_behind(folder: Path) -> Path:
    """What an attempt had compiled that was interrupted before it was measured."""
    code = folder / "int8" / "compiled" / "inductor" / "a" / "b.so"
    code.parent.mkdir(parents=True)
    code.write_bytes(b"code")
    return code


def test_a_rung_that_was_interrupted_goes_on_from_what_it_had_compiled_and_says_so(
    tmp_path: Path,
    shapes_plan: Any,
    ran: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, there = left_behind(tmp_path), []
    inner = fastdiff.runs.ladder.climb.run_in_process

    def looking(plan: Any, request: Any, folder: Path, *rest: Any) -> Any:
        there.append((folder.parent.name, folder.name, code.is_file()))
        return inner(plan, request, folder, *rest)

    monkeypatch.setattr(fastdiff.runs.ladder.climb, "run_in_process", looking)
    climb(tmp_path, shapes_plan, rounds=2).go()
    assert [seen for rung, at, seen in there if rung == "int8"] == [True, True]

    def resumed(rung: str, number: int) -> bool:
        report = read_json(tmp_path / rung / f"round-{number}" / "report.json")
        return bool(report["compile"]["resumed"])

    assert (resumed("int8", 1), resumed("int8", 2), resumed("sdpa", 1)) == (True, False, False)
    row = next(r for r in read_json(tmp_path / "ladder.json")["rows"] if "int8" in r["experiment"])
    assert row["compile_resumed"] is True


def test_code_that_was_cut_short_costs_an_interrupted_rung_nothing_but_time(
    tmp_path: Path,
    shapes_plan: Any,
    ran: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = left_behind(tmp_path)
    inner = fastdiff.runs.ladder.climb.run_in_process

    def failing_with_it(plan: Any, request: Any, folder: Path, *rest: Any) -> Any:
        if code.is_file() and folder.parent.name == "int8":
            FAILS.add("int8")
        found = inner(plan, request, folder, *rest)
        FAILS.clear()
        return found

    monkeypatch.setattr(fastdiff.runs.ladder.climb, "run_in_process", failing_with_it)
    climb(tmp_path, shapes_plan, rounds=1).go()
    assert [name for name, _ in ran].count("int8") == 2
    found = read_json(tmp_path / "int8" / "round-1" / "report.json")
    assert (found["status"], found["compile"]["resumed"]) == ("ok", False)


def test_a_resumed_compile_is_marked_where_no_other_round_had_an_empty_cache() -> None:
    rung = measured("int8", 1.0, 1.0)
    for number, resumed in enumerate((True, False)):
        rung.reports[number]["compile"] = {"cache": "cold", "resumed": resumed}
    rung.reports[0]["compile_s"], rung.reports[1]["compile_s"] = 20.0, 60.0
    (row,) = rows([rung])
    assert (row["compile_resumed"], row["compile_s"]) == (False, 60.0)
    rung.reports[1]["compile"] = {"cache": "warm"}
    (row,) = rows([rung])
    assert page.cells(row)[-1] == "20.0 s resumed"


def test_a_shared_compile_cache_is_left_alone_and_marked(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    shared = tmp_path / "shared"
    climb(
        tmp_path / "ladder",
        shapes_plan,
        "compile=default",
        f"compile.cache_dir={shared}",
        rounds=1,
    ).go()
    found = read_json(tmp_path / "ladder" / "compile" / "round-1" / "report.json")
    assert "TORCHINDUCTOR_CACHE_DIR" not in found["asked"]["variables"]
    assert found["compile"]["cache_shared"] is True


def test_the_same_line_again_measures_only_what_is_missing(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    climb(tmp_path, shapes_plan, rounds=2).go()
    before = (tmp_path / "sdpa" / "round-1" / "report.json").read_bytes()
    (tmp_path / "int8" / "round-2" / "report.json").unlink()
    ran.clear()
    climb(tmp_path, shapes_plan, rounds=2).go()
    assert ran == [("int8", "round-2")]
    assert (tmp_path / "sdpa" / "round-1" / "report.json").read_bytes() == before


def test_what_was_measured_with_other_versions_is_measured_again(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    climb(tmp_path, shapes_plan, rounds=1).go()
    file = tmp_path / "bf16" / "round-1" / "report.json"
    write_json(file, read_json(file) | {"run_id": "another"})
    ran.clear()
    climb(tmp_path, shapes_plan, rounds=1).go()
    assert ran == [("bf16", "round-1")]


def test_weights_that_changed_are_measured_again(
    tmp_path: Path, local_plan: Any, sd_folder: Path, ran: list[tuple[str, str]]
) -> None:
    import shutil

    mine = shutil.copytree(sd_folder, tmp_path / "mine")

    def again() -> None:
        words = ["model=local", f"model.path={mine}", "device=cpu"]
        rungs = rungs_of("sd15_guide", words, lambda each: local_plan(mine, *each))
        Climb("sd15_guide", rungs, words, How(rounds=1), tmp_path / "l", Silent()).go()

    again()
    before = list(ran)
    again()
    assert ran == before
    weights = next(mine.glob("unet/*.safetensors"))
    weights.write_bytes(
        weights.read_bytes()
    )  # the same bytes at another time: not known to be the same
    again()
    assert sorted(ran) == sorted(before * 2)


def test_a_rung_that_failed_is_not_tried_again_in_later_rounds_but_by_the_next_call(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    FAILS.add("int8")
    climb(tmp_path, shapes_plan, rounds=3).go()
    assert [name for name, _ in ran].count("int8") == 1
    FAILS.clear()
    ran.clear()
    climb(tmp_path, shapes_plan, rounds=3).go()
    assert ran == [("int8", f"round-{n}") for n in (1, 2, 3)]


def test_a_time_limit_begins_nothing_new_and_keeps_what_there_is(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    first = climb(tmp_path, shapes_plan, rounds=1, limit_s=5.0)
    first.started -= 4.0
    originally = fastdiff.runs.ladder.climb.time.monotonic
    calls = iter(range(100))
    fastdiff.runs.ladder.climb.time.monotonic = lambda: first.started + 4.0 + next(calls)  # type: ignore[assignment]
    try:
        assert first.go() == "out of time"
    finally:
        fastdiff.runs.ladder.climb.time.monotonic = originally
    assert 0 < len(ran) < 6
    missing = [row["status"] for row in read_json(tmp_path / "ladder.json")["rows"]]
    assert missing.count("missing") == 6 - len(ran)
    assert climb(tmp_path, shapes_plan, rounds=1).go() == "complete"
    assert len(ran) == 6


def test_rungs_that_this_machine_cannot_run_stay_in_the_table(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    words = ["model=shapes", "device=cpu"]
    rungs = rungs_of("sd15_guide", words, lambda each: shapes_plan(*each))
    Climb("sd15_guide", rungs, words, How(rounds=1), tmp_path, Silent()).go()
    data = read_json(tmp_path / "ladder.json")
    assert [row["status"] for row in data["rows"]] == ["ok", "incompatible", "ok", "incompatible"]
    assert "needs an NVIDIA GPU of compute capability 8.0" in data["rows"][1]["reason"]
    assert exit_code("complete", data["rows"]) == 0


def test_what_no_rung_can_do_is_one_error(shapes_plan: Any) -> None:
    with pytest.raises(UsageError, match=r"did you mean: generation\.steps"):
        rungs_of("sdxl_tutorial", ["generation.stepz=2"], lambda each: shapes_plan(*each))
    with pytest.raises(PlanError, match="device=cud"):
        rungs_of("sdxl_tutorial", ["device=cud"], lambda each: shapes_plan(*each))
    words = ["model=local", "model.path=/nowhere/at/all"]
    with pytest.raises(ModelError, match="no such folder"):
        rungs_of("sdxl_tutorial", words, lambda each: shapes_plan(*each))


def test_a_key_that_only_some_rungs_have_is_left_out_for_the_others(
    tmp_path: Path, shapes_plan: Any, ran: list[tuple[str, str]]
) -> None:
    again = climb(tmp_path, shapes_plan, "compile.freezing=false", rounds=1)
    again.go()
    assert len(ran) == 6
    plans = {rung.experiment.short: rung.plan for rung in again.rungs}
    assert plans["compile"].setting.run.to_dict()["compile"]["freezing"] is False  # type: ignore[union-attr]
    data = read_json(tmp_path / "ladder.json")
    assert data["rows"][0]["left_out"] == ["compile.freezing=false"]
    assert data["rows"][3]["left_out"] == []
    assert (
        "compile.freezing=false left out for baseline, bf16, sdpa, which has no such key"
        in page.notes(data)
    )


# What a person types and sees ----------------------------------------------------------------------


def test_a_ladders_own_keys_are_taken_out_of_the_overrides() -> None:
    how, others = How.read(["model=shapes", "ladder.rounds=5", "ladder.limit_s=90", "ladder.dir=x"])
    assert how == How(rounds=5, limit_s=90.0, seed=0, dir="x")
    assert others == ["model=shapes"]
    assert How.read(["ladder.limit_s=null", "ladder.dir=null"])[0] == How()


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("ladder.round=3", "ladder has no key 'round'\n  did you mean: ladder.rounds"),
        (
            "ladder.rounds=0",
            "ladder.rounds can't be '0': it must be a whole number of at least 1\n  for example: ladder.rounds=3",
        ),
        (
            "ladder.rounds=x",
            "ladder.rounds can't be 'x': it must be a whole number of at least 1\n  for example: ladder.rounds=3",
        ),
        (
            "ladder.limit_s=-1",
            "ladder.limit_s can't be '-1': it must be a number of at least 0 or null\n  for example: ladder.limit_s=600",
        ),
    ],
)
def test_a_wrong_key_of_the_ladder_is_explained(word: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        How.read([word])
    assert str(caught.value) == text


def test_a_ladder_that_does_not_exist_is_named_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="did you mean: sdxl_tutorial"):
        ladder("sdxl_tutorials")
    with pytest.raises(UsageError, match="it is one experiment: python -m fastdiff experiment="):
        ladder("sdxl_tutorial/int8")


def test_the_folder_is_named_by_what_is_measured() -> None:
    first = folder_of("guide", ["model=shapes", "device=cpu"], How())
    assert first == folder_of("guide", ["device=cpu", "model=shapes"], How(rounds=9))
    assert first != folder_of("guide", ["model=sdxl"], How())
    assert folder_of("guide", [], How(dir="here")) == Path("here")


def test_the_table_fits_80_columns_and_says_what_does_not_pay() -> None:
    slow = measured("bf16", 2.0, 2.1, 2.0)
    failed = Rung(ladder("sdxl_tutorial")[2], [], refused="needs an NVIDIA GPU (instead: x)")
    rungs = [measured("baseline", 1.0, 1.1, 1.0), slow, failed]
    data = {
        "ladder": "sdxl_tutorial",
        "state": "out of time",
        "model": "shapes",
        "overrides": ["model=shapes"],
        "rounds": 3,
        "environment": report(1.0)["environment"],
        "seed": 0,
        "rows": rows(rungs),
    }
    text = ladder_text(data, Path("outputs/ladders/x"))
    assert max(map(len, text.splitlines())) <= 80
    assert "fastdiff  ladder sdxl_tutorial on shapes: cpu, 2 threads, 3 rounds" in text
    assert "7.36 s 1.00x" in text
    assert "1.00 s 1.00x" in text
    assert "slower" in text
    assert "40.0 dB" in text
    assert "incompatible" in text
    assert "needs an NVIDIA GPU (instead: x)" in text
    assert "the same line again goes on from here" in text
    assert "published: one 1024x1024 picture of SDXL on NVIDIA A100, 80 GB" in text
    markdown = page.render(data)
    assert "| bf16 | 4.63 s 1.59x | 2.00 s 0.51x |" in markdown
    assert "python -m fastdiff ladder sdxl_tutorial model=shapes ladder.rounds=3" in markdown


def _typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastdiff", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ladder"], "ladder needs the name of a ladder first"),
        (["ladder", "sdxl"], "did you mean: sdxl_tutorial"),
        (["ladder", "guide", "experiment=guide/aot"], "a ladder chooses experiment itself"),
        (["ladder", "guide", "ladder.rouds=1"], "did you mean: ladder.rounds"),
        (["ladder", "guide", "ladder.dir="], "ladder.dir can't be ''"),
        (["ladder", "guide", "quality.reference=x.png"], "compares with the pictures of its first"),
    ],
)
def test_a_mistyped_ladder_is_refused_and_writes_nothing(
    tmp_path: Path, words: Sequence[str], text: str
) -> None:
    run = _typed(tmp_path, *words)
    assert run.returncode == 2, run.stderr
    assert text in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_distilled_ladder_runs_on_the_embedded_model_and_again_from_its_folder(
    tmp_path: Path,
    torch_server: TorchServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forked = functools.partial(run_in_process, starter=torch_server.start)
    monkeypatch.setattr(fastdiff.runs.ladder.climb, "run_in_process", forked)
    monkeypatch.chdir(tmp_path)
    words = ["ladder", "distilled_guide", "model=shapes", "precision=fp32", "device=cpu"]
    words += ["scheduler=euler", "generation.steps=8", "generation.images_per_prompt=1"]
    words += ["bench=once", "ladder.rounds=1", "ladder.dir=here"]
    code = main(words)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    data = json.loads((tmp_path / "here" / "ladder.json").read_text())
    assert [row["status"] for row in data["rows"]] == ["ok", "ok", "ok"]
    teacher, student, tiny = data["rows"]
    assert teacher["quality"]["reference"] == "itself"
    assert student["quality"]["psnr_db"] > 10  # another model, the same scene
    assert tiny["quality"]["psnr_db"] > 10
    assert any("vae.tiny" in effect for effect in tiny["applied"])
    assert "distilled_tiny_vae" in printed.out
    monkeypatch.setattr(
        fastdiff.runs.ladder.climb, "run_in_process", None
    )  # nothing is left to run
    assert main(words) == 0
    assert capsys.readouterr().out == printed.out


def test_composing_an_experiment_of_a_ladder_is_what_its_rung_runs() -> None:
    run = compose(["experiment=sdxl_tutorial/int8", "model=shapes"])
    assert run.choices["quant"] == "int8"
