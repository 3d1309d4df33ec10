"""From a planned run to its report: the reference first, then the run, each in its own process."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastdiff.display.report import write_run_page
from fastdiff.errors import Status
from fastdiff.measuring.protocol import Request
from fastdiff.planning.plan import Plan
from fastdiff.runs.folders import prepare_folder
from fastdiff.runs.process import (
    NO_LIMITS,
    Ending,
    Limits,
    Progress,
    Starter,
    report_failure,
    run_in_process,
    start,
)
from fastdiff.runs.reference import find_reference


def execute(
    plan: Plan,
    overrides: list[str],
    folder: Path,
    progress: Progress,
    limits: Limits = NO_LIMITS,
    starter: Starter = start,
    missing: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run a plan in the folder and return its report.

    limits: of each process, the reference's and the run's own; starter: who starts them.
    missing: references that could not be drawn a moment ago, by the id of the run that draws them, and why. They aren't
    tried again; one that can't be drawn now is added.
    Raises RefusedByWorker if it could not start, DiskFull if there is no room for it.
    """
    run = plan.setting.run
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        reference = find_reference(plan, overrides, progress, limits, starter, missing)
    except KeyboardInterrupt:
        prepare_folder(folder)
        ending = Ending(Status.INTERRUPTED, "interrupted by Ctrl-C while the reference was drawn")
        report = report_failure(plan, overrides, folder, ending, started_at)
    else:
        request = Request(run.to_dict(), overrides, reference)
        report = run_in_process(plan, request, folder, progress, limits=limits, starter=starter)
    write_run_page(folder, report)
    return report


def new_folder() -> Path:
    """A folder of outputs/, named by the time, that no run has used yet."""
    now = datetime.now()
    day = Path("outputs") / f"{now:%Y-%m-%d}"
    names = (f"{now:%H-%M-%S}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(day / name for name in names if not (day / name).exists())
