"""What the rounds of a ladder say together: one row for each rung, with intervals over processes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastdiff.errors import Status
from fastdiff.runs.ladder.rungs import Rung

LONGEST_REASON = 400
"""Characters of a failure that a row repeats; a compiler's message runs to hundreds of lines, and the log has them."""


def rows(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """One row for each rung: published figures beside ours.

    latency_s is the median over rounds of each round's median. speedup compares with the first measured row, gain with
    the row that the rung builds on: the one its experiment names, or the nearest measured one above. Both are geometric
    means of the rounds' ratios, with a 95 % interval of Student's t over the rounds (null below two rounds).
    """
    found: list[dict[str, Any]] = []
    first: Rung | None = None
    for at, rung in enumerate(rungs):
        row: dict[str, Any] = {
            "experiment": rung.experiment.name,
            "status": _status(rung),
            "reason": rung.refused,
            "published": asdict(rung.experiment.published),
            "rounds": len(rung.measured),
            "overrides": rung.overrides,
            "left_out": rung.left_out,
        }
        failed = rung.failed
        if failed is not None:
            row["reason"] = _shortened(failed["error"]["message"] or "")
        if rung.measured:
            row |= _figures(rung)
            first = first or rung
            under = _built_on(rungs, at)
            row["speedup"] = ratio(first, rung)
            row["gain"] = ratio(under, rung) if under else None
            row["gain_over"] = under.experiment.short if under else None
            row["verdict"] = verdict(row["gain"])
        found.append(row)
    return found


def _built_on(rungs: Sequence[Rung], at: int) -> Rung | None:
    """The rung whose gain another one's is measured over; None if it was not measured."""
    over = rungs[at].experiment.published.over
    if over is not None:
        return rungs[over] if rungs[over].measured else None
    return next((rung for rung in reversed(rungs[:at]) if rung.measured), None)


def _shortened(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ... (see its log.txt)"


def _status(rung: Rung) -> str:
    if rung.plan is None:
        return Status.INCOMPATIBLE.value
    if rung.failed is not None:
        return str(rung.failed["status"])
    return Status.OK.value if rung.measured else "missing"


def _figures(rung: Rung) -> dict[str, Any]:
    """What the rounds say together."""
    reports = [rung.measured[number] for number in sorted(rung.measured)]
    by_round = {n + 1: rung.measured[n]["latency_s"]["median"] for n in sorted(rung.measured)}
    cold = [r for r in reports if r["compile"]["cache"] == "cold"]
    whole = (r for r in cold if not r["compile"].get("resumed"))
    compiled = next(whole, cold[0] if cold else reports[0])
    return {
        "latency_s": statistics.median(by_round.values()),
        "latency_s_by_round": {str(number): median for number, median in by_round.items()},
        "pictures": len(reports[0]["images"]),
        "quality": reports[0]["quality"],
        "peak_memory_bytes": {
            name: max(filter(None, (r["peak_memory_bytes"][name] for r in reports)), default=None)
            for name in reports[0]["peak_memory_bytes"]
        },
        "compile_s": compiled["compile_s"],
        "compile_cache": compiled["compile"]["cache"],
        "compile_cache_shared": compiled["compile"].get("cache_shared", False),
        "compile_resumed": compiled["compile"].get("resumed", False),
        "first_call_s": compiled["first_call_s"],
        "applied": reports[0]["applied"],
        "notices": reports[0]["notices"],
    }


def ratio(slow: Rung, fast: Rung) -> dict[str, Any]:
    """How many times as fast the second is as the first: geometric mean of the rounds' ratios, and its interval."""
    common = sorted(slow.measured.keys() & fast.measured.keys())
    logs = [
        math.log(slow.measured[n]["latency_s"]["median"] / fast.measured[n]["latency_s"]["median"])
        for n in common
    ]
    if not logs:
        return {"ratio": None, "ci95": None, "rounds": 0}
    mean = statistics.fmean(logs)
    interval = None
    if slow is not fast and len(logs) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
        interval = [math.exp(mean - half), math.exp(mean + half)]
    return {"ratio": math.exp(mean), "ci95": interval, "rounds": len(logs)}


def verdict(gain: dict[str, Any] | None) -> str | None:
    """What a rung is worth here: `pays`, `no gain` (none is shown) or `slower`; None where the rounds can't tell."""
    if gain is None or gain["ci95"] is None:
        return None
    low, high = gain["ci95"]
    if low > 1:
        return "pays"
    return "slower" if high < 1 else "no gain"
