"""What a run says: effects, times, quality, and the report that holds them.

`report.json` is strict JSON (no NaN, no Infinity). Fields are added, never renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON so that the file is whole or not there at all.

    Raises ValueError for NaN and Infinity, which JSON doesn't know.
    """
    write_text(path, json.dumps(data, indent=2, allow_nan=False, default=_plain) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside its place first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits; of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
