"""`memory`: speed given up for device memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.passes.base import Option


@dataclass
class Memory(Option):
    """Base of the options.

    vae_slicing: decode a batch picture by picture. vae_tiling: decode a large picture in overlapping tiles.
    """

    slot: ClassVar[str] = "memory"

    vae_slicing: bool = False
    vae_tiling: bool = False


@dataclass
class NoMemory(Memory):
    """Everything stays on the device."""


OPTIONS: dict[str, type[Option]] = {"none": NoMemory}
