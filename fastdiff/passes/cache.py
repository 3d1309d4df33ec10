"""`cache`: features of one step used again in the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.passes.base import Option


@dataclass
class NoCache(Option):
    """Every step computes everything."""

    slot: ClassVar[str] = "cache"


OPTIONS: dict[str, type[Option]] = {"none": NoCache}
