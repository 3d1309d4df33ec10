"""The line between a run's process and whoever started it: what is asked, what is told, and how both end together.

A run folder holds `request.json`. Standard output carries events, one JSON object a line; everything that libraries
print goes to standard error, which is the run's log.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from fastdiff.errors import FastdiffError, InvalidOutputError, ModelError, PlanError, Status
from fastdiff.machine.files import read_json, write_json

MEASURED = "measured.json"
"""File of a run that goes on: its report as far as it is known, for a run that ends before its report is whole."""

PARENT = "FASTDIFF_PARENT"
"""Environment variable with the process id of whoever started the worker."""

MEMORY_LIMIT = "FASTDIFF_MEMORY_LIMIT_BYTES"
"""Environment variable with the bytes of data that the worker may hold."""


@dataclass(frozen=True)
class Request:
    """What a run folder asks for.

    reference: what the pictures are compared with, written by the parent: {"run_id", "pictures", "reason"}.
    only_pictures: draw once and measure nothing, for a reference.
    """

    config: dict[str, Any]
    overrides: list[str]
    reference: dict[str, Any]
    only_pictures: bool = False

    @classmethod
    def read(cls, folder: Path) -> Request:
        return cls(**read_json(folder / "request.json"))

    def write(self, folder: Path) -> None:
        write_json(folder / "request.json", self.__dict__)


class Events:
    """The worker's side of the line to its parent."""

    def __init__(self, line: TextIO) -> None:
        self._line = line

    def send(self, **event: Any) -> None:
        # The parent may be gone; the run goes on to its report all the same.
        with contextlib.suppress(BrokenPipeError):
            self._line.write(json.dumps(event) + "\n")
            self._line.flush()

    def say(self, message: str) -> None:
        self.send(say=message)

    def tell(self, phase: str, done: int, of: int) -> None:
        self.send(phase=phase, done=done, of=of)


def own_standard_output() -> TextIO:
    """Keep the pipe to the parent for events; whoever prints now prints into the log."""
    line = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return line


def end_with_parent() -> None:
    """On Linux: be ended when the parent is, so that no orphan goes on computing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != int(os.environ.get(PARENT, os.getppid())):
            sys.exit(1)  # it was gone before the signal was asked for


def limit_memory() -> None:
    """On Linux: be the first to be ended where memory runs out, and hold no more data than MEMORY_LIMIT says.

    The limit counts what can be written and is this process's own (heap, stacks, copies), used or only reserved; mapped
    files, such as a model's weights as they lie on the disk, are not counted. A process that this one starts has as much
    again.
    """
    if sys.platform != "linux":
        return
    import resource

    with contextlib.suppress(OSError):  # some containers don't allow it
        Path("/proc/self/oom_score_adj").write_text("1000")
    if limit := os.environ.get(MEMORY_LIMIT):
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))


def quiet_and_safe() -> None:
    """What has to be set before diffusers and the hub's client are imported."""
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def describe(error: BaseException) -> dict[str, Any]:
    """An error as the parent needs it: status, message, exit code, and whether the disk is full."""
    status = Status.FAILED
    text = str(error).strip() or type(error).__name__
    if isinstance(error, InvalidOutputError):
        status = Status.INVALID_OUTPUT
    elif isinstance(error, (ModelError, PlanError)):
        status = Status.INCOMPATIBLE
    elif _is_out_of_memory(error):
        status = Status.OOM
    if not isinstance(error, FastdiffError):
        text = f"{type(error).__name__}: {text}"
    return {
        "status": status.value,
        "message": text,
        "exit_code": getattr(error, "exit_code", 1),
        "disk_full": says_disk_full(error),
    }


def says_disk_full(error: BaseException) -> bool:
    """Whether an error, or what led to it, is that the disk or the user's part of it is full."""
    led_to: BaseException | None = error
    while led_to is not None:
        if getattr(led_to, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(led_to):  # as torch's own files say it
            return True
        led_to = led_to.__cause__ or led_to.__context__
    return False


def _is_out_of_memory(error: BaseException) -> bool:
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or speaks_of_memory(str(error))


_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc"),
    *("memoryerror", "failed to map segment"),
)


def speaks_of_memory(text: str) -> bool:
    """Whether a library's words say that it got no memory."""
    return any(word in text.lower() for word in _OF_MEMORY)


def end_at_once(code: int) -> NoReturn:
    """End this process as Python ends, but without taking its objects apart one by one: with torch and diffusers imported that
    takes over a second, and a fork would copy them all first.
    """
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(code)
