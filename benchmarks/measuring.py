"""What the benchmarks share: commands that are timed, the machine, and results on disk; ratios are fastdiff's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastdiff.latency import Ratio as Ratio
from fastdiff.latency import counterbalanced as counterbalanced
from fastdiff.latency import paired_ratio as paired_ratio
from fastdiff.machine.environment import this_machine
from fastdiff.machine.files import write_json
from fastdiff.machine.software import git_commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
_WHAT_IS_MEASURED = ("fastdiff", "conf", "pyproject.toml", "benchmarks/*.py")


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
        "uncommitted_changes": uncommitted_changes(),
        "started_at": started_at,
        "finished_at": now(),
    }
    write_json(path, found | results)
    return path


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def uncommitted_changes() -> bool | None:
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
