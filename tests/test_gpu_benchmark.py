"""benchmarks/gpu.sh without a GPU: its expectations beside the plans of a made-up one, what it keeps, and all of it on a CPU."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdiff.machine.environment import TOOLS, Environment, Gpu

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
FACTS = {
    "cards": [{"name": "NVIDIA H100", "driver_version": "580.1", "compute_cap": "9.0"}],
    "torch": "2.11.0+cu130",
    "torch_cuda": "13.0",
    "torch_sees": "NVIDIA H100",
    "capability": [9, 0],
    "memory_bytes": 80 * 10**9,
    "c": True,
    "cpp": True,
    "python_h": True,
    "toolkit": True,
    "nvcc": True,
    "triton": True,
    "processors": 8,
}


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """gpu.py and cards.py, imported as scripts import one another."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import cards
        import gpu
        import gpu_steps

        yield SimpleNamespace(gpu=gpu, steps=gpu_steps, cards=cards)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def bench(modules: SimpleNamespace, tmp_path: Path) -> Any:
    """A made-up H100's, with all that compiling needs."""
    return modules.steps.Bench("cuda", False, tmp_path / "out", tmp_path / "scratch", FACTS)


# Expectations --------------------------------------------------------------------------------------


def machine(**facts: Any) -> Environment:
    known: dict[str, Any] = {
        "python": "3.12.1",
        "os": "Linux 6.1 x86_64",
        "cpu": "Some CPU",
        "cpu_flags": frozenset({"avx512f", "avx512_bf16"}),
        "threads": 8,
        "memory_bytes": 64 * 2**30,
        "available_memory_bytes": 60 * 2**30,
        "gpus": (),
        "torch_cuda": None,
        "versions": {"torch": "2.13.0"},
        "modules": {"torchao": True, "xformers": True, "peft": True, "triton": True},
        "tools": TOOLS,
    }
    return Environment(**(known | facts))


def problems(words: list[str], here: Environment) -> str | None:
    """Why a run can't work on a machine; None if it can."""
    from fastdiff.choices.compose import compose
    from fastdiff.errors import PlanError
    from fastdiff.models.reading import Component, ModelFacts
    from fastdiff.models.sources import model_of
    from fastdiff.planning.plan import make_plan

    run = compose(words)
    classes = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"}
    parts = {name: Component(name, "diffusers", kind, None, None) for name, kind in classes.items()}
    local = "model=local" in words
    facts = ModelFacts("FluxPipeline", parts) if local else model_of(run).facts()
    try:
        make_plan(run, here, facts)
    except PlanError as error:
        return str(error)
    return None


def single_runs(steps: Any, bench: Any) -> Iterator[tuple[str, list[str], str]]:
    """Name, overrides and expected outcome of each step that is one run."""
    for step in steps.steps():
        commands = step.commands(bench)
        words = [word for word in commands[0][3:] if not word.startswith("hydra.")]
        slots = [word for word in words if "=" in word]
        only_planned = words[0] == "plan"
        if len(commands) > 1 or commands[0][:3] != list(steps.FASTDIFF):
            continue
        if slots != words[only_planned:] or step.name == "no-compiler":
            continue
        verdict = step.judge(bench, steps.Ended((2,), ""))
        yield step.name, slots, verdict.expected["outcome"]


def test_a_gpu_that_has_everything_can_run_every_step(modules: SimpleNamespace, bench: Any) -> None:
    here = machine(gpus=(Gpu("NVIDIA H100", (9, 0), 80 * 2**30),), torch_cuda="12.8")
    found = list(single_runs(modules.steps, bench))
    assert len(found) > 50
    for name, words, outcome in found:
        refusal = problems(words, here)
        if name == "kernel-cudnn-sd15":  # heads of 160: no cuDNN kernel takes them on every card
            assert refusal is None or "attention=sdpa_cudnn" in refusal
            continue
        assert (outcome, refusal) == ("ok", None), name


