"""fastdiff's own cache folder: where it is, and whether what lies there can be trusted. Knows no torch."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.machine.files import read_json, write_json

VARIABLE = "FASTDIFF_CACHE_DIR"
"""Environment variable that moves the whole folder."""


def cache_folder() -> Path:
    """The folder, whether it exists or not: what the variable names, or the system's place for a user's caches."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(os.path.expanduser(named)).absolute().resolve()
    from platformdirs import user_cache_path

    return user_cache_path("fastdiff").resolve()


def rates_folder() -> Path:
    """Where this machine's measured rates are kept."""
    return cache_folder() / "machines"


def rates_unkeepable() -> str | None:
    """Why rates can't be kept in the folder that the user named, as far as looking tells; None if they can, or none was named."""
    if not os.environ.get(VARIABLE):
        return None
    folders = (cache_folder(), rates_folder())
    return next((f"{f} {reason}" for f in folders if (reason := unwritable(f))), None)


def make_private(folder: Path) -> None:
    """Make the folder, and those above it that aren't there, each for this user alone whatever the umask says.

    What is there already stays as it is; `distrust` judges it.
    """
    for level in (*reversed(folder.parents), folder):
        if not level.exists():
            level.mkdir(mode=0o700, exist_ok=True)


def doubtful(*folders: Path) -> tuple[Path, str] | None:
    """Make folders for this user alone; the first that somebody else may have put there all the same, with the reason.

    Raises OSError.
    """
    for folder in folders:
        make_private(folder)
        if doubt := distrust(folder):
            return folder, doubt
    return None


@dataclass(frozen=True)
class KeptFile:
    """JSON that one process keeps for later ones, an object. What somebody else may have written isn't taken.

    shared: the folder is another program's, which says who may write there, and its files are trusted as they are.
    """

    path: Path
    shared: bool = False

    def read(self) -> tuple[dict[str, Any] | None, str | None]:
        """What the file holds; or None and why it can't be taken, if it is there."""
        if not os.path.lexists(self.path):
            return None, None
        if not self.shared and (doubt := distrust(self.path)):
            return None, doubt
        try:
            found = read_json(self.path)
        except (OSError, ValueError, RecursionError):
            found = None
        return (found, None) if isinstance(found, dict) else (None, "can't be read")

    def keep(self, data: dict[str, Any]) -> str | None:
        """Write the file; why that couldn't be done, if so."""
        try:
            if not self.shared:
                make_private(self.path.parent)
            write_json(self.path, data)
        except OSError as error:
            return error.strerror or str(error)
        return None


def distrust(path: Path) -> str | None:
    """Why somebody else may have put a path there; None if only this user can have, or nothing is there."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"can't be looked at ({error.strerror})"
    if stat.S_ISLNK(state.st_mode):
        return "is a link"
    if hasattr(os, "getuid"):
        if state.st_uid != os.getuid():
            return "belongs to another user"
        if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "can be written by others"
    return None


def unwritable(folder: Path) -> str | None:
    """Why nothing can be kept in a folder, which need not exist yet; None if it can."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            return "is a file, not a folder" if there == folder else f"lies under the file {there}"
    except OSError as error:
        return f"can't be looked at ({error.strerror})"
    return None if os.access(there, os.W_OK | os.X_OK) else "can't be written"
