"""`lora`: an adapter that is fused into the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.passes.base import Option


@dataclass
class NoLora(Option):
    """No adapter."""

    slot: ClassVar[str] = "lora"


OPTIONS: dict[str, type[Option]] = {"none": NoLora}
