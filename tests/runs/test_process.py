"""Limits of a run's process, and a full disk: how each ends, with small programs in the worker's place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdiff.machine.files import read_json
from fastdiff.measuring.child import MEMORY_LIMIT, limit_memory
from fastdiff.measuring.protocol import Request, describe, says_disk_full
from fastdiff.runs import process, single
from fastdiff.runs.folders import DiskFull
from fastdiff.runs.process import Limits, draw_reference, end, run_in_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups as Linux has them")


class Clock:
    """Stands in for `time` where seconds pass only when somebody says something."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Listener:
    """A progress; at each word so many seconds pass."""

    def __init__(self, clock: Clock, seconds: float = 0.0) -> None:
        self.clock, self.seconds = clock, seconds
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)
        self.clock.now += self.seconds

    def tell(self, phase: str, done: int, of: int) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(process, "time", clock)
    return clock


class Starts:
    """A starter whose processes run a program; remembers what they were given."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.variables: list[dict[str, str]] = []
        self.workers: list[subprocess.Popen[bytes]] = []

    def __call__(
        self, module: str, folder: Path, variables: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        assert module == "fastdiff.measuring.worker"
        self.variables.append(dict(variables))
        with (folder / "log.txt").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-c", f"{PROLOGUE}\n{self.program}", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker


PROLOGUE = """
import json, os, signal, subprocess, sys, time
folder = sys.argv[1]
def send(**event): print(json.dumps(event), flush=True)
"""
SLEEPS = "send(say='here'); time.sleep(100)"


@pytest.fixture
def run(shapes_plan: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`run(starts, listener, limits)`: run_in_process into `run`."""
    plan = shapes_plan()

    def run(starts: Starts, listener: Listener, limits: Limits) -> dict[str, Any]:
        request = Request(plan.setting.run.to_dict(), ["generation.steps=4"])
        return run_in_process(
            plan, request, tmp_path / "run", listener, limits=limits, starter=starts
        )

    return run


# Time ----------------------------------------------------------------------------------------------


def test_a_run_that_takes_too_long_is_ended_and_keeps_its_figures(
    run: Any, clock: Clock, tmp_path: Path
) -> None:
    starts = Starts(
        "open(os.path.join(folder, 'measured.json'), 'w').write(json.dumps({'load_s': 0.25}))\n"
        "print('was here', file=sys.stderr)\n" + SLEEPS
    )
    report = run(starts, Listener(clock, seconds=61), Limits(timeout_s=60))
    assert report == read_json(tmp_path / "run" / "report.json")
    assert (report["status"], report["load_s"]) == ("timeout", 0.25)
    assert report["error"]["message"] == (
        "the run took longer than 60 s (sweep.timeout_s)\n"
        "  instead: a longer sweep.timeout_s, or fewer generation.steps"
    )
    assert report["error"]["log_tail"] == ["was here"]
    assert starts.workers[0].returncode == -15


def test_a_run_within_its_time_ends_as_it_ends(run: Any, clock: Clock) -> None:
    starts = Starts("send(say='one'); send(say='two'); sys.exit(3)")
    listener = Listener(clock, seconds=20)
    report = run(starts, listener, Limits(timeout_s=60))
    assert report["error"]["message"] == "the run's process ended with exit code 3 without a word"
    assert listener.said == ["one", "two"]


def test_a_run_that_says_all_and_never_ends_is_ended(run: Any, clock: Clock) -> None:
    closes = "send(say='here'); os.close(1); time.sleep(100)"
    report = run(Starts(closes), Listener(clock, seconds=61), Limits(timeout_s=60))
    assert report["status"] == "timeout"


def test_a_run_whose_report_is_whole_keeps_it_though_it_never_ends(run: Any, clock: Clock) -> None:
    writes = (
        "open(os.path.join(folder, 'report.json'), 'w').write('{\"status\": \"ok\"}')\n" + SLEEPS
    )
    assert run(Starts(writes), Listener(clock, seconds=61), Limits(timeout_s=60)) == {
        "status": "ok"
    }


def test_what_a_run_started_is_ended_with_it(run: Any, clock: Clock) -> None:
    """Also where it doesn't listen to SIGTERM, and what it runs for has ended."""
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(100)"
    )
    starts = Starts(
        f"child = subprocess.Popen([sys.executable, '-c', {deaf!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "send(say=str(child.pid)); time.sleep(100)"
    )
    listener = Listener(clock, seconds=61)
    assert run(starts, listener, Limits(timeout_s=60))["status"] == "timeout"
    assert gone(int(listener.said[0]))


