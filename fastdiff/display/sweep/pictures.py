"""A sweep's pictures inside its page: each once, large ones smaller."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.machine.files import sha256_of

LONGEST_SIDE = 512
MOST_BYTES = 32_000_000
"""Of all embedded files together; what comes after it is linked, so that the page still opens at once."""


@dataclass
class Pictures:
    """The pictures of all rows.

    embedded: by sha256: {"uri", "width", "height" of the file in pixels, "scaled": whether the page shows a smaller copy}.
    keys: by path: its sha256. missing: by path: why it isn't on the page.
    """

    embedded: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def of(self, paths: list[str]) -> list[dict[str, Any]]:
        """For each path {"path", "key" or None, "reason" or None}."""
        return [
            {"path": path, "key": self.keys.get(path), "reason": self.missing.get(path)}
            for path in paths
        ]


def embed(folder: Path, rows: list[Mapping[str, Any]], most_bytes: int = MOST_BYTES) -> Pictures:
    """Read and embed the pictures of all rows; every row's first one comes before any row's second."""
    found = Pictures()
    room = most_bytes
    for path in _in_turns(rows):
        if path in found.keys or path in found.missing:
            continue
        try:
            key = sha256_of(folder / path)
            if key not in found.embedded:
                content, mime, size = _content(folder / path)
                if len(content) > room:
                    found.missing[path] = "not in this page, which would grow too large"
                    continue
                room -= len(content)
                found.embedded[key] = {
                    "uri": f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}",
                    "width": size[0],
                    "height": size[1],
                    "scaled": max(size) > LONGEST_SIDE,
                }
            found.keys[path] = key
        except OSError as error:
            found.missing[path] = f"can't be read ({error.strerror or error})"
    return found


def _in_turns(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    most = max((len(row["images"]) for row in rows), default=0)
    for index in range(most):
        for row in rows:
            for paths in (row["images"], row["reference"]):
                yield from paths[index : index + 1]


def _content(path: Path) -> tuple[bytes, str, tuple[int, int]]:
    """A picture's bytes for the page, their type, and the file's own size in pixels. Raises OSError."""
    from PIL import Image

    with Image.open(path) as picture:
        size = picture.size
        mime = Image.MIME.get(picture.format or "")
        if max(size) <= LONGEST_SIDE and mime in ("image/png", "image/jpeg", "image/webp"):
            return path.read_bytes(), mime, size
        smaller = picture.convert("RGB")
    smaller.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    written = io.BytesIO()
    smaller.save(written, "WEBP", quality=90)
    return written.getvalue(), "image/webp", size
