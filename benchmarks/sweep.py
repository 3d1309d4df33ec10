"""A sweep of 24 cells of the embedded model against a shell loop over the same single runs.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --rounds 2 --bench quick

A round is one whole sweep and one whole loop, the order turned around in the next. Both begin without the reference picture and
with the machine's rates measured, as they are after anybody's first run. The medians of each cell are compared between both ways:
a sweep forks its cells from a process that has imported torch, and their times must be those of runs on their own.

`other_s` is what a cell of the sweep costs beside its calls: the seconds from its beginning to its end, less its load, the first call,
warm-up and timed calls. The checks and looks of a run (exactness, where the time goes, the roofline) are part of it.

Exit code 1 if the sweep isn't twice as fast, or if the medians differ: the ratio's 95 % interval over cells misses 1 by more
than 2 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from measuring import as_typed, now, paired_ratio, write_results

GRID = {
    "precision": ("fp32", "bf16"),
    "attention": ("sdpa", "math"),
    "memory_format": ("contiguous", "channels_last"),
    "scheduler": ("default", "ddim", "dpm_solver"),
}


def common(bench: str) -> list[str]:
    return ["model=shapes", "device=cpu", f"bench={bench}"]


def cells() -> list[list[str]]:
    return [
        [f"{slot}={option}" for slot, option in zip(GRID, options, strict=True)]
        for options in itertools.product(*GRID.values())
    ]


def timed(command: list[str] | str, folder: Path) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def sweep(folder: Path, bench: str) -> tuple[float, list[dict[str, Any]]]:
    grid = [f"{slot}={','.join(options)}" for slot, options in GRID.items()]
    words = ["-m", *common(bench), *grid, "sweep.name=grid"]
    seconds = timed([sys.executable, "-m", "fastdiff", *words], folder)
    home = folder / "outputs" / "sweeps" / "grid"
    rows = json.loads((home / "sweep.json").read_text())["rows"]
    reports = [json.loads((home / row["report"]).read_text()) for row in rows]
    for report, row in zip(reports, rows, strict=True):
        report["cell_s"] = row["seconds"]
    return seconds, reports


def loop(folder: Path, bench: str) -> tuple[float, list[dict[str, Any]]]:
    """One shell, one run after another, as a person would write it."""
    lines = []
    for number, words in enumerate(cells()):
        run = [sys.executable, "-m", "fastdiff", *common(bench), *words]
        lines.append(shlex.join([*run, f"hydra.run.dir=run-{number}"]))
    seconds = timed("\n".join(lines), folder)
    names = [f"run-{number}" for number in range(len(lines))]
    return seconds, [json.loads((folder / name / "report.json").read_text()) for name in names]


def computing_s(report: dict[str, Any]) -> float:
    """Seconds of a run that it would have to compute in any process."""
    calls = [report["first_call_s"], *report["warmup_s"], *report["latency_s"]["samples"]]
    return float(report["load_s"] + report["apply_s"] + sum(calls))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bench", default="once")
    asked = parser.parse_args()
    started_at, found = now(), []
    with tempfile.TemporaryDirectory() as name:
        first = Path(name) / "first"
        first.mkdir()
        timed([sys.executable, "-m", "fastdiff", *common("once"), f"hydra.run.dir={first}"], first)
        for number in range(asked.rounds):
            ways = [("sweep", sweep), ("loop", loop)]
            each: dict[str, Any] = {}
            for way, run in ways if number % 2 == 0 else reversed(ways):
                folder = Path(name) / f"{way}-{number}"
                folder.mkdir()
                seconds, reports = run(folder, asked.bench)
                each[way] = {
                    "seconds": seconds,
                    "median_s": [report["latency_s"]["median"] for report in reports],
                    "other_s": [r["cell_s"] - computing_s(r) for r in reports if r.get("cell_s")],
                }
                print(f"round {number + 1}, {way}: {seconds:.0f} s", file=sys.stderr, flush=True)
            found.append(each)
    faster = geometric_mean(each["loop"]["seconds"] / each["sweep"]["seconds"] for each in found)
    swept = [value for each in found for value in each["sweep"]["median_s"]]
    looped = [value for each in found for value in each["loop"]["median_s"]]
    ratio = paired_ratio(swept, looped)
    other = median(value for each in found for value in each["sweep"]["other_s"])
    print(f"{len(cells())} cells: the sweep is {faster:.2f} times as fast as the loop")
    print(f"a cell's median latency in the sweep, over that in the loop: {ratio}")
    print(f"a cell of the sweep costs {other:.2f} s beside its calls and its load")
    results = {
        "cells": len(cells()),
        "loop": as_typed([sys.executable, "-m", "fastdiff", *common(asked.bench), *cells()[0]]),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "faster": faster,
        "median_ratio": ratio.to_dict(),
        "other_s": other,
        "rounds": found,
    }
    path = write_results("sweep", results, started_at)
    print(f"written: {path}", file=sys.stderr)
    return 0 if faster >= 2 and ratio.low <= 1.02 and ratio.high >= 0.98 else 1


if __name__ == "__main__":
    sys.exit(main())
