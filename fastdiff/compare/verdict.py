"""What the rounds say: the ratio, the noise floor, and whether one side is faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastdiff.compare.turns import Round
from fastdiff.ratios import Ratio, paired_ratio

A, B, AGAIN = "A", "B", "A again"
"""The two sides, and the first one once more in a process of its own."""

FEWEST_PAIRS = 6
"""Below six pairs no interval of a median has 95 %: even from the smallest pair to the largest it has 94 % or less."""


@dataclass(frozen=True)
class Verdict:
    """ratio: seconds of A / seconds of B, how many times as fast B is as A. noise: the same for A against itself.

    Both are None below FEWEST_PAIRS. floor: how far a ratio must be from 1, as the logarithm, to say anything here.
    resolution: with no difference, the part below which one would not have been seen: 0.32 for an interval up to 1.32;
    None otherwise.
    word: `faster` or `slower` (of B), `no difference`, or `unclear`: the machine is too noisy to tell; None without a ratio.
    """

    ratio: Ratio | None
    noise: Ratio | None
    floor: float | None
    word: str | None
    resolution: float | None = None


def judge(rounds: Sequence[Round], noise_rounds: Sequence[Round]) -> Verdict:
    """The verdict over whole rounds.

    rounds: those with A and B. noise_rounds: those with A and A again; the same ones where all three took turns.
    """
    ratio, noise = speed(rounds, A, B), speed(noise_rounds, A, AGAIN)
    if ratio is None or noise is None:
        return Verdict(ratio, noise, None, None)
    floor = noise_floor(noise)
    if ratio.holds_one:
        return Verdict(ratio, noise, floor, "no difference", max(ratio.high, 1 / ratio.low) - 1)
    if abs(math.log(ratio.value)) <= floor:
        return Verdict(ratio, noise, floor, "unclear")
    return Verdict(ratio, noise, floor, "faster" if ratio.value > 1 else "slower")


def speed(rounds: Sequence[Round], base: str, other: str) -> Ratio | None:
    """How many times as fast `other` is as `base`, by the pairs of a round; None below FEWEST_PAIRS."""
    whole = [r.seconds for r in rounds if base in r.seconds and other in r.seconds]
    if len(whole) < FEWEST_PAIRS:
        return None
    return paired_ratio([s[base] for s in whole], [s[other] for s in whole])


def noise_floor(noise: Ratio) -> float:
    """How far from 1, as the logarithm, chance alone brings a ratio.

    Half the width of the interval of A against itself; where that doesn't even hold 1, its farther end.
    """
    low, high = math.log(noise.low), math.log(noise.high)
    return (high - low) / 2 if noise.holds_one else max(abs(low), abs(high))
