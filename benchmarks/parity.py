"""What fastdiff costs beside the same calls written by hand: benchmarks/handwritten.py.

    python benchmarks/parity.py
    python benchmarks/parity.py --settings uncompiled regional default --pairs 10

Every measurement is a process of its own. A round runs fastdiff, the script, and the script once more, in a random order
that the next round runs backwards. Both sides give the median of their own timed calls; the ratio of a round is a pair.
The script against itself is what the machine's noise alone does. One round beforehand, not counted, fills Inductor's cache.

Exit code 1 if fastdiff is slower than the script (the 95 % interval lies above 1 and doesn't end below 1.01), or if the
pictures differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy
from measuring import (
    ROOT,
    Ratio,
    as_typed,
    counterbalanced,
    now,
    paired_ratio,
    timed_command,
    write_results,
)
from PIL import Image

COUNTS = 1.01
"""A ratio that is surely below this costs nothing worth mentioning."""
SIDES = ("fastdiff", "handwritten", "handwritten again")


@dataclass(frozen=True)
class Setting:
    """The same optimizations in both spellings.

    levels: by how much of 255 a pixel may differ: 0 asks for the same picture.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    levels: int


SETTINGS = {
    "uncompiled": Setting((), (), levels=0),
    "regional": Setting(("compile=regional",), ("--compile", "regional"), levels=2),
    "default": Setting(("compile=default",), ("--compile", "default", "--freezing"), levels=2),
}


@dataclass
class Measured:
    """One setting: every side's median of every round, in seconds, and how far the pictures lie apart."""

    medians_s: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    most_levels_apart: int = 0

    @property
    def ratio(self) -> Ratio:
        return paired_ratio(self.medians_s["fastdiff"], self.medians_s["handwritten"])

    @property
    def noise(self) -> Ratio:
        return paired_ratio(self.medians_s["handwritten again"], self.medians_s["handwritten"])


def fastdiff_command(setting: Setting, folder: Path, asked: argparse.Namespace) -> list[str]:
    # Both sides warm up alike: no longer than asked for.
    length = [f"bench.runs={asked.runs}", f"bench.warmup={asked.warmup}", "bench.most_warmup=0"]
    return [
        *(sys.executable, "-m", "fastdiff", "precision=fp32", "attention=sdpa", "quality=none"),
        *(
            *setting.overrides,
            *length,
            f"generation.steps={asked.steps}",
            f"hydra.run.dir={folder}",
        ),
    ]


def handwritten_command(setting: Setting, folder: Path, asked: argparse.Namespace) -> list[str]:
    script = str(ROOT / "benchmarks" / "handwritten.py")
    length = ["--runs", str(asked.runs), "--warmup", str(asked.warmup), "--steps", str(asked.steps)]
    return [sys.executable, script, *setting.flags, *length, "--out", str(folder / "image-0.png")]


def one_round(
    order: list[str], setting: Setting, asked: argparse.Namespace
) -> tuple[dict[str, float], int]:
    """Every side once, in this order: their medians in seconds, and how far their pictures lie apart."""
    medians: dict[str, float] = {}
    pictures: dict[str, Any] = {}
    for side in order:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if side == "fastdiff":
                timed_command(fastdiff_command(setting, folder, asked), folder)
                report = json.loads((folder / "report.json").read_text())
                medians[side] = report["latency_s"]["median"]
            else:
                done = timed_command(handwritten_command(setting, folder, asked), folder)
                medians[side] = json.loads(done.output.splitlines()[-1])["median_s"]
            with Image.open(folder / "image-0.png") as picture:
                pictures[side] = numpy.asarray(picture.convert("RGB")).astype(int)
    apart = numpy.abs(pictures["fastdiff"] - pictures["handwritten"]).max()
    return medians, int(apart)


def measure(name: str, asked: argparse.Namespace) -> Measured:
    setting, measured = SETTINGS[name], Measured()
    print(f"{name}: filling the caches", file=sys.stderr)
    measured.most_levels_apart = one_round(list(SIDES), setting, asked)[1]
    for index, order in enumerate(counterbalanced(SIDES, asked.pairs, asked.seed), 1):
        print(f"{name}: pair {index} of {asked.pairs}", file=sys.stderr)
        medians, apart = one_round(order, setting, asked)
        for side, seconds in medians.items():
            measured.medians_s[side].append(seconds)
        measured.most_levels_apart = max(measured.most_levels_apart, apart)
    return measured


def problems(name: str, measured: Measured) -> list[str]:
    """Why this setting fails the benchmark; empty if it doesn't."""
    found = []
    if measured.ratio.low > 1 and measured.ratio.high >= COUNTS:
        found.append(f"{name}: fastdiff is slower than the script: {measured.ratio}")
    allowed = SETTINGS[name].levels
    if measured.most_levels_apart > allowed:
        found.append(
            f"{name}: the pictures differ by {measured.most_levels_apart} of 255, allowed are {allowed}"
        )
    return found


def table(results: dict[str, Measured]) -> str:
    lines = [
        f"{'setting':<12}{'fastdiff':>10}{'by hand':>10}  {'ratio [95 %]':<23}{'by hand, twice':<23}pictures"
    ]
    for name, measured in results.items():
        ours, theirs = (f"{median(measured.medians_s[side]):.4f} s" for side in SIDES[:2])
        apart = measured.most_levels_apart
        pictures = f"differ by {apart}/255" if apart else "identical"
        ratios = f"{measured.ratio!s:<23}{measured.noise!s:<23}"
        lines.append(f"{name:<12}{ours:>10}{theirs:>10}  {ratios}{pictures}")
    return "\n".join(lines)


def to_dict(name: str, measured: Measured, asked: argparse.Namespace) -> dict[str, Any]:
    somewhere = Path("DIR")
    commands = {
        "fastdiff": as_typed(fastdiff_command(SETTINGS[name], somewhere, asked)),
        "handwritten": as_typed(handwritten_command(SETTINGS[name], somewhere, asked)),
    }
    return {
        "commands": commands,
        "medians_s": measured.medians_s,
        "fastdiff_to_handwritten": measured.ratio.to_dict(),
        "handwritten_to_itself": measured.noise.to_dict(),
        "pictures_identical": measured.most_levels_apart == 0,
        "most_levels_apart": measured.most_levels_apart,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="fastdiff against the same calls by hand.")
    parser.add_argument(
        "--settings", nargs="+", choices=list(SETTINGS), default=["uncompiled", "regional"]
    )
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--runs", type=int, default=5, help="timed calls of each process")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    parser.add_argument("--name", default="parity", help="of the results' file")
    asked = parser.parse_args()
    if asked.pairs < 2:
        parser.error("--pairs must be 2 or more: one pair has no interval")
    started_at = now()
    results = {name: measure(name, asked) for name in asked.settings}
    print(table(results))
    settings = {name: to_dict(name, measured, asked) for name, measured in results.items()}
    path = write_results(asked.name, {"settings": settings}, started_at)
    print(f"written: {path.relative_to(ROOT)}")
    failed = [line for name, measured in results.items() for line in problems(name, measured)]
    for line in failed:
        print(f"FAILED  {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
