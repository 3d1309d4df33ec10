"""Players that take turns, so that whatever the machine does meanwhile falls on all of them. Knows no process and no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastdiff.errors import RunError
from fastdiff.ratios import counterbalanced


class Player(Protocol):
    """Something whose calls are timed."""

    def call(self) -> float:
        """Seconds that one call took."""


@dataclass
class Round:
    """Every player once: in which order, and the seconds of each. `seconds` may be partial in the last one."""

    order: list[str]
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"order": self.order, "seconds": self.seconds}


def take_turns(
    players: Mapping[str, Player],
    pairs: int,
    seed: int,
    rounds: list[Round],
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Let the players take turns for `pairs` rounds: every second one runs the one before backwards (ABBA), and
    in six rounds of three players each takes every position twice.

    rounds: filled as the turns are taken, so that an interruption leaves what was measured.
    tell: told before each round how many are done, of how many.
    Raises RunError if a player tells no time: the clock jumped.
    """
    for number, order in enumerate(counterbalanced(list(players), pairs, seed)):
        tell(number, pairs)
        rounds.append(Round(order))
        for name in order:
            seconds = players[name].call()
            if not 0 < seconds < math.inf:
                raise RunError(
                    f"a call of {name} took {seconds} s by the clock, which can't be: the clock jumped\n"
                    "  instead: type the same line again"
                )
            rounds[-1].seconds[name] = seconds
    tell(pairs, pairs)
