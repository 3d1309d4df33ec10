"""How long whole commands take that compute nothing, beside `import hydra`, and how much memory; with --run, a whole run.

    python benchmarks/startup.py
    python benchmarks/startup.py --run

Every command is a process of its own; a round runs all of them in a random order that the next round runs backwards.

Exit code 1 if a goal is missed: at most 4 times `import hydra` for one plan or refusal, better 3, also for a grid of 50 (the
whole 95 % interval of the ratio lies above), a run of the embedded model in 30 s, and at most 100 MB for every process that
was typed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

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

MOST_TIMES_HYDRA = 4.0
BETTER_TIMES_HYDRA = 3.0
MOST_TIMES_HYDRA_FOR_50 = 4.0
MOST_RUN_S = 30.0
MOST_PARENT_BYTES = 100_000_000
HYDRA = "import hydra"
RECIPES = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True)
class Command:
    """What is typed after `python`, the exit code that it must end with, and the goal: most times `import hydra`."""

    words: tuple[str, ...]
    exit_code: int = 0
    most_times: float = MOST_TIMES_HYDRA

    @property
    def typed(self) -> list[str]:
        return [sys.executable, *self.words]


COMMANDS = {
    HYDRA: Command(("-c", "import hydra")),
    "plan": Command(
        ("-m", "fastdiff", "plan", "precision=bf16", "compile=max_autotune", "quant=int8")
    ),
    "plan with keys": Command(
        ("-m", "fastdiff", "plan", "quant=int8", "quant.min_in_features=64", "generation.steps=20")
    ),
    "plan of an experiment": Command(
        ("-m", "fastdiff", "plan", "experiment=sdxl_tutorial/int8", "model=shapes")
    ),
    "recipe check": Command(("-m", "fastdiff", "recipe", "check", str(RECIPES / "int8.yaml"))),
    "recipe that is wrong": Command(
        ("-m", "fastdiff", f"recipe={RECIPES / 'misspelled.yaml'}", "precision=fp32"), 2
    ),
    "--help": Command(("-m", "fastdiff", "--help")),
    "misspelled option": Command(("-m", "fastdiff", "quant=imt8"), 2),
    "impossible combination": Command(("-m", "fastdiff", "attention=math", "qkv=fused"), 2),
    "plan -m, 50 cells": Command(
        (
            *("-m", "fastdiff", "plan", "-m", "precision=fp32,bf16"),
            "scheduler=default,ddim,dpm_solver,euler,lcm",
            "compile=none,default,dynamic,max_autotune,regional",
        ),
        most_times=MOST_TIMES_HYDRA_FOR_50,
    ),
}
RUN = Command(("-m", "fastdiff"))


def time_commands(rounds: int, seed: int) -> dict[str, list[float]]:
    """Seconds of every command in every round; one round beforehand, not counted, fills the disk's cache."""
    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as temporary:
        for command in COMMANDS.values():
            timed_command(command.typed, Path(temporary), command.exit_code)
        for order in counterbalanced(list(COMMANDS), rounds, seed):
            for name in order:
                command = COMMANDS[name]
                done = timed_command(command.typed, Path(temporary), command.exit_code)
                samples[name].append(done.seconds)
    return samples


@dataclass(frozen=True)
class WholeRun:
    """A run of the embedded model from the line typed to the prompt's return.

    parent_peak_bytes: of the process that was typed, its workers not counted; None off Linux.
    """

    seconds: float
    parent_peak_bytes: int | None


