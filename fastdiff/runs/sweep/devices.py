"""One cell at a time on a device: jobs of one machine wait for one another, whoever started them."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fastdiff.machine.cache_folder import distrust
from fastdiff.machine.environment import this_machine
from fastdiff.machine.nvml import VISIBLE, visible_names

_PATIENCE_S = 0.5
_SHARED = ("/run/lock", "/tmp")
"""Folders in which all users of a machine may keep files, best first."""


@contextmanager
def device_for(
    device: str, waiting: Callable[[], None] = lambda: None, folder: Path | None = None
) -> Iterator[dict[str, str]]:
    """Hold a device of a kind (`cpu`, `cuda`, `mps`) while a cell runs; yields the variables that lead the run to it.

    Of several GPUs that this process may use it takes the first that is free; of the processor all parts that it may
    use, for its threads go to each. waiting: called once if none is free. folder: of the locks, which tests choose. A
    lock goes with the process that holds it, however that ends.
    """
    folder = folder or lock_folder()
    told = False
    while True:
        for locks, variables in _ways(device):
            held = _hold(folder, locks)
            if held is not None:
                with held:
                    yield variables
                return
        if not told:
            waiting()
            told = True
        time.sleep(_PATIENCE_S)


def _ways(device: str) -> list[tuple[list[str], dict[str, str]]]:
    """What a cell may run on: the locks of each, and the variables that lead a run there."""
    if device == "cuda":
        return [([lock], {VISIBLE: name}) for name, lock in lock_names(visible_gpus())]
    if device == "cpu" and hasattr(os, "sched_getaffinity"):
        return [([f"cpu-{number}" for number in sorted(os.sched_getaffinity(0))], {})]
    return [([device], {})]


def lock_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """GPUs as CUDA names them, each with its lock's name: NVML's UUID, which is the same in every job and container.

    The name itself where NVML doesn't know the GPU, without the slashes that older MIG names have. Names behind those
    that CUDA looks at are left out.
    """
    known = [gpu.uuid for gpu in this_machine().gpus] or [None] * len(names)
    return [
        (name, re.sub(r"[^\w.-]", "_", uuid or f"gpu-{name}"))
        for name, uuid in zip(names, known, strict=False)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; asks nothing of CUDA.

    The empty name where all are hidden: a run then says itself that CUDA finds none.
    """
    names = visible_names()
    if names is None:
        return [str(number) for number in range(max(1, len(this_machine().gpus)))]
    return names or [""]


# Files ---------------------------------------------------------------------------------------------


def lock_folder() -> Path:
    """Where all users of this machine keep their locks, so that their cells wait for one another.

    The system's own, in which everybody may make a file and nobody remove another's. A user's own where there is none.
    """
    for name in _SHARED:
        folder = Path(name).resolve()
        with suppress(OSError):
            facts = folder.stat()
            open_to_all = facts.st_mode & (stat.S_ISVTX | stat.S_IWOTH) == (
                stat.S_ISVTX | stat.S_IWOTH
            )
            if facts.st_uid == 0 and stat.S_ISDIR(facts.st_mode) and open_to_all:
                return folder
    return _own_folder()


def _own_folder() -> Path:
    """A folder of locks for this user alone, by number: a user in a container may have no name. Raises OSError."""
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    own = Path(tempfile.gettempdir()) / f"fastdiff-devices{user}"
    own.mkdir(mode=0o700, exist_ok=True)
    if doubt := distrust(own):
        raise OSError(
            f"{own}, in which cells wait for one another, {doubt}\n  instead: remove it, or TMPDIR=DIR"
        )
    return own


def _hold(folder: Path, locks: Sequence[str]) -> ExitStack | None:
    """All of these locks, until what is returned is closed; None if another process holds one of them."""
    with ExitStack() as held:
        for lock in locks:
            file = _lock(folder, f"fastdiff-{lock}.lock")
            if file is None:
                return None
            held.enter_context(file)
        return held.pop_all()


def _lock(folder: Path, name: str) -> BinaryIO | None:
    """The file, open and locked; None if another process holds it.

    Files are empty and opened for reading alone, so nobody can harm anybody with one. The package filelock opens for
    writing: all users could share its files only if all could write them. Where something else lies there, or what
    this user may not open, this user's cells wait for one another alone.
    """
    import fcntl

    try:
        opened = _opened(folder / name)
    except OSError:
        if folder == (own := _own_folder()):
            raise
        folder, opened = own, _opened(own / name)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        return None
    if not _lies_at(folder / name, opened):  # it was removed meanwhile, and others lock another one
        opened.close()
        return None
    return opened


def _opened(file: Path) -> BinaryIO:
    """An empty file for all to read, made if it isn't there. Raises OSError if it is a link, or no file."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        number = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o444)
        os.fchmod(number, 0o444)  # whatever the umask says
    except FileExistsError:
        try:
            number = os.open(file, flags)
        except PermissionError:  # another process has only just made it
            time.sleep(_PATIENCE_S)
            number = os.open(file, flags)
    opened = os.fdopen(number, "rb")
    if not stat.S_ISREG(os.fstat(number).st_mode):
        opened.close()
        raise OSError(errno.EINVAL, "is no file", str(file))
    return opened


def _lies_at(file: Path, opened: BinaryIO) -> bool:
    try:
        return os.path.samestat(file.lstat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False
