"""What the rounds say: the ratio, the noise floor, and whether one side is faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastdiff.latency import Ratio, cluster_ratio, clustered_ratio, paired_ratio
from fastdiff.runs.compare.turns import Round

A, B, AGAIN = "A", "B", "A again"
"""The two sides, and the first one once more in a process of its own."""

FEWEST_PAIRS = 6
"""Below six pairs no interval of a median has 95 %: even from the smallest pair to the largest it has 94 % or less."""


@dataclass(frozen=True)
class Verdict:
    """ratio: seconds of A / seconds of B, how many times as fast B is as A. noise: the same for A against itself.

    Both are None below FEWEST_PAIRS, and are of the processes at hand after a single life. floor: how far a ratio must be from 1, as the logarithm, to say anything here.
    resolution: with no difference, the part below which one would not have been seen: 0.32 for an interval up to 1.32;
    None otherwise.
    word: `faster` or `slower` (of B), `no difference`, or `unclear`: the machine is too noisy to tell; None without a ratio.
    """

    ratio: Ratio | None
    noise: Ratio | None
    floor: float | None
    word: str | None
    resolution: float | None = None


def judge(rounds: Sequence[Round]) -> Verdict:
    """The verdict over whole rounds."""
    ratio, noise = speed(rounds, A, B), speed(rounds, A, AGAIN)
    if ratio is None or noise is None:
        return Verdict(ratio, noise, None, None)
    floor = noise_floor(noise, len(by_life(rounds, A, B)))
    if ratio.holds_one:
        return Verdict(ratio, noise, floor, "no difference", max(ratio.high, 1 / ratio.low) - 1)
    if abs(math.log(ratio.value)) <= floor:
        return Verdict(ratio, noise, floor, "unclear")
    return Verdict(ratio, noise, floor, "faster" if ratio.value > 1 else "slower")


def speed(rounds: Sequence[Round], base: str, other: str) -> Ratio | None:
    """How many times as fast `other` is as `base`, by the pairs of a round; None below FEWEST_PAIRS.

    With its interval over the lives and the calls in them; after a single life over the calls alone.
    """
    lives = by_life(rounds, base, other)
    if sum(len(pairs) for pairs in lives.values()) < FEWEST_PAIRS:
        return None
    bases, others = (
        [[pair[side] for pair in pairs] for pairs in lives.values()] for side in (0, 1)
    )
    return clustered_ratio(bases, others) if len(lives) > 1 else paired_ratio(bases[0], others[0])


def speed_by_life(rounds: Sequence[Round], base: str, other: str) -> dict[int, float]:
    """The same for each life by itself."""
    lives = by_life(rounds, base, other)
    return {life: cluster_ratio(*zip(*pairs, strict=True)) for life, pairs in lives.items()}


def by_life(rounds: Sequence[Round], base: str, other: str) -> dict[int, list[tuple[float, float]]]:
    """The pairs of seconds of both, by the life that they fell into."""
    found: dict[int, list[tuple[float, float]]] = {}
    for r in rounds:
        if base in r.seconds and other in r.seconds:
            found.setdefault(r.life, []).append((r.seconds[base], r.seconds[other]))
    return found


def noise_floor(noise: Ratio, lives: int) -> float:
    """How far from 1, as the logarithm, a ratio must be beside its own interval.

    The farther end of A against itself where that doesn't even hold 1. Else nothing, for the interval over several lives
    knows all chance by itself; after a single life, which doesn't know the processes' luck, half that interval's width.
    """
    low, high = math.log(noise.low), math.log(noise.high)
    if not noise.holds_one:
        return max(abs(low), abs(high))
    return 0.0 if lives > 1 else (high - low) / 2
