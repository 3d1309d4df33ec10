"""The parent's side of a run: a worker in its own process, watched until it ends, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from fastdiff.errors import FastdiffError, UsageError
from fastdiff.planning import Plan
from fastdiff.protocol import MEASURED, PARENT, Request
from fastdiff.report import blank_report
from fastdiff.result import Status, read_json, write_json, write_text

LEAST_FREE_BYTES = 50_000_000
"""A run's folder holds pictures, a log and reports: a few megabytes. Below this the disk counts as full."""


class Progress(Protocol):
    """Who is told how a run gets on."""

    def say(self, message: str) -> None: ...

    def tell(self, phase: str, done: int, of: int) -> None: ...


class RefusedByWorker(FastdiffError):
    """The worker found out that the run can't start: its message, and exit code 2."""

    exit_code = 2


@dataclass(frozen=True)
class Ending:
    """How a worker ended."""

    status: Status
    message: str | None = None
    exit_code: int = 0


def run_in_process(
    plan: Plan,
    request: Request,
    folder: Path,
    progress: Progress,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a request in its own process; returns the report, which also lies in the folder.

    variables: environment variables that the process gets beside ours.
    Raises RefusedByWorker, with nothing left behind, if the run could not start (a model that isn't there, say).
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    before = entries(folder)
    prepare_folder(folder)
    for left in ("report.json", MEASURED, "trace.json.gz"):
        if not (folder / left).is_dir():  # a folder of that name is none that a run left
            (folder / left).unlink(missing_ok=True)
    request.write(folder)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(request.config)))
    write_json(folder / "plan.json", plan.to_dict())
    ending = _watch(folder, progress, variables or {})
    if ending.status is Status.INCOMPATIBLE:
        leave_nothing(folder, before)
        raise RefusedByWorker(ending.message or "")
    # What a process does after its report is whole, a crash while it ends for example, takes nothing from the report.
    if (folder / "report.json").is_file():
        report: dict[str, Any] = read_json(folder / "report.json")
        return report
    if ending.status is Status.OK:
        ending = Ending(Status.CRASHED, "the run's process ended early, without a report", 1)
    return report_failure(plan, request.overrides, folder, ending, started_at)


def report_failure(
    plan: Plan, overrides: list[str], folder: Path, ending: Ending, started_at: str
) -> dict[str, Any]:
    """Write the report of a run that ended early, with the figures that it had by then, and return it."""
    measured = folder / MEASURED
    report: dict[str, Any] = blank_report(plan.setting.run, plan, overrides, started_at)
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


def draw_reference(request: Request, folder: Path, progress: Progress) -> str | None:
    """Draw the reference pictures into a folder; returns why not, if that failed.

    The folder appears whole or not at all. Raises RefusedByWorker if the model can't be had.
    """
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    before = entries(unfinished)
    prepare_folder(unfinished)
    try:
        request.write(unfinished)
        ending = _watch(unfinished, progress)
        if ending.status is Status.INCOMPATIBLE:
            raise RefusedByWorker(ending.message or "")
        if ending.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if ending.status is not Status.OK:
            tail = "" if ending.status is Status.OOM else f" ({ending.status})"
            return f"{ending.message}{tail}"
        with contextlib.suppress(OSError):  # another run was quicker: its pictures are as good
            os.replace(unfinished, folder)
        return None
    finally:
        leave_nothing(unfinished, before)


def entries(folder: Path) -> frozenset[str]:
    """Names in a folder; none if it doesn't exist."""
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def leave_nothing(folder: Path, before: frozenset[str]) -> None:
    """Remove from a folder what was not in it before, then the folder and those above it that are empty now.

    Only below the working directory are empty folders removed: what lies elsewhere was somebody's choice.
    """
    for name in entries(folder) - before:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if before:
        return
    here, emptied = Path.cwd(), folder.absolute()
    for at in (emptied, *emptied.parents):
        if at == here or (at != emptied and here not in at.parents):
            return
        with contextlib.suppress(OSError):
            at.rmdir()


def check_folder(folder: Path) -> None:
    """Whether a run could write into a folder that need not exist yet. Writes nothing. Raises UsageError."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UsageError(
            f"can't write to {folder}: {existing.absolute()} is a file\n"
            "  instead: start where you may write, or hydra.run.dir=DIR"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"can't write to {folder}: {existing.absolute()} is read-only for you\n"
            "  instead: start where you may write, or hydra.run.dir=DIR"
        )
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        raise UsageError(
            f"no room on the disk: {free / 1e6:.0f} MB are free in {existing.absolute()}, a run needs "
            f"{LEAST_FREE_BYTES / 1e6:.0f} MB\n  instead: make room, or hydra.run.dir=DIR on another disk"
        )


def prepare_folder(folder: Path) -> None:
    """Make a folder, or say why there can't be one. Raises UsageError."""
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "log.txt", "")
    except OSError as error:
        raise UsageError(
            f"can't write to {folder}: {error.strerror}\n"
            "  instead: start where you may write, or hydra.run.dir=DIR"
        ) from error


def _watch(folder: Path, progress: Progress, variables: Mapping[str, str] = {}) -> Ending:
    """Start the worker, pass its events on, and say how it ended."""
    last_error: dict[str, Any] | None = None
    worker = start("fastdiff.worker", folder, variables)
    try:
        for event in events_of(worker):
            if "say" in event:
                progress.say(event["say"])
            elif "phase" in event:
                progress.tell(event["phase"], event["done"], event["of"])
            elif "error" in event:
                last_error = event["error"]
        code = worker.wait()
    except KeyboardInterrupt:
        end(worker)
        return Ending(Status.INTERRUPTED, "interrupted by Ctrl-C", 130)
    except BaseException:
        end(worker)
        raise
    if last_error is not None:
        return Ending(Status(last_error["status"]), last_error["message"], last_error["exit_code"])
    return ending_of(code)


def start(
    module: str, folder: Path, variables: Mapping[str, str], stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a module of fastdiff's on a run folder; its events come out of its pipe, its log goes to `log.txt`.

    stdin: where its standard input comes from; subprocess.PIPE keeps a line to it.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1", PARENT: str(os.getpid()), **variables}
    # It runs wherever the command was typed, so it must find this very package.
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def events_of(worker: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What a process says, line by line, until it ends."""
    assert worker.stdout is not None
    for line in worker.stdout:
        # A line cut short by the worker's death carries nothing.
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            yield json.loads(line)


def ending_of(code: int) -> Ending:
    """What an exit code without a word from the worker means."""
    if code == 0:
        return Ending(Status.OK)
    if code == -signal.SIGKILL:
        return Ending(
            Status.OOM,
            "the run was killed by the system, most likely because memory ran out\n"
            "  instead: precision=bf16, a smaller generation.height and width, or fewer pictures at once",
            1,
        )
    if code < 0:
        return Ending(Status.CRASHED, f"the run's process died of {signal.Signals(-code).name}", 1)
    return Ending(
        Status.CRASHED, f"the run's process ended with exit code {code} without a word", 1
    )


def end(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and whatever it started, gently first."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, sign)
        try:
            worker.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
        return


def last_lines(path: Path, count: int = 12) -> list[str]:
    """The end of a log, without colour codes."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line[:300] for line in lines if line.strip()][-count:]
