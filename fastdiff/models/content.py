"""Weights by what is in them: a file of gigabytes is read once, and known again by its size and time."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fastdiff.cache_folder import cache_folder, distrust, make_private
from fastdiff.result import read_json, sha256_of, write_json

_MOST_KNOWN = 5000


def content_hash(file: Path) -> str:
    """The file's sha256, in hexadecimal digits; read only if its path, size or time is new."""
    state = file.stat()
    key = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}"
    known = _known()
    if key not in known:
        known[key] = sha256_of(file)
        _keep(known)
    return known[key]


def _place() -> Path:
    return cache_folder() / "hashes.json"


def _known() -> dict[str, str]:
    place = _place()
    if distrust(place) is None and place.is_file():
        with contextlib.suppress(OSError, ValueError):
            found = read_json(place)
            return dict(found) if isinstance(found, dict) else {}
    return {}


def _keep(known: dict[str, str]) -> None:
    """Keep the newest; where nothing can be kept, the next one reads again."""
    with contextlib.suppress(OSError):
        make_private(_place().parent)
        write_json(_place(), dict(list(known.items())[-_MOST_KNOWN:]))
