"""Weights by what is in them: a file of gigabytes is read once, and known again by its size and time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastdiff.machine.cache_folder import cache_folder, distrust, make_private
from fastdiff.machine.files import read_json, sha256_of, write_json

if TYPE_CHECKING:
    import torch

_MOST_KNOWN = 5000


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a quantized one is made of; an ordinary one itself.

    Only they tell its bytes: torchao 0.18's subclasses say of themselves what the weight had before it was quantized.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(tensor, name))


def weight_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a weight as it is kept, quantized or not."""
    return sum(plain.nbytes for plain in plain_tensors(tensor))


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
