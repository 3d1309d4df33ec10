"""How many players fit on a device beside one another. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from fastdiff.planning.plan import Plan

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a weight, by the name that a precision gives its dtype."""

SPARE = 0.9
"""The part of the memory that players may take together; the rest is for whoever else is on the machine."""


class Seats(Enum):
    """How many players are alive at a time."""

    TOGETHER = "all live"
    BY_TWOS = "two live at a time"
    IN_TURN = "one after the other"

    def fewer(self) -> Seats | None:
        """The next way that needs less memory; None if there is none."""
        ways = list(Seats)
        at = ways.index(self) + 1
        return ways[at] if at < len(ways) else None


def estimated_bytes(plan: Plan) -> int | None:
    """Memory that a run will need: its weights in its precision, and a fifth more. None if nobody knows its weights."""
    facts = plan.setting.facts
    parameters = facts.parameters if facts else None
    width = BYTES.get(getattr(plan.setting.run.precision, "dtype", ""))
    return None if parameters is None or width is None else round(parameters * width * 1.2)


def room_bytes(plan: Plan) -> int | None:
    """Memory of the device that runs may take: all of a GPU's, what is available of the host's. None if unknown."""
    environment = plan.setting.environment
    room = environment.room_bytes(plan.device)
    return None if room is None else round(room * SPARE)


def from_peak(peak: int, estimate: int | None, estimate_of_peak: int | None) -> int:
    """What a run will need, judged by another one's real peak: scaled as their estimates are, at least that estimate."""
    if not estimate or not estimate_of_peak:
        return peak
    return max(estimate, round(peak * estimate / estimate_of_peak))


def seats(a: int | None, b: int | None, room: int | None) -> Seats:
    """How the players can be seated whose runs need `a` and `b` bytes; what isn't known is tried."""
    if _fit((a, b, a), room):
        return Seats.TOGETHER
    return Seats.BY_TWOS if _fit((a, b), room) and _fit((a, a), room) else Seats.IN_TURN


def _fit(needed: Sequence[int | None], room: int | None) -> bool:
    return room is None or sum(n or 0 for n in needed) <= room
