"""Players that take turns, so that whatever the machine does meanwhile falls on all of them. Knows no process and no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastdiff.errors import RunError
from fastdiff.latency import counterbalanced


class Player(Protocol):
    """Something whose calls are timed."""

    def call(self) -> float:
        """Seconds that one call took."""


@dataclass
class Round:
    """Every player once: in which order, and the seconds of each. `seconds` may be partial in the last one.

    life: which of the players' lives it fell into, from 1 on: rounds of one life were played by the same processes.
    """

    order: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    life: int = 1

    def to_dict(self) -> dict[str, Any]:
        return {"life": self.life, "order": self.order, "seconds": self.seconds}


def orders(names: Sequence[str], pairs: int, seed: int) -> list[list[str]]:
    """Who plays when in each round: every second one runs the one before backwards (ABBA), and in six rounds of three
    players each takes every position twice."""
    return list(counterbalanced(names, pairs, seed))


def take_turns(
    players: Mapping[str, Player],
    orders: Sequence[list[str]],
    rounds: list[Round],
    tell: Callable[[int], None] = lambda done: None,
    life: int = 1,
) -> None:
    """Let the players take turns, a round for each order.

    rounds: filled as the turns are taken, so that an interruption leaves what was measured; there may be some of earlier
        lives.
    tell: told before each round, and at last, how many there are.
    Raises RunError if a player tells no time: the clock jumped.
    """
    for order in orders:
        tell(len(rounds))
        rounds.append(Round(order, life=life))
        for name in order:
            seconds = players[name].call()
            if not 0 < seconds < math.inf:
                raise RunError(
                    f"a call of {name} took {seconds} s by the clock, which can't be: the clock jumped\n"
                    "  instead: type the same line again"
                )
            rounds[-1].seconds[name] = seconds
    tell(len(rounds))
