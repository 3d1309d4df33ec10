"""Whether `fastdiff compare` finds a small slowdown in real time, and none where there is none.

    python benchmarks/compare.py
    python benchmarks/compare.py --pairs 60 --lives 15

Two comparisons on the embedded model. In the first, B draws with one denoising step more than A's 18: about 5 % more work,
the text encoders and the decoder being the same. In the second both sides are the same run. Each comparison measures A
against itself beside the rest, and that is in the results too.

Processes of one run differ by a percent or two all their lives, so the ten lives of each comparison matter more than its
pairs. Exit code 1 if the slowdown is not found, or if a difference is claimed where there is none. The second happens by
chance in about 5 % of comparisons.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import ROOT, as_typed, now, timed_command, write_results

from fastdiff.display.compare import lines
from fastdiff.machine.files import read_json

KEPT = (
    *("verdict", "ratio", "noise", "resolution", "pairs", "lives", "ratio_by_life"),
    *("noise_by_life", "seed", "seats", "rounds", "quality", "conditions", "notices"),
    "environment",
)
"""What the results keep of a comparison: every turn's seconds, what they say, and what else the machine did."""


def command(a: str, b: str, asked: argparse.Namespace) -> list[str]:
    how = [f"compare.{key}={getattr(asked, key)}" for key in ("pairs", "lives", "seed")]
    how.append("compare.dir=compared")
    return [sys.executable, "-m", "fastdiff", "compare", a, b, "model=shapes", *how]


def compared(a: str, b: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One comparison through the command line; what its comparison.json says."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"comparing '{a}' with '{b}'", file=sys.stderr)
        timed_command(command(a, b, asked), folder)
        found: dict[str, Any] = read_json(folder / "compared" / "comparison.json")
    for label, text in lines(found):
        print(f"  {label:<12} {text}")
    return {"command": as_typed(command(a, b, asked))} | {name: found[name] for name in KEPT}


def problems(slowdown: dict[str, Any], no_op: dict[str, Any]) -> list[str]:
    """Why the benchmark fails; empty if it doesn't."""
    found = []
    if slowdown["verdict"] != "slower":
        found.append(f"a slowdown of about 5 % was not found: {slowdown['verdict']}")
    if no_op["verdict"] in ("slower", "faster"):
        found.append(f"a run against itself is said to be {no_op['verdict']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="A known slowdown, and none, compared for real.")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--lives", type=int, default=10, help="how often all processes start anew")
    parser.add_argument("--steps", type=int, default=18, help="of A; B draws with one more")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    parser.add_argument("--name", default="compare", help="of the results' file")
    asked = parser.parse_args()
    if asked.pairs < 6:
        parser.error("--pairs must be 6 or more: fewer give no verdict")
    if not 2 <= asked.lives <= asked.pairs / 2:
        parser.error("--lives must be 2 or more, and two pairs are needed for each")
    started_at = now()
    plain, longer = (f"generation.steps={steps}" for steps in (asked.steps, asked.steps + 1))
    found = {
        "slowdown": compared(plain, longer, asked),
        "no_op": compared(plain, plain, asked),
    }
    path = write_results(asked.name, found, started_at)
    print(f"written: {path.relative_to(ROOT)}")
    failed = problems(found["slowdown"], found["no_op"])
    for line in failed:
        print(f"FAILED  {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
