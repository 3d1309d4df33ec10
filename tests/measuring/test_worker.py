"""Runs in their own process: what a report holds, and every way in which a run can end.

The runs of the embedded model are shared by several tests, and those whose screen and process are not their subject are
forked; what a worker does when it dies is shown by small programs in its place.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TWO_THREADS, TorchServer, plan_of
from PIL import Image

from fastdiff.commands import run as commands_run
from fastdiff.errors import (
    InvalidOutputError,
    ModelError,
    NoEffectError,
    PlanError,
    Problem,
    Status,
)
from fastdiff.measuring import measure
from fastdiff.measuring.fields import Caption, Quality
from fastdiff.measuring.protocol import Events, ReferencePictures, Request, describe
from fastdiff.measuring.warm import refuse_if_too_large, say_what_a_large_reference_costs
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.passes.effects import Observed
from fastdiff.runs import process, single
from fastdiff.runs.process import RefusedByWorker, run_in_process
from fastdiff.runs.reference import find_reference

REPOSITORY = Path(__file__).parents[2]

FIELDS = {
    "schema": int,
    "run_id": str,
    "status": str,
    "error": type(None),
    "overrides": list,
    "config": dict,
    "plan": list,
    "effects": list,
    "load_s": float,
    "first_call_s": float,
    "compile_s": float,
    "latency_s": dict,
    "step_latency_s": dict,
    "throughput_images_per_s": float,
    "peak_memory_bytes": dict,
    "compile": dict,
    "syncs": dict,
    "quality": dict,
    "images": list,
    "environment": dict,
    "started_at": str,
    "finished_at": str,
}
"""Every field of a report that other tools may rely on, with its type in a run that went well."""

INNER = {
    "latency_s": {"samples", "median", "p10", "p90", "ci95"},
    "step_latency_s": {"samples", "median", "p10", "p90", "ci95"},
    "peak_memory_bytes": {"device_allocated", "device_reserved", "host"},
    "compile": {"graphs", "graph_breaks", "recompiles", "cache"},
    "syncs": {"per_step", "places", "reason"},
    "quality": {
        "reference_run_id",
        "identical",
        "psnr_db",
        "ssim",
        "max_abs_difference",
        "caption",
    },
    "environment": {
        "device",
        "device_name",
        "capability",
        "torch",
        "diffusers",
        "transformers",
        "torchao",
        "python",
        "os",
        "threads",
        "git",
    },
}


def strictly(text: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


SHORT = ("device=cpu", "generation.steps=2", "bench=once")


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "fastdiff", *SHORT, *overrides]


def environment() -> dict[str, str]:
    """As many threads as forked runs have, so that pictures can be compared."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY)} | TWO_THREADS


class Runs:
    """Whole runs from one working directory."""

    def __init__(self, home: Path, server: TorchServer) -> None:
        self.home, self._server = home, server

    def __call__(self, name: str, *overrides: str) -> Path:
        """Run the command to its end; returns the run's folder, with what it printed."""
        done = subprocess.run(
            command(f"hydra.run.dir={name}", *overrides),
            cwd=self.home,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        (self.home / name / "screen.txt").write_text(done.stdout)
        return self.home / name

    def fork(self, name: str, *overrides: str, code: int = 0) -> Path:
        """The same without Hydra around it, and as forks."""
        folder = self.home / name
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            screen = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            errors = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.chdir(self.home)
            for variable, value in TWO_THREADS.items():
                patch.setenv(variable, value)
            execute = functools.partial(single.execute, starter=self._server.start)
            patch.setattr(single, "execute", execute)
            words = [*SHORT, *overrides]
            assert commands_run._execute(plan_of(*words), words, folder) == code
        assert "Traceback" not in errors.getvalue()
        (folder / "screen.txt").write_text(screen.getvalue())
        return folder

    def references(self) -> list[Path]:
        return sorted((self.home / "outputs" / "references").iterdir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, torch_server: TorchServer) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), torch_server)


CHOICES = ("qkv=fused", "quant=int8", "memory_format=channels_last")


@pytest.fixture(scope="module")
def first(runs: Runs) -> Path:
    """The folder of a run with three passes that count; it draws the reference."""
    return runs("first", *CHOICES)