def gone(pid: int) -> bool:
    """Whether a process ends; waits for it, because a signal takes its time."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_reference_that_takes_too_long_is_no_reference_and_leaves_nothing(
    clock: Clock, tmp_path: Path
) -> None:
    reason = draw_reference(
        Request({}, []),
        tmp_path / "reference",
        Listener(clock, seconds=9),
        "cpu",
        Limits(timeout_s=5),
        Starts(SLEEPS),
    )
    assert reason == (
        "the run took longer than 5 s (sweep.timeout_s)\n"
        "  instead: a longer sweep.timeout_s, or fewer generation.steps (timeout)"
    )
    assert list(tmp_path.iterdir()) == []


# Memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "send(error={'status': 'oom', 'message': 'MemoryError: no', 'exit_code': 1})\nsys.exit(1)",
            "MemoryError: no",
        ),
        (
            "print(\"terminate called after throwing an instance of 'std::bad_alloc'\","
            " file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGABRT)",
            "the run's process died of SIGABRT",
        ),
    ],
)
def test_a_run_without_memory_under_a_limit_is_oom_and_names_the_limit(
    program: str, said: str, run: Any, clock: Clock
) -> None:
    report = run(Starts(program), Listener(clock), Limits(memory_bytes=1_500_000_000))
    assert report["status"] == "oom"
    assert report["error"]["message"] == (
        "the run needed more than its 1.5 GB of memory (sweep.memory_limit_gb)\n"
        "  instead: a larger sweep.memory_limit_gb, precision=bf16, or a smaller"
        " generation.height and width\n"
        f"  it said: {said}"
    )


def test_other_ends_under_a_memory_limit_stay_what_they_are(run: Any, clock: Clock) -> None:
    limits = Limits(memory_bytes=10**9)
    killed = run(Starts("os.kill(os.getpid(), signal.SIGKILL)"), Listener(clock), limits)
    assert (killed["status"], killed["error"]["message"]) == ("crashed", process.KILLED_BY_HAND)
    crashed = run(Starts("os.kill(os.getpid(), signal.SIGSEGV)"), Listener(clock), limits)
    assert (crashed["status"], crashed["error"]["message"]) == (
        "crashed",
        "the run's process died of SIGSEGV",
    )


BY_HAND = (
    "the run's process was killed by signal 9 (SIGKILL), and not for want of memory: the kernel counted no such kill\n"
    "  instead: run it again; somebody ended it, or a program that watches over this machine"
)
FOR_MEMORY = (
    "the run was killed by the system because memory ran out\n"
    "  instead: precision=bf16, a smaller generation.height and width, or fewer pictures at once"
)
UNCOUNTED = (
    "the run's process was killed by signal 9 (SIGKILL); this system doesn't tell whether memory ran out\n"
    "  instead: run it again; if it ends so once more, precision=bf16 or a smaller generation.height and width"
)


@pytest.mark.parametrize(
    ("counted", "status", "message"),
    [
        ((3, 3), "crashed", BY_HAND),
        ((3, 4), "oom", FOR_MEMORY),
        ((0, 2), "oom", FOR_MEMORY),
        ((None, None), "crashed", UNCOUNTED),
        ((None, 4), "crashed", UNCOUNTED),
        ((4, None), "crashed", UNCOUNTED),
    ],
)
def test_a_killed_run_is_oom_only_if_the_kernel_says_so(
    counted: tuple[int | None, int | None],
    status: str,
    message: str,
    run: Any,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """counted: the kernel's kills for want of memory, before the run and once it has ended."""
    counts = iter(counted)
    monkeypatch.setattr(process, "oom_kills", lambda files: next(counts))
    report = run(Starts("os.kill(os.getpid(), signal.SIGKILL)"), Listener(clock), Limits())
    assert (report["status"], report["error"]["message"]) == (status, message)


def test_the_process_is_told_its_limit_but_not_where_it_computes_with_cuda(
    run: Any, clock: Clock
) -> None:
    starts = Starts("sys.exit(3)")
    run(starts, Listener(clock), Limits(memory_bytes=7))
    run(starts, Listener(clock), Limits())
    assert starts.variables == [{MEMORY_LIMIT: "7"}, {}]
    assert Limits(memory_bytes=7).variables("cuda") == {}