def test_a_cpu_refuses_exactly_what_needs_a_gpu(modules: SimpleNamespace, tmp_path: Path) -> None:
    facts = FACTS | {"cards": [], "torch_sees": None, "capability": None}
    bench = modules.steps.Bench("cpu", True, tmp_path, tmp_path, facts)
    found = list(single_runs(modules.steps, bench))
    outcomes = {name: outcome for name, _, outcome in found}
    for name, words, outcome in found:
        assert (problems(words, machine()) is not None) == (outcome == "refused"), name
    assert outcomes["offload-group-stream"] == "refused"
    assert outcomes["graphs"] == "planned"
    assert outcomes["sdxl"] == "ok"


def test_what_a_machine_lacks_is_expected_to_be_refused(
    modules: SimpleNamespace, bench: Any
) -> None:
    def lacking(**facts: Any) -> list[str]:
        other = modules.steps.Bench("cuda", False, bench.out, bench.scratch, FACTS | facts)
        return [
            name for name, _, outcome in single_runs(modules.steps, other) if outcome == "refused"
        ]

    assert lacking(toolkit=False) == lacking(cpp=False) == ["aot", "flux-aot"]
    for missing in ({"c": False}, {"python_h": False}, {"triton": False}):
        assert {"graphs", "aot", "int8", "tutorial-int8"} <= set(lacking(**missing))
        assert "int8-eager" not in lacking(**missing)
    assert {"graphs", "fp8", "tf32"} <= set(lacking(capability=[6, 1]))
    assert "fp8" in lacking(capability=[8, 0])
    assert "kernel-cudnn" not in lacking(capability=[8, 0])


def test_the_tutorials_rungs_stand_beside_what_was_published(
    modules: SimpleNamespace, bench: Any
) -> None:
    rungs = [step for step in modules.steps.steps() if step.name.startswith("tutorial-")]
    judged = [step.judge(bench, modules.steps.Ended((1,), "")) for step in rungs]
    seconds = [each.expected["published"]["latency_s"] for each in judged]
    assert seconds == [7.36, 4.63, 3.31, 2.54, 2.52, 2.43]


def test_a_report_that_is_not_exact_or_ran_another_kernel_is_otherwise(
    modules: SimpleNamespace, bench: Any
) -> None:
    step = next(step for step in modules.steps.steps() if step.name == "kernel-flash-graphs")
    report = {
        "status": "ok",
        "error": None,
        "applied": [],
        "notices": [],
        "latency_s": {"median": 0.5},
        "step_latency_s": None,
        **dict.fromkeys(["load_s", "apply_s", "compile_s", "quality", "parts_s"]),
        "peak_memory_bytes": {"device_reserved": 10**9},
        "compile": {
            "graphs": 2,
            "cuda_graphs_skipped": 1,
            "cuda_graphs_reasons": ["mutated inputs"],
        },
        "roofline": {"fraction_of_limit": 1.3},
        "exactness": {"passed": False, "reason": "off by 3"},
        "effects": [{"pass": "attention.sdpa_flash", "details": {"kernels": {"efficient": 14}}}],
        "syncs": {"per_step": 0},
    }
    folder = bench.folder(step.name)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    verdict = step.judge(bench, modules.steps.Ended((0,), ""))
    assert verdict.wrong == [
        "not exact: off by 3",
        "a step at 130% of what the machine can do",
        "1 CUDA graphs were left out: mutated inputs",
        "kernels {'efficient': 14}, not flash alone",
    ]
    assert verdict.found["latency_s"] == 0.5


def test_a_package_that_torch_does_not_count_shows_on_the_card(
    modules: SimpleNamespace, bench: Any
) -> None:
    check = modules.steps.memory_is_counted(2.0)
    report = {"peak_memory_bytes": {"device_reserved": 3 * 10**9}}
    assert not list(check(bench, report, modules.steps.Ended((0,), "", 4 * 10**9)))
    assert list(check(bench, report, modules.steps.Ended((0,), "", 6 * 10**9))) == [
        "the card holds 3.0 GB more than the report counts"
    ]


# A call --------------------------------------------------------------------------------------------


