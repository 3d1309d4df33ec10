"""What a launcher runs for one cell, here or on another machine: its process, its report, its place in the sweep's folder.

A job never raises for what happens to its cell: it ends in a report with a status.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastdiff.choices.compose import restore
from fastdiff.choices.folders import config_dirs, use
from fastdiff.config import RunConfig
from fastdiff.display.report import write_run_page
from fastdiff.errors import FastdiffError, Status
from fastdiff.machine.files import read_json, write_json
from fastdiff.machine.hardware import Files, oom_kills
from fastdiff.measuring.report import blank_report
from fastdiff.models.random_weights import KEPT_IN as RANDOM_WEIGHTS
from fastdiff.planning.outlook import planned
from fastdiff.planning.plan import Plan
from fastdiff.runs.folders import LEAST_FREE_BYTES, DiskFull
from fastdiff.runs.forking import Forks, can_fork
from fastdiff.runs.process import Limits, Starter, Worker, readable, start
from fastdiff.runs.single import execute
from fastdiff.runs.sweep.devices import device_for
from fastdiff.runs.sweep.folder import Folder
from fastdiff.runs.sweep.made_with import made_with

MOST_STARTS = 2
"""How often a cell may take its job's own process with it; then it has crashed, or memory ran out."""

_LOOK_EVERY_S = 1.0
_THREADS = re.compile(r"[A-Z]+_(NUM|MAXIMUM)_THREADS")


@dataclass(frozen=True)
class Task:
    """A cell to run: its folder's name, its overrides in Hydra's grammar, and its run as `RunConfig.to_dict` has it."""

    name: str
    overrides: tuple[str, ...]
    run: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """The function that Hydra's launchers call, for every task once. It travels to other processes and machines.

    folder: the sweep's, absolute. attempt: tells this call of the sweep from others. turn: Folder.open_attempt's.
    host, process: where the sweep goes on. directory: in which it was typed, which relative paths begin at.
    threads: variables that choose how many threads a run has; Ray and joblib set their own for the processes of jobs.
    config_dirs: a team's folders of options, absolute; on another machine they must be at the same place.
    """

    folder: str
    attempt: str
    limits: Limits
    tasks: Sequence[Task]
    turn: int = 0
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    directory: str = field(default_factory=os.getcwd)
    threads: Mapping[str, str] = field(default_factory=lambda: _threads_of(os.environ))
    config_dirs: tuple[str, ...] = field(default_factory=lambda: tuple(map(str, config_dirs())))

    def __call__(self, _: object) -> dict[str, Any]:
        """Run the task that Hydra's job number names. Returns what the parent can't see in a folder that both share."""
        from hydra.core.hydra_config import HydraConfig

        return self.do(self.tasks[int(HydraConfig.get().job.num)])

    def do(self, task: Task) -> dict[str, Any]:
        self._be_as_typed()
        folder = Folder(Path(self.folder))
        if folder.is_shared(self.attempt):
            return {"cell": task.name} if self._is_over(folder) else self._in(folder, task)
        # Of the same name at every start of this cell here, so that the starts are counted.
        temporary = Path(tempfile.gettempdir()) / f"fastdiff-{self.attempt}-{task.name}"
        temporary.mkdir(mode=0o700, exist_ok=True)
        try:
            found = self._in(Folder(temporary), task)
            return found | {"files": _contents(temporary)}
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _be_as_typed(self) -> None:
        """Where a launcher began this process with other threads, or elsewhere: what a single run has counts."""
        if os.getpid() == self.process and socket.gethostname() == self.host:
            return
        for name in _threads_of(os.environ):
            del os.environ[name]
        os.environ.update(self.threads)
        use(os.pathsep.join(self.config_dirs))
        with contextlib.suppress(OSError):
            os.chdir(self.directory)

    def _is_over(self, folder: Folder) -> bool:
        """Whether nobody waits for this job any more, because the sweep was ended, or has died."""
        if socket.gethostname() == self.host and not _is_alive(self.process):
            return True
        return str(folder.path) == self.folder and folder.is_over(self.attempt, self.turn)

    def _in(self, folder: Folder, task: Task) -> dict[str, Any]:
        def over() -> bool:
            return self._is_over(folder)

        try:
            return _TaskRun(folder, task, self.attempt, self.limits, over).run()
        except DiskFull as error:
            return {"cell": task.name, "disk_full": str(error)}
        except Exception as error:
            with contextlib.suppress(OSError):
                folder.unmark(task.name)  # it is its cell's fault, and no process has died
            return {"cell": task.name, "error": f"{error}\n{traceback.format_exc()}"}