def test_a_limit_is_set_on_the_process_itself_and_an_allocation_above_it_fails() -> None:
    code = (
        "from fastdiff.measuring.child import limit_memory\n"
        "limit_memory()\n"
        "print(open('/proc/self/oom_score_adj').read().strip(), flush=True)\n"
        "bytearray(300_000_000)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {MEMORY_LIMIT: "200000000"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "1000\n"
    assert ended.stderr.endswith("MemoryError\n")


def test_without_linux_no_limit_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdiff.measuring.child.sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setenv(MEMORY_LIMIT, "1")
    limit_memory()


# A full disk ---------------------------------------------------------------------------------------


def test_a_full_disk_in_the_worker_is_told_apart() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert describe(full)["disk_full"]
    assert describe(OSError(errno.EDQUOT, "Disk quota exceeded"))["disk_full"]
    assert describe(RuntimeError("writing failed: No space left on device"))["disk_full"]
    wrapped = ValueError("can't save")
    wrapped.__cause__ = full
    assert describe(wrapped)["disk_full"]
    assert not describe(OSError(errno.EACCES, "Permission denied"))["disk_full"]
    assert not says_disk_full(ValueError("No space for a wider picture"))


FULL = (
    "send(error={'status': 'failed', 'message': 'OSError: [Errno 28] No space left on device',"
    " 'exit_code': 1, 'disk_full': True})\nsys.exit(1)"
)


def test_a_full_disk_ends_the_run_with_an_error_of_its_own_and_keeps_what_was_measured(
    run: Any, clock: Clock, tmp_path: Path
) -> None:
    measures = "open(os.path.join(folder, 'measured.json'), 'w').write('{\"load_s\": 0.25}')\n"
    with pytest.raises(DiskFull) as refused:
        run(Starts(measures + FULL), Listener(clock), Limits())
    assert str(refused.value) == (
        f"no room on the disk: what a run writes to {tmp_path / 'run'} is not whole\n"
        "  instead: make room, and give the same command again"
    )
    report = read_json(tmp_path / "run" / "report.json")
    assert (report["status"], report["load_s"]) == ("failed", 0.25)


def test_a_disk_too_full_for_the_parents_own_files_is_the_same_error(
    run: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(process, "write_json", refuse)
    with pytest.raises(DiskFull, match="no room on the disk"):
        run(Starts("sys.exit(0)"), Listener(clock), Limits())


def test_other_errors_of_the_disk_are_not_called_a_full_one(
    run: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(process, "write_json", refuse)
    with pytest.raises(OSError, match="Read-only"):
        run(Starts("sys.exit(0)"), Listener(clock), Limits())


def test_a_reference_for_which_there_is_no_room_is_an_error_and_leaves_nothing(
    clock: Clock, tmp_path: Path
) -> None:
    with pytest.raises(DiskFull):
        draw_reference(
            Request({}, []), tmp_path / "ref", Listener(clock), "cpu", starter=Starts(FULL)
        )
    assert list(tmp_path.iterdir()) == []


# Passing on ----------------------------------------------------------------------------------------


def test_limits_and_starter_hold_for_the_reference_and_for_the_run(
    shapes_plan: Any, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    starts = Starts("sys.exit(3)")
    plan = shapes_plan("precision=bf16")
    report = single.execute(
        plan, [], tmp_path / "run", Listener(clock), limits=Limits(None, 9), starter=starts
    )
    assert report["status"] == "crashed"
    assert starts.variables == [{MEMORY_LIMIT: "9"}, {MEMORY_LIMIT: "9"}]
    assert read_json(tmp_path / "run" / "request.json")["reference"]["reason"] == (
        "no reference: the run's process ended with exit code 3 without a word (crashed)"
    )


def test_ending_a_worker_that_is_gone_does_nothing(tmp_path: Path) -> None:
    worker = Starts("sys.exit(0)")("fastdiff.measuring.worker", tmp_path, {})
    worker.wait()
    end(worker)
    assert worker.returncode == 0


# What a process begins with ------------------------------------------------------------------------


def test_cuda_counts_gpus_as_the_plan_does_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert process.environment_of({})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert process.environment_of({})["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
