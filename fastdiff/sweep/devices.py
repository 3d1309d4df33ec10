"""One cell at a time on a device: jobs of one machine wait for one another, whoever started them."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

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
    locks = lock_names(names) if device == "cuda" else names
    folder = folder or lock_folder()
    told = False
    while True:
        for name, lock in zip(names, locks, strict=True):
            held = _lock(folder / f"{lock}.lock")
            if held is not None:
                with held:
                    yield {_VISIBLE: name} if device == "cuda" else {}
                return
        if not told:
            waiting()
            told = True
        time.sleep(_PATIENCE_S)


def lock_folder() -> Path:
    """Where all users of this machine keep their locks, so that their cells wait for one another.

    A lock is an empty file, opened for reading alone and never through a link, so nobody can harm anybody with one.
    Where another user has made the folder without leaving it to all, it is one of this user's own.
    """
    shared = Path(tempfile.gettempdir()) / "fastdiff-devices"
    with suppress(FileExistsError):
        shared.mkdir()
        shared.chmod(
            0o1777
        )  # as the folder for temporary files itself: everybody adds, nobody removes others'
    facts = shared.lstat()
    if stat.S_ISDIR(facts.st_mode) and (facts.st_mode & 0o1002) == 0o1002:
        return shared
    own = shared.with_name(f"{shared.name}-{os.getuid()}")
    own.mkdir(mode=0o700, exist_ok=True)
    return own


def lock_names(names: list[str]) -> list[str]:
    """The locks of GPUs that are named as CUDA names them: NVML's UUIDs, which are the same in every job and container.

    The name itself where NVML doesn't know the GPU, without the slashes that older MIG names have.
    """
    gpus = this_machine().gpus
    known = [gpu.uuid for gpu in gpus] if len(gpus) == len(names) else [None] * len(names)
    return [uuid or re.sub(r"[^\w.-]", "_", name) for name, uuid in zip(names, known, strict=True)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; asks nothing of CUDA.

    The empty name where all are hidden: a run then says itself that CUDA finds none.
    """
    named = os.environ.get(_VISIBLE)
    if named is not None:
        names = (name.strip() for name in named.split(","))
        return list(takewhile(lambda name: name not in ("", "-1"), names)) or [""]
    return [str(number) for number in range(max(1, len(this_machine().gpus)))]


def _lock(file: Path) -> BinaryIO | None:
    """The file, open and locked; None if another process holds it."""
    import fcntl

    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        found = os.open(file, flags)
    except FileNotFoundError:
        with suppress(FileExistsError):  # another process was quicker
            os.close(os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o644))
        found = os.open(file, flags)
    opened = os.fdopen(found, "rb")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        return None
    return opened
