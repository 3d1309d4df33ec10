"""Orders that cancel drift, and ratios of paired times with their intervals. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from fastdiff.errors import Status


@dataclass(frozen=True)
class Ratio:
    """How many times longer one thing takes than another, with the 95 % interval of that figure."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float]:
        return {"ratio": self.value, "ci95_low": self.low, "ci95_high": self.high}

    @property
    def holds_one(self) -> bool:
        """Whether the interval holds 1: no difference is shown."""
        return self.low <= 1 <= self.high


def paired_ratio(
    numerators: Sequence[float], denominators: Sequence[float], resamples: int = 10_000
) -> Ratio:
    """Median of the pairs' ratios, with its percentile bootstrap interval over the pairs (seed 0).

    numerators, denominators: times > 0; the i-th of both were taken side by side.
    Raises ValueError if there are fewer than two pairs, or not as many of one as of the other.

    Ratios are taken as logarithms, so that exchanging both sides gives exactly the inverse.
    """
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators for {len(denominators)} denominators")
    if len(numerators) < 2:
        raise ValueError(f"an interval needs two pairs or more, not {len(numerators)}")
    import numpy

    logs = numpy.log(numpy.asarray(numerators, float)) - numpy.log(
        numpy.asarray(denominators, float)
    )
    draws = numpy.random.default_rng(0).choice(logs, (resamples, len(logs)))
    low, high = numpy.quantile(numpy.median(draws, axis=1), [0.025, 0.975])
    return Ratio(math.exp(float(numpy.median(logs))), math.exp(float(low)), math.exp(float(high)))


def clustered_ratio(
    numerators: Sequence[Sequence[float]], denominators: Sequence[Sequence[float]]
) -> Ratio:
    """Mean of the clusters' ratios with Student's interval over the clusters; a cluster's is the median of its pairs'.

    numerators, denominators: times > 0, by cluster; what a cluster's pairs share falls on all of them: the luck of the
    processes that they come from, say. Then pairs alone know nothing of that luck, and the clusters' spread holds both.
    Raises ValueError if there are fewer than two clusters, or the pairs are no pairs.

    Held against 1000 simulated comparisons each (5 clusters of 4 pairs, 1 or 3 % noise of a call, luck of 0 to 2 %):
    where there is no difference this interval misses 1 in 4 to 6 % of them, a bootstrap over the clusters in 15 to 18 %,
    one over all pairs in up to 79 %.
    """
    if len(numerators) < 2:
        raise ValueError(f"an interval needs two clusters or more, not {len(numerators)}")
    import numpy
    from scipy.special import stdtrit

    found = list(starmap(cluster_ratio, zip(numerators, denominators, strict=True)))
    logs = numpy.log(found)
    middle = float(numpy.mean(logs))
    half = float(stdtrit(len(logs) - 1, 0.975) * numpy.std(logs, ddof=1) / math.sqrt(len(logs)))
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def cluster_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the pairs' ratios, as logarithms."""
    logs = [math.log(n) - math.log(d) for n, d in zip(numerators, denominators, strict=True)]
    return math.exp(statistics.median(logs))


def counterbalanced(names: Sequence[str], rounds: int, seed: int) -> Iterator[list[str]]:
    """An order of the names for every round: blocks of random orders, each followed by its reverse (ABBA).

    A block rotates one random order through all names and lets the reverse follow each rotation: 2n rounds for n > 2
    names, two rounds for two. In a whole block every name takes every position equally often, and of any two names each
    comes before the other equally often, so that what drifts evenly over two rounds falls on all names alike.
    Where the rounds end within a block, a name has taken a position at most twice oftener than another has; after an odd
    number of rounds, one of two names has come before the other once oftener.
    """
    generator = random.Random(seed)
    order = list(names)
    turns = len(order) if len(order) > 2 else 1  # two names rotated are two names reversed
    for index in range(rounds):
        within = index % (2 * turns)
        if within == 0:
            generator.shuffle(order)
        turn = within // 2
        rotated = order[turn:] + order[:turn]
        yield rotated if within % 2 == 0 else rotated[::-1]


