"""`python sweeping.py WORDS ...`: fastdiff's command line whose cells are fake workers, whichever process their job runs in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdiff.runs.process import environment_of
from fastdiff.runs.sweep import job

HERE = Path(__file__).parent
ENDS_ITS_JOB = 201
"""Seed of a cell whose job ends the process that it runs in: Ray's worker, joblib's."""
APART = "SWEEPING_APART"
"""Variable that makes jobs see no folder of the sweep's, as on a machine that shares none."""


def start_fake(module: str, folder: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """As process.start, another program."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(HERE / "fake_worker.py"), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment_of(variables),
            start_new_session=True,
        )


class FakeJob(job.Job):
    """A job whose cells are fake, wherever a launcher takes it."""

    def do(self, task: job.Task) -> dict[str, Any]:
        job.start = start_fake  # type: ignore[assignment]
        job.can_fork = lambda plan: False
        if os.environ.get(APART):
            job.Folder.is_shared = lambda self, attempt: False  # type: ignore[method-assign]
        if f"generation.seed={ENDS_ITS_JOB}" in task.overrides:
            job.execute = lambda *_, **__: os._exit(9)  # type: ignore[assignment]
        return super().do(task)


if __name__ == "__main__":
    import sweeping

    from fastdiff import __main__
    from fastdiff.runs.sweep import sweep

    sweep.Job = sweeping.FakeJob  # type: ignore[misc]
    __main__.console()
