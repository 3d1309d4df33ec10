"""One cell at a time on a device: jobs of one machine wait for one another, whoever started them."""

from __future__ import annotations

import getpass
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import IO

from fastdiff.environment import this_machine

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_PATIENCE_S = 0.5


@contextmanager
def device_for(
    device: str, waiting: Callable[[], None] = lambda: None, folder: Path | None = None
) -> Iterator[dict[str, str]]:
    """Hold a device of a kind (`cpu`, `cuda`, `mps`) while a cell runs; yields the variables that lead the run to it.

    Of several GPUs that this process may use it takes the first that is free. waiting: called once if none is.
    folder: of the locks, which tests choose. A lock goes with the process that holds it, however that ends.
    """
    names = visible_gpus() if device == "cuda" else [device]
    folder = folder or Path(tempfile.gettempdir()) / f"fastdiff-devices-{getpass.getuser()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = False
    while True:
        for name in names:
            held = _lock(folder / f"{name}.lock")
            if held is not None:
                with held:
                    yield {_VISIBLE: name} if device == "cuda" else {}
                return
        if not told:
            waiting()
            told = True
        time.sleep(_PATIENCE_S)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; asks nothing of CUDA.

    The empty name where all are hidden: a run then says itself that CUDA finds none.
    """
    named = os.environ.get(_VISIBLE)
    if named is not None:
        names = (name.strip() for name in named.split(","))
        return list(takewhile(lambda name: name not in ("", "-1"), names)) or [""]
    return [str(number) for number in range(max(1, len(this_machine().gpus)))]


def _lock(file: Path) -> IO[str] | None:
    """The file, open and locked; None if another process holds it."""
    import fcntl

    opened = file.open("a", encoding="utf-8")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        return None
    return opened