def _threads_of(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if _THREADS.fullmatch(name)}


def _is_alive(process: int) -> bool:
    """Whether a process of this machine goes on; one that has ended may still have its number."""
    try:
        if not hasattr(os, "pidfd_open"):
            os.kill(process, 0)
            return True
        file = os.pidfd_open(process)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        return not readable(file, 0)
    finally:
        os.close(file)


@dataclass
class _TaskRun:
    """A task on its way; also the Progress that its run tells how it gets on.

    kills: machine.oom_kills when a process that died before had begun on this machine; None where none has.
    """

    folder: Folder
    task: Task
    attempt: str
    limits: Limits
    over: Callable[[], bool]
    starts: int = 1
    kills: int | None = None
    said: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        name, before = self.task.name, self.folder.marked(self.task.name)
        if self.folder.finished(name, self.attempt):
            return {"cell": name}
        _check_room(self.folder.path)
        if before and before["attempt"] == self.attempt:
            self.starts = before["starts"] + 1
            here = before.get("host") == socket.gethostname()
            self.kills = before.get("oom_kills") if here else None
        self.said["oom_kills"] = oom_kills(Files())
        self.say("starting")
        work = self.folder.begin(name)
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        run = restore(dict(self.task.run))
        known: dict[str, str] = {}
        try:
            report = self._report(run, work, known, started_at)
        except DiskFull:
            self.folder.unmark(name)
            shutil.rmtree(work, ignore_errors=True)
            raise
        if self.over():
            raise KeyboardInterrupt
        seconds = time.time() - self.said["started_at"]
        beside = {"seconds": seconds, "made_with": known, "attempt": self.attempt}
        beside["references"] = self._keep_reference(work, report)
        write_json(work / "cell.json", beside)
        self.folder.finish(name)
        self.folder.unmark(name)
        if report["status"] == Status.INTERRUPTED.value:
            raise KeyboardInterrupt  # the only thing that stops a launcher
        return {"cell": name}

    def _report(
        self, run: RunConfig, work: Path, known: dict[str, str], started_at: str
    ) -> dict[str, Any]:
        """The run's report; one without figures if it can't even begin."""
        words = list(self.task.overrides)
        status, plan = Status.INCOMPATIBLE, None
        try:
            plan = planned(run)
            known |= made_with(run, plan.device)
            if self.starts > MOST_STARTS:
                status, why = self._died()
                raise FastdiffError(why)
            with device_for(plan.device, lambda: self.say("waiting for the device")) as variables:
                variables |= {RANDOM_WEIGHTS: str(self.folder.weights)}
                del self.said["started_at"]  # waiting is no part of a cell's time
                self.say("starting")
                return self._executed(plan, words, work, variables)
        except DiskFull:
            raise
        except FastdiffError as error:
            return _without_figures(run, plan, words, work, started_at, status, str(error))
        except Exception as error:
            traceback_ = traceback.format_exc()
            (work / "log.txt").write_text(traceback_, encoding="utf-8")
            text = f"{type(error).__name__}: {error}"
            return _without_figures(run, plan, words, work, started_at, Status.FAILED, text)

    def _died(self) -> tuple[Status, str]:
        """How this cell ended whose job's process died with it too often, and why, as far as the kernel says it."""
        said, now = f"the process that ran this cell's job died {MOST_STARTS} times", self.said
        if self.kills is None or (now["oom_kills"] or 0) <= self.kills:
            return Status.CRASHED, said
        return Status.OOM, (
            f"{said}, and the kernel ended a process for want of memory meanwhile\n"
            "  instead: fewer jobs at once, precision=bf16, or a smaller generation.height and width"
        )

    def _executed(
        self, plan: Plan, words: list[str], work: Path, variables: dict[str, str]
    ) -> dict[str, Any]:
        if self.over():
            raise KeyboardInterrupt
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)  # for the reference's process too
        try:
            starts: Starter = self._forks(plan).start if can_fork(plan) else start
            with self._ended_with_the_sweep(starts) as starter:
                missing = self.folder.missing(self.attempt)
                report = execute(plan, words, work, self, self.limits, starter, missing)
                self.folder.miss(self.attempt, missing)
                return report
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    @contextmanager
    def _ended_with_the_sweep(self, starter: Starter) -> Iterator[Starter]:
        """A starter whose processes are killed once nobody waits for the cell any more."""
        ended, workers = threading.Event(), list[Worker]()

        def started(module: str, folder: Path, variables: Mapping[str, str], /) -> Worker:
            workers.append(starter(module, folder, variables))
            return workers[-1]

        def look() -> None:
            while not ended.wait(_LOOK_EVERY_S):
                if self.over() and workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(workers[-1].pid, signal.SIGKILL)

        thread = threading.Thread(target=look, name="cell", daemon=True)
        thread.start()
        try:
            yield started
        finally:
            ended.set()
            thread.join()

    def _forks(self, plan: Plan) -> Forks:
        facts = plan.setting.facts
        return forks(self.folder.imports_log, facts.pipeline if facts else None)

    def _keep_reference(self, work: Path, report: dict[str, Any]) -> list[str]:
        """Copy the pictures that the run was compared with beside the cells; their places in the sweep's folder."""
        identity = report["quality"]["reference_run_id"]
        request = work / "request.json"
        if identity is None or not request.is_file():
            return []
        pictures = read_json(request)["reference"]["pictures"]
        paths = [Path(p) for p in ([pictures] if isinstance(pictures, str) else pictures or [])]
        kept = []
        for path in (p for p in paths if p.is_file()):
            target = self.folder.path / "references" / identity / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                unfinished = target.with_name(f".{target.name}.{os.getpid()}")
                shutil.copyfile(path, unfinished)
                os.replace(unfinished, target)
            kept.append(str(target.relative_to(self.folder.path)))
        return kept

    # Progress --------------------------------------------------------------------------------------

    def say(self, message: str) -> None:
        self.said.setdefault("started_at", time.time())
        self.said |= {"attempt": self.attempt, "starts": self.starts, "phase": message}
        self.said |= {"host": socket.gethostname(), "process": os.getpid()}
        self.folder.mark(self.task.name, self.said)

    def tell(self, phase: str, done: int, of: int) -> None:
        if phase not in ("first call", self.said.get("phase")):
            self.say(phase)


