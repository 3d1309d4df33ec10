"""The parent's side of a run: a worker in its own process, watched until it ends, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from omegaconf import OmegaConf

from fastdiff.errors import FastdiffError, Status
from fastdiff.machine.files import read_json, write_json, write_text
from fastdiff.machine.hardware import Files, oom_kills
from fastdiff.measuring.child import MEMORY_LIMIT, PARENT
from fastdiff.measuring.protocol import MEASURED, Request, speaks_of_memory
from fastdiff.measuring.report import blank_report
from fastdiff.planning.plan import Plan
from fastdiff.runs.folders import (
    _room_in,
    entries,
    last_lines,
    leave_nothing,
    no_room,
    prepare_folder,
)


class Progress(Protocol):
    """Who is told how a run gets on."""

    def say(self, message: str) -> None: ...

    def tell(self, phase: str, done: int, of: int) -> None: ...


class Worker(Protocol):
    """A run's process as its parent sees it; subprocess.Popen is one. Negative exit codes are signals."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def wait(self, timeout: float | None = None) -> int: ...


class Starter(Protocol):
    """Who starts a run's process: `start`, or a server that forks it."""

    def __call__(self, module: str, folder: Path, variables: Mapping[str, str], /) -> Worker: ...


@dataclass(frozen=True)
class Limits:
    """What a run's process may take; None is no limit.

    timeout_s: seconds from its start to its end.
    memory_bytes: of its data (protocol.limit_memory says what counts); on Linux, and not where it computes with CUDA.
    """

    timeout_s: float | None = None
    memory_bytes: int | None = None

    def variables(self, device: str) -> dict[str, str]:
        """What the process of a run on this device is told of them.

        CUDA's driver reserves address space as large as all memory together, which the system's limit would count.
        """
        if self.memory_bytes is None or device == "cuda":
            return {}
        return {MEMORY_LIMIT: str(self.memory_bytes)}


class RefusedByWorker(FastdiffError):
    """The worker found out that the run can't start: its message, and exit code 2."""

    exit_code = 2


@dataclass(frozen=True)
class Ending:
    """How a worker ended."""

    status: Status
    message: str | None = None
    exit_code: int = 0
    disk_full: bool = False


NO_LIMITS = Limits()