def whole_run() -> WholeRun:
    """Run `python -m fastdiff` in an empty folder, reading its peak memory until it ends."""
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        process = subprocess.Popen(
            RUN.typed, cwd=temporary, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        peak = None
        while process.poll() is None:
            peak = peak_bytes(process.pid) or peak
            time.sleep(0.05)
        seconds = time.perf_counter() - started
    if process.returncode != 0:
        sys.exit(f"'{as_typed(RUN.typed)}' ended with exit code {process.returncode}")
    return WholeRun(seconds, peak)


def peak_of(command: Command) -> int | None:
    """Peak memory of a command's own process, in bytes; None off Linux."""
    with tempfile.TemporaryDirectory() as temporary:
        process = subprocess.Popen(
            command.typed, cwd=temporary, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        peak = None
        while process.poll() is None:
            peak = peak_bytes(process.pid) or peak
            time.sleep(0.002)
    return peak


def peak_bytes(process_id: int) -> int | None:
    """A process's peak resident memory so far; None if it has ended or the system doesn't say."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def report_commands(
    samples: dict[str, list[float]], ratios: dict[str, Ratio], peaks: dict[str, int | None]
) -> str:
    lines = [f"{'command':<24}{'median':>9}{'peak':>9}  times import hydra [95 %], goal"]
    for name, seconds in samples.items():
        peak = peaks[name]
        memory = "-" if peak is None else f"{peak / 1e6:.0f} MB"
        lines.append(f"{name:<24}{median(seconds):>7.3f} s{memory:>9}  {_beside(name, ratios)}")
    return "\n".join(lines)


def _beside(name: str, ratios: dict[str, Ratio]) -> str:
    """The ratio and its goal in words."""
    if name not in ratios:
        return "1"
    most = COMMANDS[name].most_times
    better = most == MOST_TIMES_HYDRA and ratios[name].high <= BETTER_TIMES_HYDRA
    return f"{ratios[name]}, goal {most:.0f}" + (
        f", and within {BETTER_TIMES_HYDRA:.0f}" if better else ""
    )


def report_run(runs: list[WholeRun]) -> str:
    peaks = [run.parent_peak_bytes for run in runs if run.parent_peak_bytes is not None]
    memory = f"{max(peaks) / 1e6:.0f} MB" if peaks else "not known on this system"
    return (
        f"{as_typed(RUN.typed)}: median of {len(runs)} {median([r.seconds for r in runs]):.1f} s "
        f"(goal: {MOST_RUN_S:.0f} s); parent's peak {memory} (goal: {MOST_PARENT_BYTES / 1e6:.0f} MB)"
    )


def missed(
    ratios: dict[str, Ratio], peaks: dict[str, int | None], runs: list[WholeRun]
) -> list[str]:
    """Every goal that was missed, in words."""
    found = [
        f"{name}: {ratio} times import hydra, the goal is {COMMANDS[name].most_times:.0f}"
        for name, ratio in ratios.items()
        if ratio.low > COMMANDS[name].most_times
    ]
    found += [
        f"{name}: {peak / 1e6:.0f} MB, the goal is {MOST_PARENT_BYTES / 1e6:.0f} MB"
        for name, peak in peaks.items()
        if peak is not None and peak > MOST_PARENT_BYTES
    ]
    if runs and median([run.seconds for run in runs]) > MOST_RUN_S:
        found.append(f"a whole run takes longer than {MOST_RUN_S:.0f} s")
    if any((run.parent_peak_bytes or 0) > MOST_PARENT_BYTES for run in runs):
        found.append(f"a run's parent needs more than {MOST_PARENT_BYTES / 1e6:.0f} MB")
    return found


def to_dict(
    samples: dict[str, list[float]],
    ratios: dict[str, Ratio],
    peaks: dict[str, int | None],
    runs: list[WholeRun],
) -> dict[str, Any]:
    commands = {
        name: {
            "command": as_typed(COMMANDS[name].typed),
            "samples_s": seconds,
            "median_s": median(seconds),
            "peak_bytes": peaks[name],
            "to_import_hydra": ratios[name].to_dict() if name in ratios else None,
            "most_times_import_hydra": COMMANDS[name].most_times if name in ratios else None,
        }
        for name, seconds in samples.items()
    }
    run = {
        "command": as_typed(RUN.typed),
        "samples_s": [one.seconds for one in runs],
        "parent_peak_bytes": [one.parent_peak_bytes for one in runs],
    }
    goals = {
        "most_times_import_hydra": MOST_TIMES_HYDRA,
        "better_times_import_hydra": BETTER_TIMES_HYDRA,
        "most_times_import_hydra_for_50_cells": MOST_TIMES_HYDRA_FOR_50,
        "most_run_s": MOST_RUN_S,
        "most_parent_bytes": MOST_PARENT_BYTES,
    }
    return {"commands": commands, "run": run if runs else None, "goals": goals}


def main() -> int:
    parser = argparse.ArgumentParser(description="Commands that compute nothing, timed.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--run", action="store_true", help="also time whole runs")
    parser.add_argument("--runs", type=int, default=3, help="whole runs, with --run")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    parser.add_argument("--name", default="startup", help="of the results' file")
    asked = parser.parse_args()
    if asked.rounds < 2 or asked.runs < 1:
        parser.error("--rounds must be 2 or more, --runs 1 or more")
    started_at = now()
    samples = time_commands(asked.rounds, asked.seed)
    ratios = {
        name: paired_ratio(seconds, samples[HYDRA])
        for name, seconds in samples.items()
        if name != HYDRA
    }
    peaks = {name: peak_of(command) for name, command in COMMANDS.items()}
    print(report_commands(samples, ratios, peaks))
    runs = [whole_run() for _ in range(asked.runs)] if asked.run else []
    if runs:
        print(report_run(runs))
    path = write_results(asked.name, to_dict(samples, ratios, peaks, runs), started_at)
    print(f"written: {path.relative_to(ROOT)}")
    failed = missed(ratios, peaks, runs)
    for line in failed:
        print(f"FAILED  {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
