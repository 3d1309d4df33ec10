"""`vae`: what turns latents into pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.passes.base import Option


@dataclass
class OwnVae(Option):
    """The model's own."""

    slot: ClassVar[str] = "vae"


OPTIONS: dict[str, type[Option]] = {"default": OwnVae}
