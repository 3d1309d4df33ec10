"""The benchmarks' arithmetic, and that what they compare is the same picture. Nothing here is timed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def measuring() -> ModuleType:
    """benchmarks/measuring.py; the folder is no package, so that its scripts run as files."""
    spec = importlib.util.spec_from_file_location("measuring", BENCHMARKS / "measuring.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_ratios_and_orders_are_fastdiffs_own(measuring: ModuleType) -> None:
    from fastdiff import latency

    assert measuring.Ratio is latency.Ratio
    assert measuring.paired_ratio is latency.paired_ratio
    assert measuring.counterbalanced is latency.counterbalanced


def test_a_command_is_shown_as_typed_at_the_top_of_the_checkout(measuring: ModuleType) -> None:
    command = [sys.executable, str(BENCHMARKS / "parity.py"), "--name", "two words"]
    assert measuring.as_typed(command) == "python benchmarks/parity.py --name 'two words'"


def test_a_command_that_ends_otherwise_than_expected_ends_the_benchmark(
    measuring: ModuleType, tmp_path: Path
) -> None:
    failing = [sys.executable, "-c", "print('so'); raise SystemExit(3)"]
    assert measuring.timed_command(failing, tmp_path, exit_code=3).output == "so\n"
    with pytest.raises(SystemExit, match="ended with exit code 3, not 0:\nso"):
        measuring.timed_command(failing, tmp_path)


def test_results_hold_the_command_and_the_machine_and_no_path(
    measuring: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiff.machine.files import read_json

    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "parity.py"), "--pairs", "2"])
    path = measuring.write_results("some", {"figure_s": 1.5}, measuring.now())
    assert path == tmp_path / "some.json"
    results = read_json(path)
    assert results["command"] == "python benchmarks/parity.py --pairs 2"
    assert results["figure_s"] == 1.5
    assert results["machine"]["cpu"]
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["versions"]["torch"]
    assert str(measuring.ROOT) not in path.read_text()


def test_the_handwritten_script_knows_nothing_of_fastdiff() -> None:
    source = (BENCHMARKS / "handwritten.py").read_text()
    assert "import fastdiff" not in source
    assert "from fastdiff" not in source


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_handwritten_script_draws_fastdiffs_picture(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "handwritten.py"), "--steps", "2", "--runs", "1"]
    by_hand = tmp_path / "by-hand.png"
    done = subprocess.run(
        [*script, "--warmup", "0", "--out", str(by_hand)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    ours = subprocess.run(
        [
            *(sys.executable, "-m", "fastdiff", "quality=none", "bench=once"),
            *("generation.steps=2", f"hydra.run.dir={folder}"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ours.returncode == 0, ours.stderr
    with Image.open(by_hand) as theirs, Image.open(folder / "image-0.png") as picture:
        difference = numpy.asarray(theirs).astype(int) - numpy.asarray(picture).astype(int)
    assert difference.shape == (64, 64, 3)
    assert not difference.any()


@pytest.fixture(scope="module")
def startup(measuring: ModuleType) -> ModuleType:
    """benchmarks/startup.py, which imports measuring.py as a script does."""
    spec = importlib.util.spec_from_file_location("startup", BENCHMARKS / "startup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_start_is_too_slow_only_if_the_whole_interval_lies_above_its_goal(
    startup: ModuleType, measuring: ModuleType
) -> None:
    ratios = {
        "plan": measuring.Ratio(4.2, 3.9, 4.5),
        "--help": measuring.Ratio(4.5, 4.1, 4.9),
        "plan -m, 50 cells": measuring.Ratio(3.9, 3.8, 4.1),
    }
    assert startup.missed(ratios, {}, []) == [
        "--help: 4.500 [4.100, 4.900] times import hydra, the goal is 4"
    ]


def test_a_start_that_needs_too_much_memory_is_a_goal_missed(startup: ModuleType) -> None:
    peaks = {"plan": 100_000_001, "--help": 99_000_000, "misspelled option": None}
    assert startup.missed({}, peaks, []) == ["plan: 100 MB, the goal is 100 MB"]


def test_the_planned_grid_of_the_benchmark_has_50_cells(startup: ModuleType) -> None:
    from fastdiff.choices.grid import read_grid

    words = startup.COMMANDS["plan -m, 50 cells"].words
    assert words[:4] == ("-m", "fastdiff", "plan", "-m")
    assert len(read_grid(words[4:]).cells) == 50


@pytest.fixture(scope="module")
def peers(measuring: ModuleType) -> ModuleType:
    """benchmarks/peers.py, which imports measuring.py as a script does."""
    spec = importlib.util.spec_from_file_location("peers", BENCHMARKS / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_first_picture_is_the_command_less_the_calls_after_it(peers: ModuleType) -> None:
    assert peers.Outcome(10.0, calls_after_first_s=4.0).first_picture_s == 6.0
    assert peers.Outcome(10.0).first_picture_s is None, "a tool that doesn't say"


def test_tools_are_compared_only_where_both_run_and_say_it(peers: ModuleType) -> None:
    said = [peers.Outcome(2.0, latency_s=0.2)] * 2
    ours = peers.Row(said[0], [peers.Outcome(1.0, latency_s=0.4)] * 2)
    theirs = peers.Row(said[0], said)
    refused = peers.Row(peers.Outcome(1.0, 2, "no"), [peers.Outcome(1.0, 2, "no")] * 2)
    assert peers.ratio(theirs, ours, "seconds").value == pytest.approx(2.0)
    assert peers.ratio(theirs, ours, "latency_s").value == pytest.approx(0.5)
    assert peers.ratio(theirs, ours, "step_s") is None
    assert peers.ratio(refused, ours, "seconds") is None


def test_a_row_that_failed_once_counts_as_failed(peers: ModuleType) -> None:
    good, bad = peers.Outcome(1.0, latency_s=0.1), peers.Outcome(1.0, 1, "died")
    assert peers.Row(good, [good]).runs
    assert not peers.Row(good, [good, bad]).runs


def test_the_quickest_of_each_maker_meet(peers: ModuleType) -> None:
    def row(latency_s: float, exit_code: int = 0) -> object:
        one = peers.Outcome(1.0, exit_code, latency_s=latency_s)
        return peers.Row(one, [one, one])

    rows = {
        "fastdiff fp32": row(0.5),
        "fastdiff bf16": row(0.3),
        "fastdiff bf16, int8": row(0.1, exit_code=1),
        "OpenVINO fp32": row(0.4),
        "OpenVINO bf16": row(0.2),
    }
    assert peers.pairs(rows) == [
        ("fastdiff bf16", "OpenVINO bf16"),
        ("fastdiff fp32", "OpenVINO fp32"),
    ]


def test_what_a_failed_command_said_names_the_error_and_no_folder(
    peers: ModuleType, tmp_path: Path
) -> None:
    trace = f"Traceback\n  File {tmp_path}/x.py\nOSError: no {tmp_path}/model\nreal noise\n"
    assert peers.what_it_said(trace, [tmp_path]) == "OSError: no DIR/model"
    ours = (
        "fastdiff: this run can't work here (1 problem)\n  quant=imt8   there is no such option\n"
    )
    assert peers.what_it_said(ours, []) == (
        "fastdiff: this run can't work here (1 problem) quant=imt8   there is no such option"
    )
    assert peers.what_it_said("", []) == "nothing"


def test_the_same_length_is_told_to_every_tool(peers: ModuleType) -> None:
    length = peers.Length(Path("M"), steps=7, guidance=3.0, side=64, runs=4, warmup=2)
    ours = " ".join(peers.fastdiff_command(("quant=int8",), length, Path("F")))
    assert "generation.steps=7 generation.guidance_scale=3.0 generation.height=64" in ours
    assert "bench.runs=4 bench.warmup=2" in ours
    optimum = peers.optimum_command(Path("venv/bin/python"), ("last",), length, Path("F"))
    assert optimum[0] == "venv/bin/optimum-benchmark"
    assert {"scenario.iterations=4", "scenario.warmup_runs=2"} < set(optimum)
    call = "+scenario.call_kwargs={num_inference_steps:7,guidance_scale:3.0,height:64,width:64}"
    assert optimum[-2:] == [call, "last"]
    script = " ".join(peers.script_command(Path("p"), "pruna_run.py", ("--dtype", "bf16"), length))
    assert "--steps 7 --guidance 3.0 --height 64 --width 64 --warmup 2 --runs 4" in script


def test_a_folder_for_older_tokenizers_holds_their_files_too(
    peers: ModuleType, tmp_path: Path
) -> None:
    folder = peers.classic_folder(peers.SHAPES, tmp_path / "shapes")
    for name in ("tokenizer", "tokenizer_2"):
        words = json.loads((folder / name / "vocab.json").read_text())
        assert words["<|startoftext|>"] >= 0
        header, first, *_ = (folder / name / "merges.txt").read_text().splitlines()
        assert header == "#version: 0.2"
        assert len(first.split(" ")) == 2
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_every_setting_is_spelled_for_fastdiff_as_it_plans_or_refuses_it(peers: ModuleType) -> None:
    planned = {
        setting: subprocess.run(
            [sys.executable, "-m", "fastdiff", "plan", "device=cpu", *words["fastdiff"]],
            capture_output=True,
        ).returncode
        for setting, words in peers.SETTINGS.items()
        if "fastdiff" in words
    }
    assert {setting for setting, code in planned.items() if code} == {
        "fp8",
        "misspelled key",
        "misspelled option",
    }


def test_every_candidate_beside_openvino_can_run_on_a_cpu(peers: ModuleType) -> None:
    for words in (*peers.CANDIDATES.values(), *peers.SDXL_CANDIDATES.values()):
        plan = [sys.executable, "-m", "fastdiff", "plan", "device=cpu", *words]
        done = subprocess.run(plan, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_results_do_not_name_the_folder_of_the_environments(peers: ModuleType) -> None:
    words = [
        "--sdxl",
        "--venvs",
        "/some/where",
        "--rounds",
        "2",
        "--venvs=/else",
        "--keep",
        "/there",
    ]
    assert peers.without_places(words) == ["--sdxl", "--rounds", "2"]