_servers: list[Forks] = []


def forks(log: Path, pipeline: str | None) -> Forks:
    """This process's server of forked runs, started when the first is wanted and ended with the process.

    log: what libraries print when they are imported. pipeline: the class of diffusers that the first run loads.
    """
    if not _servers:
        server = Forks(log, [pipeline] if pipeline else [])
        server.__enter__()
        atexit.register(_end, server)
        _servers.append(server)
    return _servers[0]


def _end(server: Forks) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # of somebody who can't wait for the end
        server.__exit__(None, None, None)


def _check_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise DiskFull(
            f"no room on the disk: {free / 1e6:.0f} MB are free in {folder}, a cell needs "
            f"{LEAST_FREE_BYTES / 1e6:.0f} MB\n  instead: make room and type the same line again; "
            "what is finished stays"
        )


def _without_figures(
    run: RunConfig,
    plan: Plan | None,
    words: list[str],
    work: Path,
    started_at: str,
    status: Status,
    message: str,
) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    report = blank_report(run, plan, words, started_at).to_dict()
    report |= {"status": status.value, "finished_at": datetime.now(UTC).isoformat("T", "seconds")}
    report["error"] = {"message": message, "log": "log.txt", "log_tail": []}
    write_json(work / "report.json", report)
    write_run_page(work, report)
    return report


def _contents(folder: Path) -> dict[str, bytes]:
    """The files of a finished cell by their path, for a parent that doesn't see this machine's folders."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.parts[len(folder.parts)] in ("cells", "references")
    }
