"""How many players fit on a device beside one another. Pure."""

from __future__ import annotations

from enum import Enum

from fastdiff.planning.plan import Plan

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a weight, by the name that a precision gives its dtype."""

SPARE = 0.9
"""The part of the memory that players may take together; the rest is for whoever else is on the machine."""


class Seats(Enum):
    """How many players are alive at a time."""

    TOGETHER = "all live"
    IN_TURN = "one after the other"


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
    """How A, B and A again are seated whose runs need `a` and `b` bytes; what isn't known is tried."""
    fits = room is None or 2 * (a or 0) + (b or 0) <= room
    return Seats.TOGETHER if fits else Seats.IN_TURN
