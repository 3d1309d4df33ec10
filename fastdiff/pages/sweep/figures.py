"""Speed-ups with intervals, and the Pareto front. Pure; `page.js` computes speed-ups in the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastdiff.result import Status

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