def start(
    module: str, folder: Path, variables: Mapping[str, str], stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a module of fastdiff's on a run folder; its events come out of its pipe, its log goes to `log.txt`.

    stdin: where its standard input comes from; subprocess.PIPE keeps a line to it.
    """
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment_of(variables),
            start_new_session=True,
        )


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment of a process of fastdiff's: ours, what it has to know, and these variables.

    CUDA counts GPUs as NVML does, so that a run computes on the one that was planned for; whoever set the order keeps it.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1", PARENT: str(os.getpid()), **variables}
    if not environment.get("CUDA_DEVICE_ORDER"):
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    # It runs wherever the command was typed, so it must find this very package.
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return environment


def run_in_process(
    plan: Plan,
    request: Request,
    folder: Path,
    progress: Progress,
    variables: Mapping[str, str] | None = None,
    limits: Limits = NO_LIMITS,
    starter: Starter = start,
) -> dict[str, Any]:
    """Run a request in its own process; returns the report, which also lies in the folder.

    variables: environment variables that the process gets beside ours.
    starter: who starts the process.
    Raises RefusedByWorker, with nothing left behind, if the run could not start (a model that isn't there, say), and
    DiskFull if there was no room for what it wrote.
    """
    with _room_in(folder):
        return _run(plan, request, folder, progress, variables or {}, limits, starter)


def _run(
    plan: Plan,
    request: Request,
    folder: Path,
    progress: Progress,
    variables: Mapping[str, str],
    limits: Limits,
    starter: Starter,
) -> dict[str, Any]:
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    before = entries(folder)
    prepare_folder(folder)
    for left in ("report.json", MEASURED, "trace.json.gz"):
        if not (folder / left).is_dir():  # a folder of that name is none that a run left
            (folder / left).unlink(missing_ok=True)
    request.write(folder)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(request.config)))
    write_json(folder / "plan.json", plan.to_dict())
    given = {**plan.variables, **variables, **limits.variables(plan.device)}
    ending = _watch(folder, progress, limits, starter, given)
    if ending.status is Status.INCOMPATIBLE:
        leave_nothing(folder, before)
        raise RefusedByWorker(ending.message or "")
    # What a process does after its report is whole, a crash while it ends for example, takes nothing from the report.
    if (folder / "report.json").is_file():
        report: dict[str, Any] = read_json(folder / "report.json")
        return report
    if ending.status is Status.OK:
        ending = Ending(Status.CRASHED, "the run's process ended early, without a report", 1)
    report = report_failure(plan, request.overrides, folder, ending, started_at)
    if ending.disk_full:
        raise no_room(folder)
    return report


def report_failure(
    plan: Plan, overrides: list[str], folder: Path, ending: Ending, started_at: str
) -> dict[str, Any]:
    """Write the report of a run that ended early, with the figures that it had by then, and return it."""
    measured = folder / MEASURED
    report = blank_report(plan.setting.run, plan, overrides, started_at).to_dict()
    if measured.is_file():
        report |= read_json(measured)
        measured.unlink()
    report["status"] = ending.status.value
    report["error"] = {
        "message": ending.message,
        "log": "log.txt",
        "log_tail": last_lines(folder / "log.txt"),
    }
    report["finished_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "report.json", report)
    return report


def draw_reference(
    request: Request,
    folder: Path,
    progress: Progress,
    device: str,
    limits: Limits = NO_LIMITS,
    starter: Starter = start,
) -> str | None:
    """Draw the reference pictures into a folder; returns why not, if that failed.

    The folder appears whole or not at all. Raises RefusedByWorker if the model can't be had, DiskFull if there was no
    room for them.
    """
    with _room_in(folder):
        return _draw(request, folder, progress, device, limits, starter)


def _draw(
    request: Request,
    folder: Path,
    progress: Progress,
    device: str,
    limits: Limits,
    starter: Starter,
) -> str | None:
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    before = entries(unfinished)
    prepare_folder(unfinished)
    try:
        request.write(unfinished)
        ending = _watch(unfinished, progress, limits, starter, limits.variables(device))
        if ending.status is Status.INCOMPATIBLE:
            raise RefusedByWorker(ending.message or "")
        if ending.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if ending.disk_full:
            raise no_room(folder)
        if ending.status is not Status.OK:
            tail = "" if ending.status is Status.OOM else f" ({ending.status})"
            return f"{ending.message}{tail}"
        with contextlib.suppress(OSError):  # another run was quicker: its pictures are as good
            os.replace(unfinished, folder)
        return None
    finally:
        leave_nothing(unfinished, before)


def _watch(
    folder: Path,
    progress: Progress,
    limits: Limits,
    starter: Starter,
    variables: Mapping[str, str],
) -> Ending:
    """Start the worker, pass its events on, and say how it ended."""
    last_error: dict[str, Any] | None = None
    kills = oom_kills(Files())
    worker = starter("fastdiff.measuring.worker", folder, variables)
    left = Countdown(limits.timeout_s)
    try:
        for event in events_of(worker, left):
            if "say" in event:
                progress.say(event["say"])
            elif "phase" in event:
                progress.tell(event["phase"], event["done"], event["of"])
            elif "error" in event:
                last_error = event["error"]
        code = worker.wait(timeout=left())
    except (TimeoutError, subprocess.TimeoutExpired):
        end(worker)
        return Ending(Status.TIMEOUT, _too_long(limits), 1)
    except KeyboardInterrupt:
        end(worker)
        return Ending(Status.INTERRUPTED, "interrupted by Ctrl-C", 130)
    except BaseException:
        end(worker)
        raise
    if last_error is not None:
        ending = Ending(
            Status(last_error["status"]),
            last_error["message"],
            last_error["exit_code"],
            last_error.get("disk_full", False),
        )
    else:
        ending = ending_of(code, kills)
    return ending if limits.memory_bytes is None else _within(limits, ending, folder, variables)


def _too_long(limits: Limits) -> str:
    return (
        f"the run took longer than {limits.timeout_s:g} s (sweep.timeout_s)\n"
        "  instead: a longer sweep.timeout_s, or fewer generation.steps"
    )


def _within(limits: Limits, ending: Ending, folder: Path, variables: Mapping[str, str]) -> Ending:
    """How a run ended that had a memory limit: whatever failed for want of memory is the limit's doing.

    A library that gets no memory may end the process itself; then only the log says why.
    """
    if MEMORY_LIMIT not in variables:
        return ending
    last_words = "\n".join(last_lines(folder / "log.txt"))
    died_of_it = ending.status is Status.CRASHED and speaks_of_memory(last_words)
    said_so = ending.status is Status.OOM and ending.message != KILLED
    if not (died_of_it or said_so):
        return ending
    message = (
        f"the run needed more than its {(limits.memory_bytes or 0) / 1e9:g} GB of memory (sweep.memory_limit_gb)\n"
        "  instead: a larger sweep.memory_limit_gb, precision=bf16, or a smaller generation.height and width\n"
        f"  it said: {ending.message}"
    )
    return replace(ending, status=Status.OOM, message=message)


class Countdown:
    """Seconds left of a time limit, at least 0; None without one."""

    def __init__(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds

    def __call__(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())


def events_of(worker: Worker, left: Countdown | None = None) -> Iterator[dict[str, Any]]:
    """What a process says, line by line, until it ends. Raises TimeoutError when no time is left."""
    assert worker.stdout is not None
    for line in worker.stdout if left is None else _lines(worker.stdout.fileno(), left):
        # A line cut short by the worker's death carries nothing.
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            yield json.loads(line)


def readable(file: int, seconds: float | None) -> bool:
    """Whether there is something to read, or the end of it, within so many seconds; None waits for it."""
    waiting = select.poll()
    waiting.register(file, select.POLLIN)
    return bool(waiting.poll(None if seconds is None else seconds * 1000))


def _lines(pipe: int, left: Countdown) -> Iterator[bytes]:
    """Lines of a pipe until it is closed. Raises TimeoutError when no time is left."""
    rest = b""
    while True:
        if not readable(pipe, left()):
            raise TimeoutError
        some = os.read(pipe, 65536)
        if not some:
            break
        *lines, rest = (rest + some).split(b"\n")
        yield from lines
    yield rest


KILLED = (
    "the run was killed by the system because memory ran out\n"
    "  instead: precision=bf16, a smaller generation.height and width, or fewer pictures at once"
)
KILLED_BY_HAND = (
    "the run's process was killed by signal 9 (SIGKILL), and not for want of memory: the kernel counted no such kill\n"
    "  instead: run it again; somebody ended it, or a program that watches over this machine"
)
KILLED_UNCOUNTED = (
    "the run's process was killed by signal 9 (SIGKILL); this system doesn't tell whether memory ran out\n"
    "  instead: run it again; if it ends so once more, precision=bf16 or a smaller generation.height and width"
)


def ending_of(code: int, kills: int | None = None) -> Ending:
    """What an exit code without a word from the worker means.

    kills: machine.oom_kills before it began; None where that isn't known. Only the kernel's count tells a process that
    it ended for want of memory from one that was killed by hand.
    """
    if code == 0:
        return Ending(Status.OK)
    if code == -signal.SIGKILL:
        now = oom_kills(Files())
        if kills is None or now is None:
            return Ending(Status.CRASHED, KILLED_UNCOUNTED, 1)
        for_memory = now > kills
        status = Status.OOM if for_memory else Status.CRASHED
        return Ending(status, KILLED if for_memory else KILLED_BY_HAND, 1)
    if code < 0:
        return Ending(Status.CRASHED, f"the run's process died of {signal.Signals(-code).name}", 1)
    return Ending(
        Status.CRASHED, f"the run's process ended with exit code {code} without a word", 1
    )


def end(worker: Worker) -> None:
    """End the worker and whatever it started, gently first; what is left of its group then has had its time."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=5)
