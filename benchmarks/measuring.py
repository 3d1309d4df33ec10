"""What the benchmarks share: orders that cancel drift, ratios with intervals, the machine, and results on disk."""

from __future__ import annotations

import math
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy

from fastdiff.environment import this_machine
from fastdiff.report import git_commit
from fastdiff.result import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
_WHAT_IS_MEASURED = ("fastdiff", "conf", "pyproject.toml", "benchmarks/*.py")


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
    logs = numpy.log(numpy.asarray(numerators, float)) - numpy.log(
        numpy.asarray(denominators, float)
    )
    draws = numpy.random.default_rng(0).choice(logs, (resamples, len(logs)))
    low, high = numpy.quantile(numpy.median(draws, axis=1), [0.025, 0.975])
    return Ratio(math.exp(float(numpy.median(logs))), math.exp(float(low)), math.exp(float(high)))


def counterbalanced(names: Sequence[str], rounds: int, seed: int) -> Iterator[list[str]]:
    """An order of the names for every round: a random one, then the same backwards (ABBA).

    Whatever drifts evenly over two rounds falls on all names alike.
    """
    generator = random.Random(seed)
    order = list(names)
    for index in range(rounds):
        if index % 2 == 0:
            generator.shuffle(order)
            yield list(order)
        else:
            yield list(reversed(order))


@dataclass(frozen=True)
class Finished:
    """A command that has ended: the seconds that it took from start to end, and what it printed."""

    seconds: float
    output: str


def timed_command(command: Sequence[str], folder: Path, exit_code: int = 0) -> Finished:
    """Run a command in a folder and time it. Ends the benchmark if it exits with another code."""
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - started
    if done.returncode != exit_code:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        sys.exit(
            f"'{as_typed(command)}' ended with exit code {done.returncode}, not {exit_code}:\n{tail}"
        )
    return Finished(seconds, done.stdout)


def as_typed(command: Sequence[str]) -> str:
    """A command as a person would type it at the top of the checkout."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join(word.removeprefix(f"{ROOT}{os.sep}") for word in words)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    here = this_machine()
    return {
        "cpu": here.cpu,
        "cores": here.threads,
        "memory_bytes": here.memory_bytes,
        "os": here.os,
        "python": here.python,
        "versions": dict(here.versions),
        "gpus": [asdict(gpu) for gpu in here.gpus],
        "threads_asked": os.environ.get("OMP_NUM_THREADS"),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def write_results(name: str, results: dict[str, Any], started_at: str) -> Path:
    """Write `benchmarks/results/<name>.json`: the figures, the machine, the commit and the command."""
    path = RESULTS / f"{name}.json"
    command = as_typed([sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]])
    found = {
        "command": command,
        "machine": machine(),
        "commit": git_commit(),
        "uncommitted_changes": _uncommitted_changes(),
        "started_at": started_at,
        "finished_at": now(),
    }
    write_json(path, found | results)
    return path


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _uncommitted_changes() -> bool | None:
    """Whether what was measured differs from the commit; None outside a checkout or without git."""
    try:
        status = subprocess.run(
            ["git", "status", "--porcelain", "--", *_WHAT_IS_MEASURED],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return bool(status.stdout.strip()) if status.returncode == 0 else None
