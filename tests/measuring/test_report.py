"""What a report says of the machine that a run had, its fields without figures, and its page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fastdiff.display import words
from fastdiff.display.report import render as rendered
from fastdiff.latency import Latency
from fastdiff.machine import hardware, nvml, software
from fastdiff.machine.files import read_json
from fastdiff.measuring import fields
from fastdiff.measuring.fields import Host, Report, Warmup
from fastdiff.measuring.report import blank_report, measured_on
from fastdiff.passes.effects import Effect


def test_the_runs_own_process_records_what_explains_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setattr(software, "cpp_compiler", lambda _: "g++ 13")
    seen = measured_on("cpu").to_dict()
    text = json.dumps(seen, allow_nan=False)
    assert "hf_secret" not in text
    assert seen["environment_variables"]["GOMP_SPINCOUNT"] == "0"
    assert seen["packages"]["torch"] == seen["torch"] == str(torch.__version__)
    assert seen["torch_build"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert seen["torch_settings"]["threads"] == seen["threads"] == torch.get_num_threads()
    assert seen["processor"]["logical"] == os.cpu_count()
    assert seen["cpp_compiler"] == "g++ 13"
    assert seen["gpu"] is None
    assert seen["git_dirty"] in (True, False, None)
    assert (seen["git_dirty"] is None) is (seen["git_dirty_reason"] is not None)


def test_planning_and_a_run_that_failed_start_no_program(
    shapes_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: Any, **__: Any) -> Any:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", started)
    plan = shapes_plan()
    report = blank_report(plan.setting.run, plan, [], "now").to_dict()
    assert "torch_build" not in report["environment"]
    assert report["compile"]["saved_reason"] == "nothing was measured"


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "benchmarks" / "results").rglob("round-1/report.json")),
    ids=lambda p: "/".join(p.parts[-4:-2]),
)
def test_a_committed_report_is_read_with_every_field_that_it_has(path: Path) -> None:
    def held(data: Any, found: Any) -> Any:
        """Of what was found, that which the file has."""
        if isinstance(data, dict):
            return {key: held(value, found[key]) for key, value in data.items()}
        return (
            [held(*each) for each in zip(data, found, strict=True)]
            if isinstance(data, list)
            else found
        )

    data = read_json(path)
    assert held(data, Report.of(data).to_dict()) == data


def test_the_fields_are_those_that_are_measured() -> None:
    files = hardware.Files()
    for part, made in (
        (fields.System, hardware.system(files, {})),
        (fields.Processor, hardware.processor(files)),
        (fields.HostMemory, hardware.host_memory(files)),
        (fields.GpuMoment, nvml.gpu_state([])),
        (fields.PassEffect, Effect("quant.int8", 63, "linears").to_dict()),
        (fields.Times, Latency(()).to_dict()),
        (fields.TimesByCall, Latency.by_call(()).to_dict()),
    ):
        assert part.of(made).to_dict() == made
    assert set(nvml.gpu_settings([])) < set(fields.Gpu().to_dict())


def test_a_report_of_another_fastdiff_is_read(shapes_plan: Any) -> None:
    plan = shapes_plan()
    data = blank_report(plan.setting.run, plan, [], "now").to_dict()
    assert Report.of(data).to_dict() == data
    del data["quality"]["lpips"], data["parts_s"], data["applied"], data["profile"]["trace"]
    found = Report.of(data | {"bananas": 3})
    assert (found.quality.lpips, found.parts_s.whole, found.parts_s.reason) == (None, None, None)
    assert (found.applied, found.profile.trace) == ([], None)
    assert "bananas" not in found.to_dict()


def test_a_report_without_figures_has_every_field_in_its_place(shapes_plan: Any) -> None:
    plan = shapes_plan()
    report = blank_report(plan.setting.run, plan, [], "now").to_dict()
    assert {"whole", "denoiser", "vae", "denoiser_calls", "calls"} <= set(report["parts_s"])
    assert report["memory_bytes"]["weights"] == {"device": None, "host": None}
    assert {"achieved_tflops_per_s", "bound", "step_s", "note"} <= set(report["roofline"])
    assert set(report["exactness"]) == {
        *("checked", "reason", "choices", "passed", "arithmetic", "denoiser", "decode"),
    }
    assert {"steps", "measured", "trace", "heaviest"} <= set(report["profile"])
    assert report["step_latency_s"]["calls"] == []
    for field in ("parts_s", "roofline", "exactness", "profile", "quality", "syncs"):
        assert report[field]["reason"] == "nothing was measured"
    assert report["memory_bytes"]["reasons"] == {"all": "nothing was measured"}


# report.md -----------------------------------------------------------------------------------------


def rows(report: dict[str, Any]) -> dict[str, str]:
    """The figures of report.md, by their names."""
    table = (
        rendered(Report.of(report))
        .partition("| figure | value |\n|---|---|\n")[2]
        .partition("\n\n")[0]
    )
    return dict(line.strip("| ").split(" | ", 1) for line in table.splitlines())


def test_the_page_of_a_run_without_figures_is_dashes_and_reasons(shapes_plan: Any) -> None:
    plan = shapes_plan()
    report = blank_report(plan.setting.run, plan, [], "now").to_dict()
    report["error"] = {"message": "it broke", "log": "log.txt", "log_tail": ["a", "b"]}
    found = rows(report)
    assert found["import"] == found["compile"] == found["warm-up"] == "-"
    assert found["latency, median"] == found["latency, spread"] == "-"
    assert found["memory in parts"] == "-"
    assert found["where the time goes"] == "not timed: nothing was measured"
    assert found["exactness"] == "not checked: nothing was measured"
    assert not {"latency, p99", "load average", "threads and CPUs"} & set(found)
    assert "it broke\n\n```\na\nb\n```\n" in rendered(Report.of(report))
    report["error"]["log_tail"] = []
    assert "it broke\n\n| figure" in rendered(Report.of(report))


HOST = {
    "threads": 1,
    "affinity": [1],
    "processors": 2,
    "load_before": 1.5,
    "load_after": 2.0,
    "other_share": 0.031,
    "steal_share": 0.0,
    "reason": None,
}


def test_the_page_tells_how_it_was_timed(shapes_plan: Any) -> None:
    plan = shapes_plan()
    report = blank_report(plan.setting.run, plan, [], "now").to_dict()
    report |= {"import_s": 4.2, "compile_s": 0.0, "conditions": {"host": HOST, "gpu": None}}
    report["environment"]["threads"] = 1
    report["warmup"] = {"asked": 1, "calls": 4, "most": 10, "steady": True}
    report["latency_s"] = Latency((0.4,) * 100).to_dict()
    report["step_latency_s"] = Latency.by_call([(0.1,) * 24] * 5).to_dict()
    found = rows(report)
    assert found["import"] == "4.20 s"
    assert found["compile"] == "none"
    assert found["warm-up"] == "4 calls (1 asked), steady"
    assert found["latency, median's 95 % interval"] == "0.400 s to 0.400 s"
    assert found["latency, spread"] == "p10 0.400 s, p90 0.400 s"
    assert found["latency, p99"] == "0.400 s"
    assert found["one step, median's 95 % interval"] == "0.100 s to 0.100 s"
    assert "one step, p99" not in found
    assert found["threads and CPUs"] == "1 thread on 1 of 2 CPUs"
    assert found["load average"] == "1.50 before the timed calls, 2.00 after"
    assert found["others took"] == "3 % of this run's CPUs; for other machines 0 %"
    assert ", 1 thread, now." in rendered(Report.of(report))


def test_fewer_than_three_calls_have_no_spread(shapes_plan: Any) -> None:
    plan = shapes_plan()
    report = blank_report(plan.setting.run, plan, [], "now").to_dict()
    for samples in ((3.81,), (3.81, 3.9)):
        report["latency_s"] = Latency(samples).to_dict()
        assert rows(report)["latency, spread"] == "-"
        assert rows(report)["latency, median's 95 % interval"] == "-"


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ((None, 0, None, None), "-"),
        ((0, 0, 10, None), "none"),
        ((1, 1, 10, True), "1 call, steady"),
        ((1, 10, 10, False), "10 calls (1 asked), still getting faster"),
        ((1, 1, 1, None), "1 call, too few to tell if steady"),
    ],
)
def test_a_warm_up_in_words(known: tuple[Any, ...], said: str) -> None:
    assert words.warm_up(Warmup(*known)) == said


def test_what_the_system_does_not_say_of_the_machine() -> None:
    unknown = HOST | {"threads": 2, "affinity": None, "load_before": None, "other_share": None}
    assert words.room(Host.of(unknown)) == "2 threads on 2 CPUs"
    assert words.load(Host.of(unknown)) == "unknown"
    why = "0.90 s are too short to tell; a larger bench.runs makes it longer"
    assert words.others(Host.of(unknown | {"reason": why})) == f"unknown: {why}"


def test_compiling_in_words() -> None:
    compiled = {"graphs": 0, "cache": "none", "saved_s": None}
    assert words.compiling(Report.of({"compile_s": None, "compile": compiled})) == "-"
    assert words.compiling(Report.of({"compile_s": 0.0, "compile": compiled})) == "none"
    compiled |= {"graphs": 2, "cache": "warm", "saved_s": 90.8}
    said = words.compiling(Report.of({"compile_s": 5.2, "compile": compiled}))
    assert said == "5.20 s, warm: the cache saved 90.8 s"
