"""Turns and verdicts with an injected clock: a slowdown is found, a no-op isn't, and drift falls on all alike."""

from __future__ import annotations

import math
from collections import Counter

import numpy
import pytest

from fastdiff.compare.turns import Round, take_turns
from fastdiff.compare.verdict import AGAIN, FEWEST_PAIRS, A, B, judge, noise_floor, speed
from fastdiff.errors import RunError
from fastdiff.ratios import Ratio


class Clock:
    """Time that passes only while a player calls."""

    now_s = 0.0


class Noisy:
    """A player on a machine that drifts by a tenth, gets slower all the while, and stalls in 3 % of the calls.

    seconds: of a quiet call. noise: of a call, as the deviation of its logarithm.
    """

    def __init__(
        self, clock: Clock, seconds: float, noise: float, random: numpy.random.Generator
    ) -> None:
        self.clock, self.seconds, self.noise, self.random = clock, seconds, noise, random

    def call(self) -> float:
        drift = 1 + 0.1 * math.sin(self.clock.now_s / 40) + 0.0005 * self.clock.now_s
        stall = 1.5 if self.random.random() < 0.03 else 1.0
        took = self.seconds * drift * stall * float(self.random.lognormal(0, self.noise))
        self.clock.now_s += took
        return took


def verdicts(slowdown: float, noise: float, seeds: int = 100, pairs: int = 20) -> Counter[str]:
    """How often each verdict is reached over so many comparisons."""
    words: Counter[str] = Counter()
    for seed in range(seeds):
        clock, random = Clock(), numpy.random.default_rng(seed)
        players = {name: Noisy(clock, 1.0, noise, random) for name in (A, B, AGAIN)}
        players[B].seconds = slowdown
        rounds: list[Round] = []
        take_turns(players, pairs, seed, rounds)
        words[judge(rounds, rounds).word or ""] += 1
    return words


def test_a_slowdown_of_five_percent_is_found_in_20_pairs() -> None:
    """Measured over 200 seeds: in 90 % of comparisons at 3 % noise, and never as a gain."""
    found = verdicts(1.05, noise=0.03)
    assert found["slower"] >= 85
    assert found["faster"] == 0


def test_a_no_op_is_no_difference() -> None:
    """Measured over 200 seeds: 3 % of comparisons claim a difference, and 6 % say that they can't tell."""
    found = verdicts(1.0, noise=0.03)
    assert found["no difference"] >= 88
    assert found["faster"] + found["slower"] <= 6


def test_more_noise_hides_a_small_slowdown_rather_than_inventing_a_gain() -> None:
    found = verdicts(1.05, noise=0.05, seeds=40)
    assert 10 <= found["slower"] <= 35
    assert found["faster"] == 0


def test_drift_alone_moves_no_ratio() -> None:
    clock, random = Clock(), numpy.random.default_rng(0)
    players = {name: Noisy(clock, 1.0, 0.0, random) for name in (A, B, AGAIN)}
    rounds: list[Round] = []
    take_turns(players, 20, 0, rounds)
    assert judge(rounds, rounds).word == "no difference"


class Scripted:
    """Tells these seconds, one after another, and notes whose turn it was."""

    def __init__(self, name: str, seconds: list[float], turns: list[str]) -> None:
        self.name, self.seconds, self.turns = name, seconds, turns

    def call(self) -> float:
        self.turns.append(self.name)
        return self.seconds.pop(0)


def test_every_round_is_a_random_order_and_the_next_one_the_same_backwards() -> None:
    turns: list[str] = []
    players = {name: Scripted(name, [1.0] * 20, turns) for name in (A, B, AGAIN)}
    rounds: list[Round] = []
    told: list[tuple[int, int]] = []
    take_turns(players, 20, 3, rounds, lambda done, of: told.append((done, of)))
    assert [name for r in rounds for name in r.order] == turns
    assert all(
        there.order == back.order[::-1]
        for there, back in zip(rounds[::2], rounds[1::2], strict=True)
    )
    assert len({tuple(r.order) for r in rounds}) > 2
    assert told == [(done, 20) for done in range(21)]


def test_the_seed_decides_the_order() -> None:
    def orders(seed: int) -> list[list[str]]:
        players = {name: Scripted(name, [1.0] * 20, []) for name in (A, B, AGAIN)}
        rounds: list[Round] = []
        take_turns(players, 20, seed, rounds)
        return [r.order for r in rounds]

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)


