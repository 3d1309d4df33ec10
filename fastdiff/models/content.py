"""Weights by what is in them: a file of gigabytes is read once, and known again by its size and time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastdiff.machine.cache_folder import KeptFile, cache_folder
from fastdiff.machine.files import sha256_of

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
    """The file's sha256, in hexadecimal digits; read only if its path, size or time is new.

    The newest are kept; where nothing can be, the next one reads again.
    """
    state, hashes = file.stat(), KeptFile(cache_folder() / "hashes.json")
    key = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}"
    known = hashes.read()[0] or {}
    if key not in known:
        known[key] = sha256_of(file)
        hashes.keep(dict(list(known.items())[-_MOST_KNOWN:]))
    return str(known[key])