@dataclass(frozen=True)
class Latency:
    """Times of the same thing again and again, in seconds. Samples are kept; statistics are derived.

    calls: how many of the samples come from each call of the pipeline, in their order; None where each is a call of its own.
    """

    samples_s: tuple[float, ...]
    calls: tuple[int, ...] | None = None

    @classmethod
    def by_call(cls, calls_s: Iterable[Sequence[float]]) -> Latency:
        """Times within calls. Those of one call have its luck in common, so they are no samples apart from one another."""
        known = [tuple(call) for call in calls_s]
        return cls(tuple(s for call in known for s in call), tuple(map(len, known)))

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples_s)

    def quantile_s(self, q: float) -> float:
        """The q-quantile (0 <= q <= 1), interpolated between samples."""
        ordered = sorted(self.samples_s)
        at = q * (len(ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])

    def ci95_s(self) -> tuple[float, float] | None:
        """Bootstrap interval of the median (10,000 resamples of whole calls, seed 0); None below 5 calls."""
        calls = self._calls()
        if len(calls) < _CALLS_FOR_CI95:
            return None
        import numpy

        samples = numpy.asarray(self.samples_s)
        order = numpy.argsort(samples)
        ordered, of_call = samples[order], numpy.repeat(numpy.arange(len(calls)), calls)[order]
        random, even = numpy.random.default_rng(0), [1 / len(calls)] * len(calls)
        medians = []
        for _ in range(10):  # all at once, thousands of steps would take hundreds of megabytes
            drawn = random.multinomial(len(calls), even, 1000)
            so_far = drawn[:, of_call].cumsum(axis=1)
            whole = so_far[:, -1:]
            # Of an even number of samples the median lies between the two in the middle.
            below = (2 * so_far >= whole).argmax(axis=1)
            above = (2 * so_far > whole).argmax(axis=1)
            medians.append((ordered[below] + ordered[above]) / 2)
        low, high = numpy.quantile(numpy.concatenate(medians), [0.025, 0.975])
        return float(low), float(high)

    def p99_s(self) -> float | None:
        """The 99th percentile; None below 100 samples or 20 calls."""
        if len(self.samples_s) < _SAMPLES_FOR_P99 or len(self._calls()) < _CALLS_FOR_P99:
            return None
        return self.quantile_s(0.99)

    def _calls(self) -> tuple[int, ...]:
        """Samples of each call that has any."""
        if self.calls is None:
            return (1,) * len(self.samples_s)
        return tuple(filter(None, self.calls))

    def to_dict(self) -> dict[str, Any]:
        """For the report; `calls` only for times within calls."""
        calls = {} if self.calls is None else {"calls": list(self.calls)}
        if not self.samples_s:
            figures = dict.fromkeys(("median", "p10", "p90", "p99", "ci95"))
            return {"samples": [], **calls, **figures}
        ci95 = self.ci95_s()
        return {
            "samples": list(self.samples_s),
            **calls,
            "median": self.median_s,
            "p10": self.quantile_s(0.1),
            "p90": self.quantile_s(0.9),
            "p99": self.p99_s(),
            "ci95": list(ci95) if ci95 else None,
        }


_CALLS_FOR_CI95 = 5


_SAMPLES_FOR_P99 = 100


_CALLS_FOR_P99 = 20


Row = Mapping[str, Any]


METHOD = (
    "A speed-up is the baseline's median latency divided by the row's. Its 95 % interval takes both medians as "
    "log-normal and independent of one another, each as wide as its own 95 % interval."
)


def median_s(row: Row) -> float | None:
    """Median latency in seconds; None where nothing was timed."""
    latency = row["latency_s"]
    return latency["median"] if latency else None


def speedup(row: Row, baseline: Row | None) -> dict[str, Any] | None:
    """How many times as fast as the baseline a row is: {"ratio", "ci95": [low, high] or None}.

    None where one of both has no latency. No interval for the baseline itself, for a row that is the same run, and where
    one of both medians has none. The intervals' halves, as logarithms, add up like the sides of a right angle.
    """
    ours, theirs = median_s(row), median_s(baseline) if baseline else None
    if baseline is None or not ours or not theirs:
        return None
    if run_of(row) == run_of(baseline):
        return {"ratio": 1.0, "ci95": None}
    ratio = theirs / ours
    widths = [_half_width(each) for each in (row, baseline)]
    if any(width is None for width in widths):
        return {"ratio": ratio, "ci95": None}
    spread = math.hypot(*(width for width in widths if width is not None))
    return {"ratio": ratio, "ci95": [ratio * math.exp(-spread), ratio * math.exp(spread)]}


def run_of(row: Row) -> str:
    """The cell whose run a row shows: its own, or the first one that is the same run."""
    return str(row["same_as"] or row["cell"])


def _half_width(row: Row) -> float | None:
    """Half of the logarithm's 95 % interval; None where the latency has no interval."""
    interval = row["latency_s"]["ci95"]
    if not interval or interval[0] <= 0:
        return None
    return math.log(interval[1] / interval[0]) / 2


def closeness_db(row: Row) -> float | None:
    """PSNR against the reference in dB, infinite for identical pictures; None where they weren't compared."""
    quality = row["quality"]
    if not quality:
        return None
    if quality["identical"]:
        return math.inf
    psnr = quality["psnr_db"]
    return None if psnr is None else float(psnr)


def pareto(rows: Sequence[Row]) -> set[str]:
    """Names of the cells that no other one beats: none is as fast and as close to the reference, and better in one of both.

    Only cells that are ok, were timed, and whose pictures were compared; medians, whatever their intervals.
    """
    known = [
        (row["cell"], latency, closeness)
        for row in rows
        if row["status"] == Status.OK
        and (latency := median_s(row)) is not None
        and (closeness := closeness_db(row)) is not None
    ]
    front: set[str] = set()
    best = (math.inf, -math.inf)  # the last point of the front: seconds, dB
    for cell, latency, closeness in sorted(known, key=lambda each: (each[1], -each[2])):
        if closeness > best[1] or (latency, closeness) == best:
            best = (latency, closeness)
            front.add(cell)
    return front
