"""Forked runs: how they begin, end, and are ended; and that they measure what fresh processes measure.

Most tests use a server that imports nothing, and small programs in the worker's place; the slow ones run the embedded model.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TESTS, TWO_THREADS, TorchServer

from fastdiff.errors import Status
from fastdiff.machine.files import read_json
from fastdiff.machine.hardware import Files, oom_kills
from fastdiff.measuring.protocol import Request
from fastdiff.runs import forking, process
from fastdiff.runs.forking import Forked, Forks, can_fork
from fastdiff.runs.process import Limits, Starter, end, ending_of, events_of, run_in_process

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are forked on Linux alone"
)

ROOT = Path(__file__).parents[2]

LIGHT = """
import sys, threading
from fastdiff.runs import forking
forking.import_all = lambda pipelines: {imports}
sys.exit(forking.main())
"""


@pytest.fixture(scope="module", autouse=True)
def variables() -> Iterator[None]:
    """Servers and fresh processes can import does_what_lies_there, wherever they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        late = f"{forking._READ_LATE.pattern}|PYTEST_"  # pytest changes one before each test
        patch.setattr(forking, "_READ_LATE", re.compile(late))
        yield


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers import nothing."""
    serve_with(monkeypatch, "None")


def serve_with(monkeypatch: pytest.MonkeyPatch, imports: str) -> None:
    code = LIGHT.replace("{imports}", imports)
    monkeypatch.setattr(forking, "_SERVER", (sys.executable, "-c", code))


@pytest.fixture
def forks(light: None, tmp_path: Path) -> Iterator[Forks]:
    with Forks(tmp_path / "imports.txt") as forks:
        yield forks


def begin(starter: Starter, folder: Path, program: str, **variables: str) -> Any:
    """Start a process that runs a program."""
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(program)
    return starter("does_what_lies_there", folder, variables)


def said(worker: Any) -> list[Any]:
    return [event["say"] for event in events_of(worker)]


def gone(pid: int) -> bool:
    """Whether a process ends; waits for it, because a signal takes its time. A dead one that nobody waited for counts."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


# A child's life ------------------------------------------------------------------------------------


def test_a_fork_is_a_child_of_the_server_with_a_session_and_a_log_of_its_own(
    forks: Forks, tmp_path: Path
) -> None:
    worker = begin(
        forks.start,
        tmp_path / "run",
        "print('a word', file=sys.stderr)\nsend(say=[os.getpid(), os.getppid(), os.getsid(0)])",
    )
    assert isinstance(worker, Forked)
    assert said(worker) == [[worker.pid, forks.pid, worker.pid]]
    assert worker.wait() == worker.poll() == 0
    assert (tmp_path / "run" / "log.txt").read_text() == "a word\n"
    assert (tmp_path / "imports.txt").read_text() == ""
    assert forks.notice is None


