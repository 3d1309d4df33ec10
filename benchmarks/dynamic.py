"""How many graphs compile=dynamic needs for pictures of several sizes: the embedded model, one process.

    python benchmarks/dynamic.py                 # prints, and writes benchmarks/results/dynamic.json

Draws each size once with the compiled denoiser and once without, and counts Dynamo's graphs after each. Takes some
minutes: one compile of the whole denoiser.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

SIZES = ((64, 64), (96, 64), (64, 96), (128, 96), (128, 128))
"""Height and width in pixels."""

RESULT = Path(__file__).parent / "results" / "dynamic.json"


def pipeline(*overrides: str) -> Any:
    """The embedded model, built as the command line builds it."""
    from fastdiff.choices.compose import compose
    from fastdiff.machine.environment import this_machine
    from fastdiff.models.sources import model_of
    from fastdiff.planning.build import build
    from fastdiff.planning.plan import make_plan

    run = compose(["device=cpu", "generation.steps=4", *overrides])
    plan = make_plan(run, this_machine(), model_of(run).facts())
    return build(plan).pipeline, run.generation


def main() -> None:
    from fastdiff.machine.environment import this_machine
    from fastdiff.machine.software import git_commit
    from fastdiff.measuring.observing import compile_counters
    from fastdiff.measuring.quality import compare
    from fastdiff.models.pictures import draw, float32_noise

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    compiled, generation = pipeline("compile=dynamic")
    eager, _ = pipeline()
    rows = []
    for height, width in SIZES:
        generation.height, generation.width = height, width
        started = time.perf_counter()
        with float32_noise(compiled):
            pictures = draw(compiled, generation)
        seconds = time.perf_counter() - started
        with float32_noise(eager):
            distance = compare(pictures, draw(eager, generation))
        seen = compile_counters()
        row = {
            "height": height,
            "width": width,
            "first_call_s": round(seconds, 3),
            "graphs_so_far": seen.graphs,
            "recompiles_so_far": seen.recompiles,
            "identical_to_eager": distance.identical,
            "psnr_db": distance.psnr_db,
        }
        rows.append(row)
        print(row, flush=True)
    machine = this_machine()
    found = {
        "command": "python benchmarks/dynamic.py",
        "commit": git_commit(),
        "cpu": machine.cpu,
        "threads": machine.threads,
        "versions": machine.versions,
        "sizes": rows,
    }
    asked.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
