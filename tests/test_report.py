"""What a report says of the machine that a run had."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from fastdiff import software
from fastdiff.report import MeasuredOn, blank_report


def test_the_runs_own_process_records_what_explains_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setattr(software, "cpp_compiler", lambda _: "g++ 13")
    seen = MeasuredOn("cpu").to_dict()
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
    report = blank_report(plan.setting.run, plan, [], "now")
    assert "torch_build" not in report["environment"]
    assert report["compile"]["saved_reason"] == "nothing was measured"