def made_up(modules: SimpleNamespace, name: str, program: str, limit_s: float = 20) -> Any:
    """A step that is a small Python program, good if it exits with 0."""

    def judge(bench: Any, ended: Any) -> Any:
        wrong = [] if ended.codes == (0,) else [f"exit code {ended.codes[-1]}"]
        return modules.steps.Verdict({}, ended.data(), wrong)

    commands = [[sys.executable, "-c", program]]
    first = name == "toolchain"
    return modules.steps.Step(name, limit_s, lambda bench: commands, judge, first=first)


@pytest.fixture
def call(modules: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls gpu.py with made-up steps after a toolchain that is there; returns exit code and gpu.json."""

    def go(*words: str, sees: str | None = None, **programs: str) -> tuple[int, dict[str, Any]]:
        facts = json.dumps(FACTS | {"torch_sees": sees})
        steps = [made_up(modules, "toolchain", f"print({facts!r})")]
        for name, program in programs.items():
            steps.append(made_up(modules, name, program, 1.5 if name == "slow" else 20))
        monkeypatch.setattr(modules.gpu, "steps", lambda: steps)
        places = ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]
        code = modules.gpu.main([*places, "--tiny", *words])
        return code, json.loads((tmp_path / "out" / "gpu.json").read_text())

    return go


def statuses(found: dict[str, Any]) -> dict[str, str]:
    return {record["step"]: record["status"] for record in found["steps"]}


def test_each_result_is_written_and_the_whole_has_them_all(call: Any, tmp_path: Path) -> None:
    code, found = call(good="print('{\"figure\": 1}')", bad="raise SystemExit(3)")
    assert code == 1
    assert statuses(found) == {
        "toolchain": "as expected",
        "good": "as expected",
        "bad": "otherwise",
    }
    names = sorted(path.name for path in (tmp_path / "out" / "steps").iterdir())
    assert names == ["01-toolchain.json", "02-good.json", "03-bad.json"]
    record = json.loads((tmp_path / "out" / "steps" / "02-good.json").read_text())
    assert record["found"] == {"figure": 1}
    assert record["seconds"] >= 0
    assert found["steps"][2]["wrong"] == ["exit code 3"]


def test_a_step_that_takes_too_long_is_stopped_with_what_it_said(call: Any) -> None:
    code, found = call(slow="import time; print('began', flush=True); time.sleep(60)")
    assert code == 1
    assert found["steps"][1]["status"] == "timeout"
    assert found["steps"][1]["wrong"] == ["stopped after 2 s"]
    assert found["steps"][1]["log_tail"][0] == "began"


def test_what_the_whole_limit_cut_is_tried_again_and_what_is_finished_is_not(
    call: Any, tmp_path: Path
) -> None:
    quick = f"open({str(tmp_path / 'counted')!r}, 'a').write('x')"
    wait = f"import os, time; time.sleep(0 if os.path.exists({str(tmp_path / 'fast')!r}) else 60)"
    code, found = call("--seconds", "8", "--side-by-side", "1", quick=quick, waits=wait)
    assert code == 75
    assert statuses(found) == {"toolchain": "as expected", "quick": "as expected", "waits": "cut"}
    assert found["missing"] == ["waits"]
    (tmp_path / "fast").touch()
    code, found = call(quick=quick, waits=wait)
    assert code == 0
    assert found["missing"] == []
    assert (tmp_path / "counted").read_text() == "x"
    call("--again", "quick", quick=quick, waits=wait)
    assert (tmp_path / "counted").read_text() == "xx"


def test_an_interrupted_call_ends_what_it_began_and_keeps_what_is_finished(
    call: Any, tmp_path: Path
) -> None:
    ends_its_parent = (
        f"import os, signal, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); "
        "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, found = call("--side-by-side", "1", good="", ends=ends_its_parent, later="")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 130
    assert statuses(found) == {"toolchain": "as expected", "good": "as expected"}
    assert found["missing"] == ["ends", "later"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_steps_are_chosen_by_name(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = call("--only", "on*", one="", two="raise SystemExit(1)")
    assert code == 0
    assert statuses(found) == {"toolchain": "as expected", "one": "as expected"}
    with pytest.raises(SystemExit) as ended:
        call("--only", "onne", one="")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gpu.sh: there is no step 'onne'\n  did you mean: one\n"


def test_results_of_another_machine_are_not_mixed_with_this_ones(call: Any) -> None:
    call(sees="NVIDIA H100", one="")
    code, found = call(sees="NVIDIA L4", one="", two="")
    assert code == 1
    assert found["steps"][0]["wrong"] == [
        "the results that are there were made with torch_sees NVIDIA H100, here it is NVIDIA L4; "
        "instead: OUT=DIR, another folder"
    ]
    assert "two" not in statuses(found)


def test_results_hold_no_paths_and_no_names_of_hosts_or_users(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "node17")
    said = {
        "a": ['File "/home/ada/x/run.py", line 3, on node17', "see https://example.org/a/b"],
        "b": "outputs/run of ada: /tmp/f-0/log.txt; canada",
    }
    assert modules.gpu.shareable(said) == {
        "a": ['File ".../run.py", line 3, on HOST', "see https://example.org/a/b"],
        "b": "outputs/run of USER: .../log.txt; canada",
    }


# What is carried -----------------------------------------------------------------------------------


def test_every_dependency_is_carried_or_comes_with_torch_and_transformers() -> None:
    text = (BENCHMARKS / "gpu_wheels.sh").read_text()
    carried = set(re.sub("#.*", "", text.split("names=(")[1].split("\n)")[0]).split())
    there = {"torch", "transformers", "numpy", "scipy", "pillow", "safetensors"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w.-]", need)[0] for need in project["dependencies"]}
    assert needed <= carried | there
    assert {"pytest", "pytest-xdist", "hypothesis", "peft"} <= carried


# The table of cards --------------------------------------------------------------------------------


def test_the_limits_say_what_has_run_on_which_card(modules: SimpleNamespace) -> None:
    text = (ROOT / "docs" / "limits.md").read_text()
    fresh = modules.cards.with_table(text, modules.cards.results())
    assert fresh == text, "run: python benchmarks/cards.py docs/limits.md"


def test_a_card_is_a_row_and_a_cpu_is_none(modules: SimpleNamespace) -> None:
    steps = [
        {"step": "toolchain", "status": "as expected"},
        {"step": "aot", "status": "otherwise"},
        {"step": "sdxl", "status": "left out"},
    ]
    found = {
        "device": "cuda",
        "tiny": False,
        "card": "NVIDIA L4",
        "driver": "580.1",
        "torch": "2.11.0+cu130",
        "commits": ["0123456789abcdef"],
        "uncommitted_changes": False,
        "steps": steps,
        "missing": ["tests"],
    }
    assert modules.cards.render([found]).splitlines() == [
        "| card | software | as expected | not as expected | not run |",
        "| --- | --- | --- | --- | --- |",
        "| NVIDIA L4 | driver 580.1, torch 2.11.0+cu130, commit 0123456789 | 1 steps | `aot` | `sdxl`, `tests` |",
    ]
    nothing = modules.cards.render([found | {"device": "cpu", "tiny": True}])
    assert nothing.startswith("Nothing has run on a GPU yet.")


# All of it -----------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_all_of_it_goes_through_on_a_cpu(modules: SimpleNamespace, tmp_path: Path) -> None:
    places = {"OUT": str(tmp_path / "out"), "SCRATCH": str(tmp_path / "scratch")}
    done = subprocess.run(
        [str(BENCHMARKS / "gpu.sh"), "--tiny"],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **places},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "out" / "gpu.json").read_text()
    found = json.loads(text)
    tried = [step.name for step in modules.steps.steps() if not step.asked]
    assert [record["step"] for record in found["steps"]] == tried
    assert {record["status"] for record in found["steps"]} == {"as expected"}
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    outcomes = {record["step"]: record["found"].get("outcome") for record in found["steps"]}
    assert outcomes["fp8"] == outcomes["offload-model"] == "refused"
    assert outcomes["exact-regional"] == outcomes["flux-bf16"] == "ok"
