"""`scheduler`: the solver of the reverse diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.passes.base import Option


@dataclass
class OwnScheduler(Option):
    """The model's own."""

    slot: ClassVar[str] = "scheduler"


OPTIONS: dict[str, type[Option]] = {"default": OwnScheduler}
