"""Paired ratios with intervals, and orders in which drift cancels."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy
import pytest

from fastdiff.latency import Ratio, clustered_ratio, counterbalanced, paired_ratio


def test_a_constant_ratio_has_an_interval_of_no_width() -> None:
    ratio = paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low == pytest.approx(2.0)
    assert ratio.high == pytest.approx(2.0)


def test_the_ratio_is_the_median_of_the_pairs_and_ignores_one_disturbed_process() -> None:
    ratio = paired_ratio([1.0, 1.1, 1.2, 1.3, 50.0], [1.0] * 5)
    assert ratio.value == pytest.approx(1.2)
    assert ratio.low == pytest.approx(1.0)
    assert ratio.high == pytest.approx(50.0)


def test_drift_that_both_of_a_pair_share_cancels() -> None:
    drift = numpy.linspace(1.0, 3.0, 10)
    ratio = paired_ratio(list(drift * 1.05), list(drift))
    assert ratio.low == pytest.approx(1.05)
    assert ratio.high == pytest.approx(1.05)


def test_noise_alone_gives_an_interval_that_holds_one() -> None:
    generator = numpy.random.default_rng(3)
    first, second = generator.lognormal(0.0, 0.05, (2, 20))
    ratio = paired_ratio(list(first), list(second))
    assert ratio.low < 1.0 < ratio.high
    assert ratio.low > 0.9
    assert ratio.high < 1.1


def test_a_clear_slowdown_lies_wholly_above_two_percent() -> None:
    generator = numpy.random.default_rng(4)
    quick = generator.lognormal(0.0, 0.01, 10)
    slow = 1.10 * generator.lognormal(0.0, 0.01, 10)
    ratio = paired_ratio(list(slow), list(quick))
    assert ratio.low > 1.02
    assert ratio.low <= ratio.value <= ratio.high


def test_exchanging_both_sides_inverts_the_ratio_and_its_interval() -> None:
    first, second = [1.0, 1.3, 0.9, 1.2], [1.1, 1.0, 1.0, 0.8]
    ratio = paired_ratio(first, second)
    inverse = paired_ratio(second, first)
    assert inverse.value == pytest.approx(1 / ratio.value)
    assert inverse.low == pytest.approx(1 / ratio.high)
    assert inverse.high == pytest.approx(1 / ratio.low)


def test_the_interval_is_the_same_every_time() -> None:
    first, second = [1.0, 1.3, 0.9, 1.2], [1.1, 1.0, 1.0, 0.8]
    assert paired_ratio(first, second) == paired_ratio(first, second)


def test_pairs_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 numerators for 1 denominators"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="two pairs or more, not 1"):
        paired_ratio([1.0], [1.0])


def test_the_ratio_of_clusters_is_students_over_their_medians() -> None:
    """Logarithms 0.00, 0.02, 0.04 have the mean 0.02 and the deviation 0.02; t for two degrees is 4.303."""
    numerators = [[1.0, 1.0, 9.0], [math.exp(0.02)] * 3, [math.exp(0.04)] * 3]
    ratio = clustered_ratio(numerators, [[1.0] * 3] * 3)
    half = 4.303 * 0.02 / math.sqrt(3)
    assert math.log(ratio.value) == pytest.approx(0.02)
    assert math.log(ratio.low) == pytest.approx(0.02 - half, abs=1e-5)
    assert math.log(ratio.high) == pytest.approx(0.02 + half, abs=1e-5)


def test_exchanging_both_sides_inverts_the_ratio_of_clusters() -> None:
    first, second = [[1.0, 1.3], [0.9, 1.2, 1.0]], [[1.1, 1.0], [1.0, 0.8, 1.0]]
    ratio, inverse = clustered_ratio(first, second), clustered_ratio(second, first)
    assert inverse.value == pytest.approx(1 / ratio.value)
    assert inverse.low == pytest.approx(1 / ratio.high)


@pytest.mark.parametrize("lives", [3, 5, 10])
def test_the_interval_of_clusters_misses_the_truth_in_one_of_twenty(lives: int) -> None:
    """Clusters of 4 pairs that share 2 % of luck beside 3 % of noise: of 1000 intervals 50 +- 21 don't hold 1."""
    generator = numpy.random.default_rng(0)

    def times() -> list[list[float]]:
        luck = generator.lognormal(0, 0.02, (lives, 1))
        return (luck * generator.lognormal(0, 0.03, (lives, 4))).tolist()  # type: ignore[no-any-return]

    missed = sum(not clustered_ratio(times(), times()).holds_one for _ in range(1000))
    assert 29 <= missed <= 71


def test_clusters_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="two clusters or more, not 1"):
        clustered_ratio([[1.0, 2.0]], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="zip"):
        clustered_ratio([[1.0], [2.0, 3.0]], [[1.0], [2.0]])


def test_every_two_rounds_are_an_order_and_its_reverse() -> None:
    rounds = list(counterbalanced(["a", "b", "c"], 20, seed=0))
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    for there, back in zip(rounds[::2], rounds[1::2], strict=True):
        assert back == there[::-1]
    assert len({tuple(order) for order in rounds}) > 2, "the orders are random"


@pytest.mark.parametrize("names", ["ab", "abc", "abcd", "abcde"])
def test_in_a_block_every_name_takes_every_position_equally_often(names: str) -> None:
    block = 2 * len(names) if len(names) > 2 else 2
    rounds = list(counterbalanced(names, 3 * block, seed=0))
    for first in range(0, len(rounds), block):
        orders = rounds[first : first + block]
        for position in range(len(names)):
            assert Counter(order[position] for order in orders) == dict.fromkeys(
                names, block // len(names)
            )
        for one, other in itertools.combinations(names, 2):
            assert sum(o.index(one) < o.index(other) for o in orders) == block // 2


@pytest.mark.parametrize("seed", range(5))
def test_20_rounds_of_three_names_are_two_at_most_from_balance(seed: int) -> None:
    rounds = list(counterbalanced("abc", 20, seed))
    for position in range(3):
        counts = Counter(order[position] for order in rounds).values()
        assert max(counts) - min(counts) <= 2


def test_an_interval_that_ends_at_one_holds_it() -> None:
    assert Ratio(1.02, 1.0, 1.04).holds_one
    assert Ratio(0.98, 0.96, 1.0).holds_one
    assert not Ratio(1.02, 1.001, 1.04).holds_one


def test_a_ratio_is_shown_and_written_with_its_interval() -> None:
    ratio = Ratio(1.0514, 1.0, 1.1)
    assert str(ratio) == "1.051 [1.000, 1.100]"
    assert ratio.to_dict() == {"ratio": 1.0514, "ci95_low": 1.0, "ci95_high": 1.1}