def test_what_was_measured_before_an_interruption_stays() -> None:
    class Interrupting(Scripted):
        def call(self) -> float:
            if len(self.seconds) == 1:
                raise KeyboardInterrupt
            return super().call()

    rounds: list[Round] = []
    players = {A: Scripted(A, [1.0] * 3, []), B: Interrupting(B, [2.0] * 3, [])}
    with pytest.raises(KeyboardInterrupt):
        take_turns(players, 3, 0, rounds)
    assert [r.seconds.get(B) for r in rounds] == [2.0, 2.0, None]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_time_that_can_not_be_ends_the_comparison(seconds: float) -> None:
    players = {A: Scripted(A, [seconds], [])}
    with pytest.raises(RunError) as raised:
        take_turns(players, 1, 0, [])
    assert str(raised.value) == (
        f"a call of A took {seconds} s by the clock, which can't be: the clock jumped\n"
        "  instead: type the same line again"
    )


# Verdicts ------------------------------------------------------------------------------------------


def rounds_of(**seconds: list[float]) -> list[Round]:
    columns = {"A": A, "B": B, "again": AGAIN}
    rows = zip(*seconds.values(), strict=True)
    names = [columns[name] for name in seconds]
    return [Round(names, dict(zip(names, row, strict=True))) for row in rows]


QUIET = [1.0, 1.01, 0.99, 1.005, 0.995, 1.0]


def test_the_ratio_is_how_many_times_as_fast_b_is_as_a() -> None:
    rounds = rounds_of(A=[2.0] * 6, B=[1.0] * 6, again=[2 * s for s in QUIET])
    found = judge(rounds, rounds)
    assert found.ratio == Ratio(2.0, 2.0, 2.0)
    assert found.word == "faster"


def test_the_noise_floor_may_come_from_rounds_of_its_own() -> None:
    found = judge(rounds_of(A=[1.0] * 6, B=[1.1] * 6), rounds_of(A=[1.0] * 6, again=QUIET))
    assert found.noise is not None
    assert found.noise.holds_one
    assert found.word == "slower"


def test_no_difference_says_what_would_not_have_been_seen() -> None:
    rounds = rounds_of(A=[1.0, 1.1, 1.0, 0.9, 1.0, 1.0], B=[1.0] * 6, again=QUIET)
    found = judge(rounds, rounds)
    assert found.ratio is not None
    assert found.word == "no difference"
    assert found.resolution == max(found.ratio.high, 1 / found.ratio.low) - 1
    assert found.resolution > 0.01


def test_a_difference_no_larger_than_a_from_itself_is_unclear() -> None:
    rounds = rounds_of(A=[1.0] * 6, B=[1.05] * 6, again=[1.06] * 6)
    assert judge(rounds, rounds).word == "unclear"


def test_a_large_difference_stands_though_a_differs_from_itself() -> None:
    rounds = rounds_of(A=[1.0] * 6, B=[1.5] * 6, again=[1.02] * 6)
    assert judge(rounds, rounds).word == "slower"


def test_below_six_pairs_there_is_no_interval_and_no_verdict() -> None:
    rounds = rounds_of(A=[1.0] * 5, B=[2.0] * 5, again=[1.0] * 5)
    found = judge(rounds, rounds)
    assert (found.ratio, found.noise, found.floor, found.word) == (None, None, None, None)
    assert FEWEST_PAIRS == 6


def test_a_round_that_is_not_whole_does_not_count() -> None:
    rounds = rounds_of(A=[1.0] * 6, B=[2.0] * 6)
    rounds.append(Round([A, B], {A: 1.0}))
    assert speed(rounds, A, B) == Ratio(0.5, 0.5, 0.5)


def test_the_noise_floor_is_half_the_interval_or_its_far_end_where_it_does_not_hold_one() -> None:
    assert noise_floor(Ratio(1.0, 1 / 1.02, 1.02)) == pytest.approx(math.log(1.02))
    assert noise_floor(Ratio(1.03, 1.01, 1.05)) == pytest.approx(math.log(1.05))
    assert noise_floor(Ratio(0.97, 0.95, 0.99)) == pytest.approx(-math.log(0.95))