@pytest.fixture(scope="module")
def second(runs: Runs, first: Path) -> Path:
    """The folder of a later run of other choices with the same reference; it misses its budget."""
    (reference,) = runs.references()
    drawn = {path: path.stat().st_mtime_ns for path in (reference, *reference.iterdir())}
    folder = runs.fork("second", "precision=bf16", "quality.min_psnr_db=99", code=1)
    assert runs.references() == [reference]
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn, "it was drawn again"
    return folder


# A run that went well -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_has_every_promised_field_and_is_strict_json(first: Path) -> None:
    report = strictly((first / "report.json").read_text())
    wrong = {k: report.get(k) for k, kind in FIELDS.items() if not isinstance(report.get(k), kind)}
    assert wrong == {}
    for name, inner in INNER.items():
        assert inner <= set(report[name])
    assert report["status"] == "ok"
    assert report["profile"]["reason"] == "profile=false"
    assert report["overrides"] == [
        "device=cpu",
        "generation.steps=2",
        "bench=once",
        "hydra.run.dir=first",
        *CHOICES,
    ]


@pytest.mark.slow
def test_effects_are_in_the_plans_order_with_their_counts(first: Path) -> None:
    report = strictly((first / "report.json").read_text())
    changed = {effect["pass"]: effect["changed"] for effect in report["effects"]}
    assert list(changed) == [step["pass"] for step in report["plan"]]
    assert changed["qkv.fused"] == 16
    assert changed["memory_format.channels_last"] == 76
    assert changed["quant.int8"] == 78 + 4
    assert changed["attention.sdpa"] == 14
    assert all(set(e) == {"pass", "changed", "unit", "details"} for e in report["effects"])
    stages = [step["stage"] for step in report["plan"]]
    assert stages == ["load", "fuse", "layout", "quantize", "attention", "place"]


@pytest.mark.slow
def test_figures_of_a_report_agree_with_one_another(first: Path) -> None:
    report = strictly((first / "report.json").read_text())
    (sample,) = report["latency_s"]["samples"]
    assert report["latency_s"]["median"] == sample > 0
    assert report["throughput_images_per_s"] == pytest.approx(1 / sample)
    assert len(report["step_latency_s"]["samples"]) == 1  # two steps, the first left out
    assert 0 < report["step_latency_s"]["median"] < sample
    assert report["warmup_s"] == []
    assert report["peak_memory_bytes"]["host"] > 100_000_000
    assert report["compile"] == {
        "graphs": 0,
        "graph_breaks": 0,
        "recompiles": 0,
        "reasons": [],
        "cache": "none",
        "graphs_while_timing": 0,
        "cold_compile_s": None,
        "saved_s": None,
        "saved_reason": "nothing was compiled",
        "cuda_graphs": None,
        "cuda_graphs_skipped": None,
        "cuda_graphs_reasons": [],
    }
    assert report["repeatable"] == {"identical": True, "max_abs_difference": 0.0}
    assert report["started_at"] <= report["finished_at"]


