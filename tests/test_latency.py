"""Figures of times, worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.latency import Latency


@pytest.mark.parametrize(
    ("samples", "median", "p10", "p90"),
    [
        ((2.0,), 2.0, 2.0, 2.0),
        ((1.0, 3.0), 2.0, 1.2, 2.8),
        ((3.0, 1.0, 2.0), 2.0, 1.2, 2.8),
        ((5.0, 1.0, 4.0, 2.0, 3.0), 3.0, 1.4, 4.6),
        (tuple(float(n) for n in range(11)), 5.0, 1.0, 9.0),
        ((1.0, 1.0, 1.0, 100.0), 1.0, 1.0, 70.3),
    ],
)
def test_quantiles_are_interpolated_between_samples(
    samples: tuple[float, ...], median: float, p10: float, p90: float
) -> None:
    latency = Latency(samples)
    assert latency.median_s == median
    assert latency.quantile_s(0.1) == pytest.approx(p10)
    assert latency.quantile_s(0.9) == pytest.approx(p90)
    assert latency.quantile_s(0) == min(samples)
    assert latency.quantile_s(1) == max(samples)


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_quantiles_rise_and_stay_among_the_samples(
    samples: list[float], one: float, two: float
) -> None:
    latency = Latency(tuple(samples))
    low, high = latency.quantile_s(min(one, two)), latency.quantile_s(max(one, two))
    slack = 1e-9 * max(samples)
    assert min(samples) - slack <= low <= high + slack <= max(samples) + 2 * slack


def test_samples_are_kept_as_they_came() -> None:
    told = Latency((3.0, 1.0, 2.0)).to_dict()
    assert told["samples"] == [3.0, 1.0, 2.0]
    assert told["ci95"] is None
    assert set(told) == {"samples", "median", "p10", "p90", "p99", "ci95"}


def test_there_is_no_p99_below_a_hundred_samples() -> None:
    assert Latency((1.0,) * 99).to_dict()["p99"] is None
    assert Latency(tuple(float(n) for n in range(101))).to_dict()["p99"] == 99.0
    assert Latency((1.0,) * 100).to_dict()["p99"] == 1.0


def test_nothing_measured_is_null() -> None:
    assert Latency(()).to_dict() == {
        "samples": [],
        "median": None,
        "p10": None,
        "p90": None,
        "p99": None,
        "ci95": None,
    }


def test_an_interval_of_the_median_from_five_samples_on() -> None:
    samples = (1.0, 1.1, 1.2, 1.3, 5.0)
    assert Latency(samples[:4]).ci95_s() is None
    interval = Latency(samples).ci95_s()
    assert interval is not None
    low, high = interval
    assert low == 1.0
    assert 1.2 < high <= 5.0
    assert Latency(samples).ci95_s() == interval  # a fixed seed
    assert Latency((2.0,) * 6).ci95_s() == (2.0, 2.0)


def by_call(calls: int, steps: int, apart: float) -> Latency:
    """Steps that differ much between calls and hardly within one; `apart` seconds from call to call."""
    return Latency.by_call(
        [[1.0 + apart * call + 0.001 * step for step in range(steps)] for call in range(calls)]
    )


def test_times_within_calls_are_told_flat_with_the_calls_that_they_are_of() -> None:
    told = Latency.by_call([[0.1, 0.2], [0.3], []]).to_dict()
    assert told["samples"] == [0.1, 0.2, 0.3]
    assert told["calls"] == [2, 1, 0]
    assert told["median"] == 0.2
    nothing = Latency.by_call([]).to_dict()
    assert nothing == {**Latency(()).to_dict(), "calls": []}


def test_the_interval_of_times_within_calls_is_that_of_whole_calls() -> None:
    grouped = by_call(5, 24, apart=0.1)
    apart = Latency(grouped.samples_s).ci95_s()
    together = grouped.ci95_s()
    assert apart is not None
    assert together is not None
    assert together[0] < apart[0] < grouped.median_s < apart[1] < together[1]
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])
    assert grouped.ci95_s() == together  # a fixed seed


def test_calls_of_one_time_each_are_as_good_as_no_calls() -> None:
    samples = (1.0, 1.1, 1.3, 1.2, 5.0, 1.15)
    assert Latency.by_call([s] for s in samples).ci95_s() == Latency(samples).ci95_s()


@given(st.lists(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4), min_size=5, max_size=9))
def test_an_interval_of_calls_lies_among_their_times(calls: list[list[float]]) -> None:
    latency = Latency.by_call(calls)
    interval = latency.ci95_s()
    assert interval is not None
    low, high = interval
    slack = 1e-9 * max(latency.samples_s)
    assert min(latency.samples_s) - slack <= low <= high + slack
    assert high <= max(latency.samples_s) + slack


def test_many_times_of_few_calls_have_no_interval_and_no_p99() -> None:
    assert by_call(4, 50, apart=0.1).to_dict()["ci95"] is None
    assert Latency.by_call([[1.0] * 50, [], [], [], []]).to_dict()["ci95"] is None
    assert by_call(19, 50, apart=0.0).to_dict()["p99"] is None
    assert by_call(20, 4, apart=0.0).to_dict()["p99"] is None
    assert by_call(20, 5, apart=0.0).to_dict()["p99"] == pytest.approx(1.004)
