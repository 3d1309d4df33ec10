"""What a sweep and its rows are called, the same in the table, in charts and on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from fastdiff.display import words
from fastdiff.measuring.fields import MeasuredOn

NOT_RUN = "not run"
_SILENT = ("none", "default")
"""Values that a short label leaves out: they choose nothing."""
_SLOTS_END = "."


def label(row: Mapping[str, Any], varied: Sequence[str]) -> str:
    """`bf16, sdpa, int8`: what a row chooses; what chooses nothing is left out, and a key's own value has its name."""
    said = [
        f"{key.rpartition(_SLOTS_END)[2]} {row['values'][key]}"
        if _SLOTS_END in key
        else row["values"][key]
        for key in varied
        if row["values"].get(key) not in (None, *_SILENT)
    ]
    return ", ".join(said) or "nothing chosen"


def status(row: Mapping[str, Any]) -> str:
    """`ok`, `invalid output`, `not run`."""
    return str(row["status"] or NOT_RUN).replace("_", " ")


def marked_status(row: Mapping[str, Any]) -> str:
    """`ok, disturbed`: a status that says, too, if others took the machine while the row was measured."""
    return f"{status(row)}, disturbed" if row.get("disturbed") else status(row)


def doubt(data: Mapping[str, Any]) -> str | None:
    """Which rows others disturbed, and what that means; None where none was."""
    places = [str(row["place"]) for row in data["rows"] if row.get("disturbed")]
    if not places:
        return None
    many = f"{', '.join(places[:5])} and {len(places) - 5} more" if len(places) > 6 else ""
    rows = f"{'row' if len(places) == 1 else 'rows'} {many or ', '.join(places)}"
    base = baseline(data)
    why = "every speed-up is doubtful: its baseline is among them; " if base and base.get(
        "disturbed"
    ) else ""  # fmt: skip
    return f"others took the machine while {rows} ran: {why}sweep.retry=disturbed measures again"


def first_line(text: str | None) -> str:
    """The first line of a reason."""
    return (text or "").strip().partition("\n")[0].strip()


def counts(rows: Sequence[Mapping[str, Any]]) -> str:
    """`24 cells: 18 ok, 4 incompatible, 2 not run; 3 are the same run as another`."""
    found: dict[str, int] = {}
    for row in rows:
        found[status(row)] = found.get(status(row), 0) + 1
    each = ", ".join(f"{count} {name}" for name, count in found.items())
    again = sum(row["same_as"] is not None for row in rows)
    same = f"; {again} {'is' if again == 1 else 'are'} the same run as another" if again else ""
    return f"{words.counted(len(rows), 'cell')}: {each or 'none'}{same}"


def moment(at: str) -> str:
    """A time of ISO 8601 to the minute: `2026-11-21 02:00 UTC`."""
    return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M %Z}".strip()


def on(data: Mapping[str, Any]) -> str:
    """` on cpu, 2 threads`, or ` on cuda, NVIDIA H200`: where rows were measured; what to say where none was."""
    environment = data["environment"]
    if not environment:
        return ", nothing measured" + (" yet" if data["state"] == "running" else "")
    return f" on {words.device(MeasuredOn.of(environment))}"


def state(data: Mapping[str, Any]) -> str | None:
    """What a sweep that isn't complete lacks, in a sentence; None for a complete one."""
    if data["state"] == "complete":
        return None
    done = sum(row["status"] not in (None, "interrupted") for row in data["rows"])
    told = {
        "running": "This was written while the sweep was running",
        "interrupted": "The sweep was interrupted",
        "stopped": "The sweep stopped",
    }[data["state"]]
    return f"{told}: {done} of {words.counted(len(data['rows']), 'cell')} have ended."


def baseline(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row that speed-ups are measured against; None before one was measured."""
    return next((row for row in data["rows"] if row["cell"] == data["baseline"]), None)