@pytest.mark.parametrize(
    ("program", "code", "message"),
    [
        ("code = 7", 7, "the run's process ended with exit code 7 without a word"),
        ("os._exit(7)", 7, "the run's process ended with exit code 7 without a word"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11, "the run's process died of SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, process.KILLED_BY_HAND),
        ("raise ValueError", 1, "the run's process ended with exit code 1 without a word"),
    ],
)
def test_how_a_fork_ends_is_told_as_a_fresh_processs_end_is(
    program: str, code: int, message: str, forks: Forks, tmp_path: Path
) -> None:
    kills = oom_kills(Files())
    worker = begin(forks.start, tmp_path / "run", program)
    assert said(worker) == []
    assert worker.wait() == code
    assert ending_of(code, kills).message == message


def test_a_fork_ends_as_an_interpreter_ends(forks: Forks, tmp_path: Path) -> None:
    worker = begin(
        forks.start, tmp_path / "run", "atexit.register(lambda: (folder / 'left').touch())"
    )
    assert worker.wait() == 0
    assert (tmp_path / "run" / "left").exists()


def test_forks_go_on_beside_each_other(forks: Forks, tmp_path: Path) -> None:
    waits = "send(say=1)\nwhile not (folder / 'go').exists(): time.sleep(0.01)"
    slow = begin(forks.start, tmp_path / "slow", waits)
    assert begin(forks.start, tmp_path / "quick", "code = 3").wait() == 3
    assert slow.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        slow.wait(timeout=0)
    (tmp_path / "slow" / "go").touch()
    assert slow.wait() == 0


def test_a_fork_can_be_spoken_to(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "program.py").write_text("send(say=sys.stdin.readline())")
    worker = forks.start("does_what_lies_there", tmp_path / "run", {}, subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.write(b"go\n")
    worker.stdin.close()
    assert said(worker) == ["go\n"]


def test_a_fork_works_where_its_parent_is_and_with_its_own_variables(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells = "send(say=[os.getppid(), os.environ.get('FASTDIFF_X'), os.getcwd(), os.environ['FASTDIFF_PARENT']])"
    server = str(forks.pid)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    first = begin(forks.start, tmp_path / "a", tells, FASTDIFF_X="1")
    assert said(first) == [[forks.pid, "1", str(tmp_path / "there"), server]]
    assert said(begin(forks.start, tmp_path / "b", tells)) == [
        [forks.pid, None, str(tmp_path / "there"), server]
    ]


def test_variables_that_imports_have_read_want_a_fresh_process(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells = "send(say=[os.getppid(), os.environ.get('OMP_NUM_THREADS')])"
    worker = begin(forks.start, tmp_path / "a", tells, OMP_NUM_THREADS="7")
    assert said(worker) == [[os.getpid(), "7"]]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert said(begin(forks.start, tmp_path / "b", tells)) == [[os.getpid(), "5"]]
    assert forks.notice is None


# Ends that nobody asked for ------------------------------------------------------------------------

SLEEPS = "send(say=os.getpid()); time.sleep(100)"


def test_a_fork_that_is_ended_takes_what_it_started_with_it(forks: Forks, tmp_path: Path) -> None:
    worker = begin(
        forks.start,
        tmp_path / "run",
        "child = subprocess.Popen(['sleep', '100'])\nsend(say=child.pid); time.sleep(100)",
    )
    child = next(events_of(worker))["say"]
    end(worker)
    assert worker.wait() == -signal.SIGTERM
    assert gone(child)


def test_leaving_ends_the_server_and_its_forks(light: None, tmp_path: Path) -> None:
    with Forks(tmp_path / "imports.txt") as forks:
        worker = begin(forks.start, tmp_path / "run", SLEEPS)
        assert said_first(worker) == worker.pid
    assert gone(forks.pid)
    assert gone(worker.pid)


def said_first(worker: Any) -> Any:
    return next(events_of(worker))["say"]


def test_a_server_that_dies_takes_its_forks_along_and_the_next_run_begins_afresh(
    forks: Forks, tmp_path: Path
) -> None:
    worker = begin(forks.start, tmp_path / "a", SLEEPS)
    assert said_first(worker) == worker.pid
    os.kill(forks.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGTERM
    assert gone(worker.pid)
    fresh = begin(forks.start, tmp_path / "b", "send(say=os.getppid())")
    assert said(fresh) == [os.getpid()]
    assert forks.notice == "the process that forks runs has ended: each imports torch anew"


PARENT = """
import sys, time
from pathlib import Path
from fastdiff.runs import forking
from fastdiff.runs.process import events_of
forking._SERVER = (sys.executable, "-c", sys.argv[2])
with forking.Forks(Path(sys.argv[1]) / "imports.txt") as forks:
    worker = forks.start("does_what_lies_there", Path(sys.argv[1]) / "run", {})
    next(events_of(worker))
    print(forks.pid, worker.pid, flush=True)
    time.sleep(100)
"""


def test_a_parent_that_is_killed_leaves_no_orphan(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "program.py").write_text(SLEEPS)
    light = LIGHT.replace("{imports}", "None")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), light],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    server, worker = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(worker)
    assert gone(server)


def test_a_server_with_threads_forks_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sleeps = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    serve_with(monkeypatch, sleeps)
    with Forks(tmp_path / "imports.txt") as forks:
        assert said(begin(forks.start, tmp_path / "run", "send(say=os.getppid())")) == [os.getpid()]
        assert forks.notice == (
            "runs are not forked: importing began 1 threads that a fork would lose, so each run "
            "imports torch anew"
        )


def test_a_server_that_cannot_import_is_said_with_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve_with(monkeypatch, "sys.exit('no torch here')")
    log = tmp_path / "imports.txt"
    with Forks(log) as forks:
        assert begin(forks.start, tmp_path / "run", "code = 0").wait() == 0
        assert forks.notice == (
            f"the process that forks runs did not start ({log}): each imports torch anew"
        )
    assert log.read_text() == "no torch here\n"


def test_where_the_system_cannot_processes_are_started_afresh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with Forks(tmp_path / "imports.txt") as forks:
        assert said(begin(forks.start, tmp_path / "run", "send(say=os.getppid())")) == [os.getpid()]
        assert forks.notice == "processes are not forked on this system: each imports torch anew"


def test_only_runs_on_the_cpu_are_forked(shapes_plan: Any) -> None:
    assert can_fork(shapes_plan())
    assert not can_fork(SimpleNamespace(device="cuda"))  # type: ignore[arg-type]


# The real server -----------------------------------------------------------------------------------


class Quiet:
    def say(self, message: str) -> None: ...

    def tell(self, phase: str, done: int, of: int) -> None: ...


def run_of(
    starter: Starter, folder: Path, plan: Any, limits: Limits = process.NO_LIMITS
) -> dict[str, Any]:
    request = Request(plan.setting.run.to_dict(), [])
    return run_in_process(plan, request, folder, Quiet(), limits=limits, starter=starter)


COMPUTES = """
import torch
def spent():
    return {task.name: int((task / "schedstat").read_text().split()[0])
            for task in Path("/proc/self/task").iterdir()}
before = spent()
numbers = torch.ones(4_000_000)
for _ in range(30): numbers.exp()
after = spent()
own = str(os.getpid())
others = [ns - before.get(task, 0) for task, ns in after.items() if task != own]
send(say=[torch.get_num_threads(), len(before), after[own] - before[own], sorted(others)])
"""


@pytest.mark.slow
def test_a_fork_computes_on_two_threads_and_the_server_has_one(
    torch_server: TorchServer, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        ((threads, at_first, own_ns, others_ns),) = said(
            begin(torch_server.start, tmp_path / name, COMPUTES)
        )
        assert (threads, at_first, len(others_ns)) == (2, 1, 1)
        assert others_ns[0] > own_ns / 4 > 1_000_000
    assert "Threads:\t1\n" in Path(f"/proc/{torch_server.forks.pid}/status").read_text()
    assert torch_server.forks.notice is None


@pytest.mark.slow
def test_a_forked_run_reports_what_a_fresh_one_does(
    torch_server: TorchServer, tmp_path: Path, shapes_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TWO_THREADS.items():
        monkeypatch.setenv(name, value)
    plan = shapes_plan("bench=once", "generation.steps=2", "quality=none")
    fresh = run_of(process.start, tmp_path / "fresh", plan)
    forked = run_of(torch_server.start, tmp_path / "forked", plan)
    assert torch_server.forks.notice is None
    assert (fresh["status"], forked["status"]) == ("ok", "ok")
    assert forked["images"] == fresh["images"]
    assert forked["flags_at_start"] == fresh["flags_at_start"]
    assert forked["flags_at_start"]["threads"] == 2
    for name in ("run_id", "effects", "plan"):
        assert forked[name] == fresh[name]
    for name in ("environment_variables", "packages", "torch_settings"):
        assert forked["environment"][name] == fresh["environment"][name]
    assert 0 <= forked["import_s"] < fresh["import_s"]  # the one is a look-up, the other seconds
    peaks = [report["peak_memory_bytes"]["host"] for report in (forked, fresh)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.1)
    held = [report["memory_bytes"]["held"]["host"] for report in (forked, fresh)]
    assert held[0] == pytest.approx(held[1], rel=0.5)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_order_of_runs_changes_no_flag_at_their_start(
    torch_server: TorchServer, tmp_path: Path, local_plan: Any, sd_folder: Path
) -> None:
    short = ("bench=once", "quality=none")
    plans = {
        "a": local_plan(sd_folder, *short),
        "b": local_plan(sd_folder, *short, "precision=bf16", "attention=math"),
    }
    reports = [
        run_of(torch_server.start, tmp_path / f"{name}{turn}", plans[name])
        for turn, name in enumerate("abba")
    ]
    assert [report["status"] for report in reports] == ["ok"] * 4
    flags = [report["flags_at_start"] for report in reports]
    assert flags[1:] == flags[:1] * 3


@pytest.mark.slow
def test_a_forked_run_that_wants_more_memory_than_its_limit_is_oom(
    torch_server: TorchServer, tmp_path: Path, shapes_plan: Any
) -> None:
    plan = shapes_plan(
        "bench=once", "generation.steps=1", "generation.images_per_prompt=256", "quality=none"
    )
    report = run_of(torch_server.start, tmp_path / "run", plan, Limits(memory_bytes=900_000_000))
    assert report["status"] == Status.OOM
    assert report["error"]["message"].startswith(
        "the run needed more than its 0.9 GB of memory (sweep.memory_limit_gb)\n"
    )
    assert read_json(tmp_path / "run" / "report.json") == report


@pytest.mark.slow
def test_a_fork_compiles(
    torch_server: TorchServer, tmp_path: Path, local_plan: Any, smallest_folder: Path
) -> None:
    plan = local_plan(smallest_folder, "compile=default", "bench=once", "quality=none")
    report = run_of(torch_server.start, tmp_path / "run", plan)
    assert report["status"] == "ok"
    assert report["compile"]["graphs"] >= 1
    assert torch_server.forks.notice is None
