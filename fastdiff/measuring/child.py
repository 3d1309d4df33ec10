"""What a run's process does to itself: keeps its line to its parent, ends with it, keeps its limits, says how it failed."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from fastdiff.measuring.protocol import Events, Request, describe

PARENT = "FASTDIFF_PARENT"
"""Environment variable with the process id of whoever started the worker."""

MEMORY_LIMIT = "FASTDIFF_MEMORY_LIMIT_BYTES"
"""Environment variable with the bytes of data that the worker may hold."""


def carry_out(work: Callable[[Path, Request, Events], None]) -> int:
    """Do what the folder that is named on the command line asks for; the exit code. Errors are told to the parent, and in the log."""
    folder = Path(sys.argv[1])
    events = Events(own_standard_output())
    end_with_parent()
    limit_memory()
    quiet_and_safe()
    try:
        work(folder, Request.read(folder), events)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        events.send(error=describe(error))
        with contextlib.suppress(OSError):  # on a full disk the log can't be written either
            traceback.print_exc()
        return getattr(error, "exit_code", 1)
    return 0


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


def end_at_once(code: int) -> NoReturn:
    """End this process as Python ends, but without taking its objects apart one by one: with torch and diffusers imported that
    takes over a second, and a fork would copy them all first.
    """
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(code)
