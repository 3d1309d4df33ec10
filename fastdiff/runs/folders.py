"""A run's folder: made, cleared, and whether there is room for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fastdiff.errors import FastdiffError, UsageError
from fastdiff.machine.files import write_text
from fastdiff.measuring.protocol import (
    says_disk_full,
)

LEAST_FREE_BYTES = 50_000_000
"""A run's folder holds pictures, a log and reports: a few megabytes. Below this the disk counts as full."""


class DiskFull(FastdiffError):
    """The disk is full: neither this run nor the next one can be written."""


@contextlib.contextmanager
def _room_in(folder: Path) -> Iterator[None]:
    """Raises DiskFull for what can't be written here because the disk is full."""
    try:
        yield
    except OSError as error:
        if not says_disk_full(error):
            raise
        raise no_room(folder) from error


def no_room(folder: Path) -> DiskFull:
    return DiskFull(
        f"no room on the disk: what a run writes to {folder} is not whole\n"
        "  instead: make room, and give the same command again"
    )


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


def check_folder(folder: Path, key: str = "hydra.run.dir") -> None:
    """Whether a run could begin and write into a folder that need not exist yet. Writes nothing. Raises UsageError.

    key: by which a user names another folder.
    """
    if sys.platform == "win32":
        raise UsageError(
            "Windows can't run this: a run's process is watched and ended by calls that only POSIX systems have\n"
            "  instead: the same line in WSL, the Windows Subsystem for Linux"
        )
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UsageError(
            f"can't write to {folder}: {existing.absolute()} is a file\n"
            f"  instead: start where you may write, or {key}=DIR"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"can't write to {folder}: {existing.absolute()} is read-only for you\n"
            f"  instead: start where you may write, or {key}=DIR"
        )
    free = shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        raise UsageError(
            f"no room on the disk: {free / 1e6:.0f} MB are free in {existing.absolute()}, a run needs "
            f"{LEAST_FREE_BYTES / 1e6:.0f} MB\n  instead: make room, or {key}=DIR on another disk"
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


def last_lines(path: Path, count: int = 12) -> list[str]:
    """The end of a log, without colour codes."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line[:300] for line in lines if line.strip()][-count:]