@pytest.mark.slow
def test_pictures_lie_beside_the_report_with_the_hash_that_it_tells(first: Path) -> None:
    report = strictly((first / "report.json").read_text())
    (image,) = report["images"]
    file = first / image["path"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == image["sha256"]
    with Image.open(file) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")


@pytest.mark.slow
def test_a_run_folder_holds_what_was_asked_and_planned(first: Path) -> None:
    report = strictly((first / "report.json").read_text())
    request = strictly((first / "request.json").read_text())
    assert request["config"] == report["config"]
    assert request["overrides"] == report["overrides"]
    assert strictly((first / "plan.json").read_text()) == report["plan"]
    assert not [path for path in first.iterdir() if path.name.startswith(".report")]


@pytest.mark.slow
def test_the_page_shows_what_the_report_holds(first: Path) -> None:
    report = strictly((first / "report.json").read_text())
    page = (first / "report.md").read_text()
    assert page.startswith("# shapes: fp32, sdpa, fused qkv, channels_last, int8\n")
    assert "Status **ok** on cpu" in page
    assert "| qkv.fused | fuse | 16 blocks |" in page
    assert "| quant.int8 | quantize | 82 linears |" in page
    assert "| device | place | already so |" in page
    assert f"PSNR {report['quality']['psnr_db']:.1f} dB" in page
    assert "![image-0.png](image-0.png)" in page
    assert "python -m fastdiff device=cpu generation.steps=2 bench=once" in page


@pytest.mark.slow
def test_what_libraries_print_goes_to_the_log_and_not_to_the_screen(first: Path) -> None:
    screen, log = (first / "screen.txt").read_text(), (first / "log.txt").read_text()
    assert screen.startswith("fastdiff  shapes on cpu, ")
    assert max(map(len, screen.splitlines())) <= 80
    assert "torchvision" not in screen
    assert "Traceback" not in log


@pytest.mark.slow
def test_the_reference_is_drawn_once_and_used_again(first: Path, second: Path) -> None:
    report = strictly((first / "report.json").read_text())
    assert report["quality"]["reason"] is None
    assert report["quality"]["psnr_db"] > 20
    assert 0.8 < report["quality"]["ssim"] <= 1
    again = strictly((second / "report.json").read_text())
    assert again["quality"]["reference_run_id"] == report["quality"]["reference_run_id"]
    assert again["quality"]["psnr_db"] > 15
    assert again["run_id"] != report["run_id"]


@pytest.mark.slow
def test_a_picture_of_ones_own_is_compared_with_and_the_same_run_is_identical(
    runs: Runs, first: Path
) -> None:
    picture = first / "image-0.png"
    folder = runs.fork("own picture", *CHOICES, f"quality.reference={picture}")
    report = strictly((folder / "report.json").read_text())
    figures = {name: value for name, value in report["quality"].items() if value is not None}
    reasons, caption = figures.pop("reasons"), figures.pop("caption")
    assert figures == {
        "reference": picture.name,
        "identical": True,
        "ssim": 1.0,
        "max_abs_difference": 0.0,
        "missed": [],
    }
    assert reasons["max_abs_difference_latents"] == (
        "the reference is a picture, and a picture has no latents"
    )
    assert (caption["of"], caption["pictures"]) == ("own prompts", 1)
    assert len(runs.references()) == 1
    assert f"identical to {picture.name}" in (folder / "screen.txt").read_text()


@pytest.mark.slow
def test_a_run_that_misses_its_budget_keeps_its_figures_and_is_no_success(second: Path) -> None:
    report = strictly((second / "report.json").read_text())
    screen = (second / "screen.txt").read_text()
    psnr = report["quality"]["psnr_db"]
    assert report["status"] == "invalid_output"
    assert report["quality"]["missed"] == [
        f"quality.min_psnr_db=99: PSNR is {psnr:.4g} dB against fp32"
    ]
    assert report["quality"]["max_abs_difference_latents"] > 0
    assert report["latency_s"]["median"] > 0
    assert report["error"]["message"].startswith("the picture misses its budget\n")
    assert "invalid_output" in screen
    assert "quality.min_psnr_db=99: PSNR is" in screen
    assert f"PSNR {psnr:.1f} dB" in screen
    assert "Status **invalid_output**" in (second / "report.md").read_text()


@pytest.mark.slow
def test_a_run_whose_pass_did_nothing_fails_and_says_so_everywhere(runs: Runs) -> None:
    words = ("quality=none", "quant=int8", "quant.min_in_features=9999")
    folder = runs.fork("nothing", *words, code=1)
    screen = (folder / "screen.txt").read_text()
    report = strictly((folder / "report.json").read_text())
    message = (
        "quant.int8 changed 0 linears: it ran and did nothing on this model\n"
        "  instead: leave it out, or allow_no_effect=true to measure all the same"
    )
    assert report["status"] == "failed"
    assert report["error"]["message"] == message
    assert set(FIELDS) <= set(report)
    assert any("NoEffectError" in line for line in report["error"]["log_tail"])
    assert "Traceback" in (folder / "log.txt").read_text()
    assert "quant.int8 changed 0 linears" in screen
    assert "Traceback" not in screen
    page = (folder / "report.md").read_text()
    assert "Status **failed**" in page
    assert message in page


def test_without_a_comparison_quality_is_null_with_the_reason(shapes_plan: Any) -> None:
    found = find_reference(shapes_plan("quality=none"), [], SimpleNamespace())  # type: ignore[arg-type]
    said: list[str] = []
    quality = measure._quality(
        None,
        shapes_plan("quality=none"),
        SimpleNamespace(pictures=[Image.new("RGB", (16, 16))], latents=None),  # type: ignore[arg-type]
        found,
        SimpleNamespace(say=said.append, tell=None),  # type: ignore[arg-type]
    )
    assert quality == Quality(reason="quality=none", caption=Caption(reason="quality=none"))
    assert said == []


def test_a_plain_run_is_its_own_reference(shapes_plan: Any) -> None:
    found = find_reference(shapes_plan(), [], SimpleNamespace())  # type: ignore[arg-type]
    assert found.pictures == "own"
    assert found.run_id is not None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("small.png", "the picture has 32x32 pixels, its reference 16x16"),
        ("torn.png", "cannot identify image file"),
    ],
)
def test_a_picture_that_cannot_be_compared_is_said_and_the_run_stays(
    name: str, reason: str, tmp_path: Path, shapes_plan: Any
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    (tmp_path / "torn.png").write_bytes(b"not a picture")
    quality = measure._quality(
        None,
        shapes_plan(),
        SimpleNamespace(pictures=[Image.new("RGB", (32, 32))], latents=None),  # type: ignore[arg-type]
        ReferencePictures(pictures=[str(tmp_path / name)]),
        SimpleNamespace(say=lambda message: None, tell=None),  # type: ignore[arg-type]
    )
    assert quality.reason is not None
    assert quality.reason.startswith(reason)
    assert quality.psnr_db is None


# A run that ends otherwise ------------------------------------------------------------------------


class Seen:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.told: list[tuple[str, int, int]] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def tell(self, phase: str, done: int, of: int) -> None:
        self.told.append((phase, done, of))


@pytest.fixture
def run_fake(
    shapes_plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """`run_fake(program)`: run_in_process with this program in the worker's place."""
    plan = shapes_plan()

    def run(program: str, progress: Any = None) -> dict[str, Any]:
        script = tmp_path / "fake_worker.py"
        script.write_text(f"import json, os, signal, sys, time\nfolder = sys.argv[1]\n{program}\n")

        def popen(arguments: list[str], **given: Any) -> Any:
            assert arguments[:3] == [sys.executable, "-m", "fastdiff.measuring.worker"]
            return subprocess.Popen([sys.executable, str(script), arguments[3]], **given)

        stand_in = SimpleNamespace(
            Popen=popen,
            PIPE=subprocess.PIPE,
            DEVNULL=subprocess.DEVNULL,
            TimeoutExpired=subprocess.TimeoutExpired,
        )
        monkeypatch.setattr(process, "subprocess", stand_in)
        request = Request(plan.setting.run.to_dict(), ["generation.steps=4"])
        return run_in_process(plan, request, tmp_path / "run", progress or Seen())

    return run


def written(tmp_path: Path) -> Any:
    return strictly((tmp_path / "run" / "report.json").read_text())


@pytest.mark.parametrize(
    ("program", "status", "message"),
    [
        (
            "sys.exit(3)",
            "crashed",
            "the run's process ended with exit code 3 without a word",
        ),
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "crashed",
            "the run's process died of SIGSEGV",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "crashed",
            "the run's process was killed by signal 9 (SIGKILL), and not for want of memory: the kernel "
            "counted no such kill\n"
            "  instead: run it again; somebody ended it, or a program that watches over this machine",
        ),
    ],
)
def test_a_worker_that_dies_leaves_a_report_with_the_status(
    program: str, status: str, message: str, run_fake: Any, tmp_path: Path
) -> None:
    report = run_fake(f"print('what was last', file=sys.stderr, flush=True)\n{program}")
    assert report == written(tmp_path)
    assert report["status"] == status
    assert report["error"]["message"] == message
    assert report["error"]["log_tail"] == ["what was last"]
    assert set(FIELDS) <= set(report)
    assert report["plan"] == strictly((tmp_path / "run" / "plan.json").read_text())
    assert report["latency_s"]["median"] is None
    assert report["finished_at"] >= report["started_at"]


def test_what_was_measured_before_a_worker_dies_stays(run_fake: Any, tmp_path: Path) -> None:
    report = run_fake(
        "with open(os.path.join(folder, 'measured.json'), 'w') as file:\n"
        "    json.dump({'status': None, 'load_s': 0.25, 'images': [{'path': 'image-0.png'}]}, file)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    assert (report["status"], report["load_s"]) == ("crashed", 0.25)
    assert report["images"] == [{"path": "image-0.png"}]
    assert report["quality"]["reason"] == "nothing was measured"
    assert written(tmp_path) == report
    assert not (tmp_path / "run" / "measured.json").exists()


def test_a_folder_with_the_name_of_a_trace_is_somebody_elses(run_fake: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "trace.json.gz").mkdir(parents=True)
    assert run_fake("sys.exit(3)")["status"] == "crashed"
    assert (tmp_path / "run" / "trace.json.gz").is_dir()


def test_an_error_of_the_worker_is_told_with_the_end_of_its_log(
    run_fake: Any, tmp_path: Path
) -> None:
    report = run_fake(
        "for n in range(20): print('line', n, file=sys.stderr)\n"
        "print(json.dumps({'error': {'status': 'failed', 'message': 'ValueError: no', 'exit_code': 1}}))\n"
        "sys.exit(1)"
    )
    assert (report["status"], report["error"]["message"]) == ("failed", "ValueError: no")
    assert report["error"]["log_tail"] == [f"line {n}" for n in range(8, 20)]
    assert report == written(tmp_path)


def test_events_are_passed_on_and_a_torn_line_is_not(run_fake: Any) -> None:
    seen = Seen()
    report = run_fake(
        "print(json.dumps({'say': 'loading'}), flush=True)\n"
        "print(json.dumps({'phase': 'timing', 'done': 1, 'of': 5}), flush=True)\n"
        'print(\'{"say": "cut o\', flush=True)\n'
        "sys.stdout.buffer.write(b'\\xff\\n')\n"
        "sys.exit(4)",
        seen,
    )
    assert seen.said == ["loading"]
    assert seen.told == [("timing", 1, 5)]
    assert report["status"] == "crashed"


def test_the_workers_own_report_is_returned(run_fake: Any) -> None:
    report = run_fake(
        "open(os.path.join(folder, 'report.json'), 'w').write(json.dumps({'status': 'ok'}))"
    )
    assert report == {"status": "ok"}


def test_a_run_that_the_worker_refuses_leaves_no_folder(run_fake: Any, tmp_path: Path) -> None:
    with pytest.raises(RefusedByWorker, match="no such model") as refused:
        run_fake(
            "print(json.dumps({'error': {'status': 'incompatible', 'message': 'no such model',"
            " 'exit_code': 2}}))"
        )
    assert refused.value.exit_code == 2
    assert not (tmp_path / "run").exists()


SLEEPS = "print(json.dumps({'say': str(os.getpid())}), flush=True)\ntime.sleep(100)"


class Interrupting(Seen):
    """Ctrl-C is pressed when the first word comes."""

    def __init__(self, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.error = error

    def say(self, message: str) -> None:
        super().say(message)
        raise self.error


def test_ctrl_c_ends_the_worker_and_leaves_a_report(run_fake: Any, tmp_path: Path) -> None:
    seen = Interrupting()
    report = run_fake(SLEEPS, seen)
    assert report["status"] == "interrupted"
    assert report["error"]["message"] == "interrupted by Ctrl-C"
    assert report == written(tmp_path)
    assert gone(int(seen.said[0]))


@pytest.mark.slow
def test_a_worker_that_does_not_listen_is_killed(run_fake: Any) -> None:
    seen = Interrupting()
    deaf = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEPS}"
    assert run_fake(deaf, seen)["status"] == "interrupted"
    assert gone(int(seen.said[0]))


def test_an_error_on_the_parents_side_ends_the_worker_too(run_fake: Any) -> None:
    seen = Interrupting(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run_fake(SLEEPS, seen)
    assert gone(int(seen.said[0]))


def gone(pid: int, seconds: float = 0.0) -> bool:
    """Whether a process has ended, waiting for it at most so long. A dead one that nobody waited for counts."""
    until = time.monotonic() + seconds
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)


# Real processes that are ended ----------------------------------------------------------------------


class Going:
    """A run that has got as far as its worker."""

    def __init__(self, parent: subprocess.Popen[str], home: Path) -> None:
        self.parent, self.home = parent, home
        self.worker = self._child()

    def _child(self) -> int:
        """The worker's process, once it has said that it began to import."""
        assert self.parent.stderr is not None
        for line in self.parent.stderr:
            if "importing torch" in line:
                break
        children = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text()
        (worker,) = map(int, children.split())
        return worker


@pytest.fixture
def going(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Going]:
    """A run without a reference, or with the overrides that a test gives indirectly."""
    if sys.platform != "linux":
        pytest.skip("looks for the worker in /proc")
    overrides = getattr(request, "param", ["quality=none"])
    parent = subprocess.Popen(
        command("hydra.run.dir=run", *overrides),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives it
        # A job in the background inherits an ignored Ctrl-C; a person's terminal doesn't.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield Going(parent, tmp_path)
    finally:
        if parent.poll() is None:
            parent.kill()
        parent.communicate(timeout=30)


@pytest.mark.slow
def test_ctrl_c_while_loading_ends_the_run_with_130_and_a_report(going: Going) -> None:
    os.killpg(going.parent.pid, signal.SIGINT)
    screen, rest = going.parent.communicate(timeout=60)
    assert going.parent.returncode == 130
    assert gone(going.worker, 5)
    report = strictly((going.home / "run" / "report.json").read_text())
    assert report["status"] == "interrupted"
    assert report["error"]["message"] == "interrupted by Ctrl-C"
    assert set(FIELDS) <= set(report)
    assert "interrupted" in screen
    assert "Traceback" not in screen + rest
    assert "Status **interrupted**" in (going.home / "run" / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("going", [["precision=bf16"]], indirect=True)
def test_ctrl_c_while_the_reference_is_drawn_ends_the_run_and_leaves_no_half_reference(
    going: Going,
) -> None:
    os.killpg(going.parent.pid, signal.SIGINT)
    screen, rest = going.parent.communicate(timeout=60)
    assert going.parent.returncode == 130
    assert gone(going.worker, 5)
    assert "interrupted" in screen + rest
    assert "Traceback" not in screen + rest
    references = going.home / "outputs" / "references"
    assert not references.exists() or list(references.iterdir()) == []


@pytest.mark.slow
def test_a_worker_whose_parent_is_killed_ends(going: Going) -> None:
    assert not gone(going.worker)
    going.parent.kill()
    assert gone(going.worker, 20)
    assert not (going.home / "run" / "report.json").exists()


# The worker's own words -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "message", "code"),
    [
        (ValueError("no"), "failed", "ValueError: no", 1),
        (ValueError(), "failed", "ValueError: ValueError", 1),
        (NoEffectError("x changed 0 y"), "failed", "x changed 0 y", 1),
        (InvalidOutputError("the picture is black"), "invalid_output", "the picture is black", 1),
        (ModelError("no such folder"), "incompatible", "no such folder", 2),
        (MemoryError("needs 9 GB"), "oom", "MemoryError: needs 9 GB", 1),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "oom",
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
            1,
        ),
        (
            RuntimeError("CUDA error: out of memory"),
            "oom",
            "RuntimeError: CUDA error: out of memory",
            1,
        ),
    ],
)
def test_an_error_is_described_by_status_message_and_exit_code(
    error: Exception, status: str, message: str, code: int
) -> None:
    told = {"status": status, "message": message, "exit_code": code}
    assert describe(error) == {**told, "disk_full": False}


def test_cudas_out_of_memory_is_oom() -> None:
    import torch

    assert describe(torch.OutOfMemoryError("CUDA"))["status"] == "oom"


def test_a_refusal_found_by_the_worker_keeps_every_problem() -> None:
    error = PlanError((Problem("quant=fp8", "no", "quant=int8"), Problem("a=b", "no", "a=c")))
    told = describe(error)
    assert told["status"] == Status.INCOMPATIBLE
    assert "(2 problems)" in told["message"]
    assert told["exit_code"] == 2


def test_events_to_a_parent_that_is_gone_are_lost_without_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    line = os.fdopen(writing, "w")
    Events(line).say("anybody there?")
    with pytest.raises(BrokenPipeError):  # so the pipe really is broken
        line.close()


def test_a_reference_that_cannot_fit_is_refused_before_it_is_loaded() -> None:
    from dataclasses import replace

    plan = plan_of("device=cpu")
    machine = replace(plan.setting.environment, available_memory_bytes=10_000_000_000)
    unet = Component("unet", "diffusers", "UNet2DConditionModel", 0, 2_567_000_000, {})
    facts = ModelFacts("StableDiffusionXLPipeline", {"unet": unet})
    setting = replace(plan.setting, environment=machine, facts=facts)
    with pytest.raises(MemoryError) as refused:
        refuse_if_too_large(replace(plan, setting=setting))
    assert str(refused.value) == ("the reference in fp32 needs about 12.3 GB, and 10.0 GB are free")
    roomy = replace(machine, available_memory_bytes=16_000_000_000)
    refuse_if_too_large(replace(plan, setting=replace(setting, environment=roomy)))


def large(device: str, gpu_bytes: int, host_bytes: int, *overrides: str) -> Any:
    """A plan for FLUX.1's 16.9 billion parameters on such a machine; its pictures have 1024 pixels a side by themselves."""
    from dataclasses import replace

    from fastdiff.machine.environment import Gpu

    plan = plan_of("device=cpu", *overrides)
    gpus = (Gpu("H100", (9, 0), gpu_bytes),)
    machine = replace(plan.setting.environment, gpus=gpus, available_memory_bytes=host_bytes)
    parts = {
        "transformer": Component(
            "transformer",
            "diffusers",
            "FluxTransformer2DModel",
            0,
            16_900_000_000,
            {"sample_size": 128},
        ),
        "vae": Component("vae", "diffusers", "AutoencoderKL", 0, 0, {"block_out_channels": [128]}),
    }
    facts = ModelFacts("FluxPipeline", parts)
    setting = replace(plan.setting, device=device, environment=machine, facts=facts)
    return replace(plan, setting=setting)


GB = 1_000_000_000


def test_a_reference_on_a_gpu_needs_room_for_its_pictures_and_on_the_host_for_its_loading() -> None:
    def refused(plan: Any) -> str | None:
        try:
            refuse_if_too_large(plan)
        except MemoryError as error:
            return str(error)
        return None

    assert refused(large("cuda", 85 * GB, 200 * GB)) is None
    assert refused(large("cuda", 80 * GB, 200 * GB)) == (
        "the reference in fp32 needs about 81.8 GB, and 80.0 GB are free"
    )
    pixels = ("generation.height=1024", "generation.width=1024", "generation.images_per_prompt=8")
    eight = large("cuda", 85 * GB, 200 * GB, *pixels)
    assert refused(eight) == "the reference in fp32 needs about 102.7 GB, and 85.0 GB are free"
    assert refused(large("cuda", 85 * GB, 60 * GB)) == (
        "the reference in fp32 is loaded into the host's memory first, needs about 67.6 GB there, and 60.0 GB "
        "are free"
    )


def test_a_reference_that_takes_minutes_to_load_is_said_with_what_leaves_it_out() -> None:
    said: list[str] = []
    events = SimpleNamespace(say=said.append)
    say_what_a_large_reference_costs(plan_of("device=cpu"), events)  # type: ignore[arg-type]
    assert said == []
    plan = large("cuda", 85 * GB, 200 * GB)
    say_what_a_large_reference_costs(plan, events)  # type: ignore[arg-type]
    assert said == [
        "a reference in fp32 first: 68 GB of weights, minutes of loading; quality=none leaves it out"
    ]


@pytest.mark.parametrize(
    ("skipped", "reasons", "said"),
    [
        (0, [], []),
        (
            1,
            ["skipping cudagraphs due to mutated inputs"],
            [
                "Inductor left CUDA graphs out 1 time, and what they hold was computed without them: skipping "
                "cudagraphs due to mutated inputs"
            ],
        ),
        (
            2,
            [],
            [
                "Inductor left CUDA graphs out 2 times, and what they hold was computed without them: it didn't "
                "say why"
            ],
        ),
    ],
)
def test_cuda_graphs_that_were_left_out_are_a_notice_and_a_field(
    skipped: int, reasons: list[str], said: list[str], shapes_plan: Any
) -> None:
    seen = Observed(cuda_graphs=1, cuda_graphs_skipped=skipped, cuda_graphs_reasons=reasons)
    assert measure._notices(shapes_plan("bench=once"), 0, 0.0, seen) == said
    assert measure._cuda_graphs(seen) == {
        "cuda_graphs": 1,
        "cuda_graphs_skipped": skipped,
        "cuda_graphs_reasons": reasons,
    }
    assert measure._cuda_graphs(Observed()) == {
        "cuda_graphs": None,
        "cuda_graphs_skipped": None,
        "cuda_graphs_reasons": [],
    }


# After the timed calls -----------------------------------------------------------------------------

LOOKS = {
    "fastdiff.measuring.syncs.syncs_of_a_step": ("syncs", "reason"),
    "fastdiff.measuring.parts.time_parts": ("parts_s", "reason"),
    "fastdiff.measuring.profiling.profile_call": ("profile", "reason"),
    "fastdiff.measuring.roofline.roofline": ("roofline", "reason"),
    "fastdiff.measuring.quality.against": ("quality", "reason"),
    "fastdiff.measuring.captions.caption_quality": ("quality", "caption", "reason"),
    "fastdiff.measuring.exactness.capture": ("exactness", "reason"),
    "fastdiff.measuring.exactness.check": ("exactness", "reason"),
    "fastdiff.measuring.memory.PeakMemory.parts": ("memory_bytes", "reasons", "all"),
}
"""What is done once the calls are timed, and where the report says why it has no figures."""


def told(report: Any, where: tuple[str, ...]) -> Any:
    for key in where:
        report = report[key]
    return report


def measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: list[str], error: Exception
) -> Any:
    """The report of a run of the embedded model in this process, in which these functions raise."""

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    for name in broken:
        monkeypatch.setattr(name, fails)
    words = ("device=cpu", "generation.steps=2", "bench=once", "profile=true", "qkv=fused")
    plan = plan_of(*words)
    request = Request(plan.setting.run.to_dict(), list(words), ReferencePictures.itself())
    measure.run(tmp_path, request, Events(io.StringIO()))
    return strictly((tmp_path / "report.json").read_text())


def test_nothing_that_comes_after_the_timed_calls_can_lose_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand a long story")
    broken = [
        *LOOKS,
        "fastdiff.measuring.measure.measured_on",
        "fastdiff.measuring.quality.compare",
    ]
    report = measured_with(tmp_path, monkeypatch, broken, no_memory)
    reason = "it failed: RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert report["status"] == "ok"
    assert report["latency_s"]["median"] > 0
    for where in LOOKS.values():
        assert told(report, where) == reason, where
    assert report["repeatable"] == {"identical": None, "max_abs_difference": None}
    assert report["environment"]["device"] == "cpu"
    assert report["notices"][-1] == (
        f"the machine is not described in full, because reading what it is failed: {reason}"
    )


def test_a_check_that_fails_by_itself_is_no_inexact_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = measured_with(
        tmp_path, monkeypatch, ["fastdiff.measuring.exactness.check"], TypeError("no such thing")
    )
    assert report["exactness"] == {
        "checked": False,
        "reason": "it failed: TypeError: no such thing",
        "choices": ["qkv=fused"],
        "passed": None,
        "arithmetic": None,
        "denoiser": None,
        "decode": None,
    }
    assert report["status"] == "ok"
    assert report["roofline"]["reason"] is None


def test_a_full_disk_ends_a_run_wherever_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        measured_with(tmp_path, monkeypatch, ["fastdiff.measuring.profiling.profile_call"], full)


@pytest.mark.slow
def test_sigterm_ends_a_run_as_ctrl_c_does(going: Going) -> None:
    going.parent.terminate()
    screen, rest = going.parent.communicate(timeout=60)
    assert going.parent.returncode == 130
    assert gone(going.worker, 5)
    assert "Traceback" not in screen + rest
    report = json.loads((going.home / "run" / "report.json").read_text())
    assert report["status"] == "interrupted"
