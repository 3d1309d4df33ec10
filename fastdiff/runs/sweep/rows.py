"""A sweep's rows: of every cell what came of it, whether it ran, can't run, or hasn't yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastdiff.choices.recipe.writing import recipe_of, recipe_text
from fastdiff.errors import Problem, Status
from fastdiff.latency import pareto, speedup
from fastdiff.machine.files import sha256_of
from fastdiff.measuring.conditions import disturbances
from fastdiff.planning.cells import PlannedCell
from fastdiff.runs.folders import last_lines
from fastdiff.runs.sweep.folder import Folder
from fastdiff.runs.sweep.made_with import differences

_FIGURES = ("load_s", "first_call_s", "compile_s", "throughput_images_per_s", "peak_memory_bytes")


def blank_row(cell: PlannedCell, place: int) -> dict[str, Any]:
    """The row of a cell that hasn't run, or can't."""
    run = cell.run
    row: dict[str, Any] = {
        "cell": cell.name,
        "place": place,
        "values": cell.values,
        "overrides": list(cell.typed.overrides),
        "status": None if cell.possible else Status.INCOMPATIBLE.value,
        "reason": None,
        "instead": None,
        "log": None,
        "log_tail": [],
        "same_as": cell.same_as.name if cell.same_as else None,
        "choices": dict(run.choices) if run else {},
        "applied": [],
        "notices": [f"{notice.choice}: {notice.text}" for notice in cell.notices],
        "latency_s": None,
        "step_latency_s": None,
        **dict.fromkeys(_FIGURES),
        "compile_cache": None,
        "seconds": None,
        "quality": None,
        "images": [],
        "reference": [],
        "speedup": None,
        "pareto": False,
        "command": cell.command,
        "recipe": None,
        "report": None,
        "report_sha256": None,
        "finished_at": None,
        "disturbed": None,
    }
    if not cell.possible:
        row |= _told(cell.problems)
    return row


def _told(problems: Sequence[Problem]) -> dict[str, Any]:
    """Every reason on a line of its own, and every way out."""
    reasons = [f"{p.choice} {p.reason}".strip() for p in problems]
    ways = dict.fromkeys(p.instead for p in problems if p.instead)
    return {"reason": "\n".join(reasons), "instead": "; ".join(ways) or None}


def measured_row(row: Mapping[str, Any], folder: Folder, now: Mapping[str, str]) -> dict[str, Any]:
    """The row of a finished cell. row: as it was before; now: what it would be measured with today, if that is known."""
    name = row["cell"]
    report, beside, home = folder.report(name), folder.beside(name), f"cells/{name}"
    found = {
        **row,
        "status": report["status"],
        "reason": None,
        "instead": None,
        "applied": report["applied"],
        "notices": list(report["notices"]),
        "seconds": beside["seconds"],
        "report": f"{home}/report.json",
        "report_sha256": sha256_of(folder.cell(name) / "report.json"),
        "finished_at": report["finished_at"],
    }
    if (folder.cell(name) / "log.txt").is_file():
        found["log"] = f"{home}/log.txt"
    if report["error"]:
        found |= _failure(report["error"])
        if found["log"] and not found["log_tail"]:
            found["log_tail"] = last_lines(folder.cell(name) / "log.txt")
    if report["latency_s"]["samples"]:
        recipe = recipe_of(report, name.rpartition("-")[0], found["report_sha256"])
        found["recipe"] = recipe_text(recipe)
        found |= {key: report[key] for key in _FIGURES}
        found["latency_s"] = report["latency_s"]
        found["disturbed"] = disturbed(report)
        found["step_latency_s"] = report["step_latency_s"]["median"]
        found["compile_cache"] = report["compile"]["cache"]
        found["quality"] = report["quality"]
        found["images"] = [f"{home}/{image['path']}" for image in report["images"]]
        found["reference"] = beside["references"]
    changed = differences(beside["made_with"], now) if beside["made_with"] and now else []
    if changed:
        found["notices"].append(f"measured before something changed: {'; '.join(changed)}")
    return found


def disturbed(report: Mapping[str, Any]) -> str | None:
    """Who took the machine while a report's calls were timed; None where nobody did, or nothing was timed."""
    if not report["latency_s"]["samples"]:
        return None
    found = disturbances(report.get("conditions") or {}, report["environment"]["device"])
    return "; ".join(found) or None


def unmeasured_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose cell was finished once and is no longer there, or is broken."""
    lost = {
        "status": None,
        "reason": "its report is missing or broken; the sweep's line again measures it",
        "latency_s": None,
        "step_latency_s": None,
        "quality": None,
        "report": None,
        "report_sha256": None,
        "recipe": None,
        "log": None,
        "seconds": None,
        "finished_at": None,
        "compile_cache": None,
        "disturbed": None,
    }
    return {**row, **dict.fromkeys(_FIGURES), **lost, "images": [], "reference": [], "applied": []}


def _failure(error: Mapping[str, Any]) -> dict[str, Any]:
    """The message in two parts: what happened, and the way out, where it names one."""
    lines = [line.strip() for line in (error["message"] or "").splitlines() if line.strip()]
    ways = [line for line in lines if line.startswith("instead: ")]
    reason = "\n".join(line for line in lines if line not in ways)
    instead = "; ".join(way.removeprefix("instead: ") for way in ways)
    return {"reason": reason or None, "instead": instead or None, "log_tail": error["log_tail"]}


def completed(rows: Iterable[dict[str, Any]]) -> str | None:
    """Fill in what rows say of one another: repeated figures, speed-ups, the Pareto front. Returns the baseline's name.

    The baseline is the first row that was measured.
    """
    every = list(rows)
    by_name = {row["cell"]: row for row in every if row["same_as"] is None}
    own = ("cell", "place", "values", "overrides", "same_as", "command", "status")
    for row in every:
        if row["same_as"] is not None:
            first = by_name[row["same_as"]]
            row |= {key: value for key, value in first.items() if key not in own}
            row["status"] = first["status"]
    good = [row for row in every if row["status"] == Status.OK.value]
    baseline = good[0] if good else None
    front = pareto(good)
    for row in every:
        measured = baseline is not None and row["latency_s"] is not None
        row["speedup"] = speedup(row, baseline) if measured else None
        row["pareto"] = row["cell"] in front
    return baseline["cell"] if baseline else None


def counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows have each status, in the order of Status; `waiting` are those without one."""
    statuses = [row["status"] for row in rows]
    found = {status.value: statuses.count(status.value) for status in Status}
    found["waiting"] = statuses.count(None)
    return {name: count for name, count in found.items() if count}
