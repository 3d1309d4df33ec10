"""How long a sweep takes to be opened, told and its page written once all of its cells are done, and how much memory.

    python benchmarks/done_sweep.py
    python benchmarks/done_sweep.py --cells 200

Every cell has a report as the program writes it and a picture of its own; nothing is run. Each time is that of a whole
`python -m fastdiff` process. Beside it: `plan -m` of as many cells.

Exit code 1 if the sweep takes 10 s or 400 MB and more, or `plan -m` 15 s and more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

from measuring import ROOT, now, write_results

MOST_S, MOST_BYTES, MOST_PLAN_S = 10.0, 400_000_000, 15.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    started_at = now()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        grid = words(asked.cells)
        make_done(grid)
        again = [ended(["-m", *grid]) for _ in range(asked.times)]
        reported = [ended(["report", "outputs/sweeps/done"]) for _ in range(asked.times)]
        planned = [ended(["plan", "-m", *grid]) for _ in range(asked.times)]
    results: dict[str, Any] = {"cells": asked.cells, "most_s": MOST_S, "most_bytes": MOST_BYTES}
    for what, found in (("sweep", again), ("report", reported), ("plan", planned)):
        seconds, peak = ([each[index] for each in found] for index in (0, 1))
        results |= {f"{what}_s": seconds, f"{what}_peak_bytes": peak}
        print(f"{what}: {median(seconds):.2f} s, {max(peak) / 1e6:.0f} MB at its peak")
    print(write_results("done_sweep", results, started_at).relative_to(ROOT))
    sweep_s, plan_s = median(results["sweep_s"]), median(results["plan_s"])
    good = sweep_s < MOST_S and max(results["sweep_peak_bytes"]) < MOST_BYTES
    return int(not (good and plan_s < MOST_PLAN_S))


def words(cells: int) -> list[str]:
    """What is typed after `-m` for a grid of so many cells, a multiple of 4."""
    seeds = ",".join(map(str, range(1, cells // 4 + 1)))
    return [
        *("model=shapes", "device=cpu", "quality=none", "sweep.name=done"),
        *("precision=fp32,bf16", "attention=math,sdpa", f"generation.seed={seeds}"),
    ]


def make_done(grid: list[str]) -> None:
    """Write every cell of the grid, in the working directory, as a job would that has measured it."""
    from PIL import Image

    from fastdiff.latency import Latency
    from fastdiff.machine.files import write_json
    from fastdiff.measuring.report import blank_report
    from fastdiff.planning.outlook import planned
    from fastdiff.runs.sweep.made_with import made_with
    from fastdiff.runs.sweep.sweep import plan_sweep

    sweep = plan_sweep(grid)
    at = now()
    for place, entry in enumerate(sweep.cells):
        assert entry.run is not None
        plan = planned(entry.run)
        seconds = 0.2 + place % 97 / 1000
        times = Latency(tuple(seconds * factor for factor in (1.0, 1.01, 0.99, 1.0, 1.02)))
        report = blank_report(entry.run, plan, list(entry.typed.overrides), at).to_dict()
        report |= {"status": "ok", "finished_at": at, "latency_s": times.to_dict()}
        report |= {"images": [{"path": "image-0.png", "sha256": "0" * 64}], "load_s": 0.1}
        report["peak_memory_bytes"]["host"] = 800_000_000 + place
        work = sweep.folder.begin(entry.name)
        write_json(work / "report.json", report)
        Image.new("RGB", (64, 64), (place % 256, place // 4 % 256, 90)).save(work / "image-0.png")
        beside = {"seconds": 9 * seconds, "made_with": made_with(entry.run, plan.device)}
        write_json(work / "cell.json", {**beside, "attempt": "0", "references": []})
        sweep.folder.finish(entry.name)


def ended(typed: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a whole `python -m fastdiff` process that has to end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "fastdiff", *typed], stdout=subprocess.DEVNULL, env=environment
    )
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"`python -m fastdiff {' '.join(typed)[:80]} ...` ended with {child.returncode}")
    return time.perf_counter() - began, used.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
