"""`sweep.md`: the sweep for people who read it in a repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastdiff import latency
from fastdiff.display.sweep import cells, labels

_LONGEST_NOTE = 90


def markdown(data: Mapping[str, Any]) -> str:
    """The sweep as Markdown: a table of all rows, every reason in full below it, and the command."""
    varied, rows = data["varied"], data["rows"]
    lines = [f"# {_plain(data['name'])}", ""]
    lines += [
        f"{_plain(str(data['model']) + labels.on(data))}. {labels.counts(rows)}.",
        "",
    ]
    if told := labels.state(data):
        error = f" {_plain(data['error'])}" if data["error"] else ""
        lines += [f"**{told}**{error} The command at the end goes on from here.", ""]
    sides = ["---:", *["---"] * (len(varied) + 1), *["---:"] * len(cells.FIGURES), "---"]
    headings = ["#", *varied, "status", *cells.FIGURES, "note"]
    lines += [_line(headings), "|" + "|".join(sides) + "|"]
    places = {row["cell"]: row["place"] for row in rows}
    lines += [_line(_row(row, varied, places)) for row in rows]
    lines += ["", *_notes(data), ""]
    if found := reasons(rows):
        lines += ["## Reasons", ""]
        for (status, reason, instead), among in found.items():
            lines.append(f"- **{_places(among)}** {status}: {_plain(reason)}")
            lines += [f"  instead: {_plain(instead)}"] if instead else []
        lines.append("")
    if notices := _notices(rows):
        lines += ["## To know", ""]
        lines += [f"- **{_places(places)}** {_plain(text)}" for text, places in notices.items()]
        lines.append("")
    lines += ["## Again", "", "```", data["command"], "```", ""]
    return "\n".join(lines)


def reasons(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[int]]:
    """Rows with the same status, reason and way out, by their numbers."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        if row["reason"]:
            key = (labels.status(row), row["reason"].strip(), (row["instead"] or "").strip())
            found.setdefault(key, []).append(row["place"])
    return found


def _notices(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in rows:
        for notice in row["notices"]:
            found.setdefault(notice, []).append(row["place"])
    return found


def _notes(data: Mapping[str, Any]) -> list[str]:
    lines = []
    if base := labels.baseline(data):
        name = labels.label(base, data["varied"])
        lines.append(f"- speed-up: over row {base['place']} ({_plain(name)}). {latency.METHOD}")
    if doubt := labels.doubt(data):
        lines.append(f"- **disturbed**: {_plain(doubt)}")
    lines.append("- latency: median, and its 95 % interval")
    lines.append(
        "- quality: PSNR of all pictures against the reference's; identical ones have none"
    )
    front = [row["place"] for row in data["rows"] if row["pareto"]]
    if front:
        lines.append(f"- no other row is as fast and as close to the reference: {_places(front)}")
    return lines


def _row(row: Mapping[str, Any], varied: Sequence[str], places: Mapping[str, int]) -> list[str]:
    said = [
        f"{cell.text} ({cell.note})" if cell.note and cell.text != "-" else cell.text
        for cell in cells.figure_cells(row)
    ]
    return [
        str(row["place"]),
        *(str(row["values"].get(key, "")) for key in varied),
        labels.marked_status(row),
        *said,
        _note(row, places),
    ]


def _note(row: Mapping[str, Any], places: Mapping[str, int]) -> str:
    if row["same_as"]:
        return f"the same run as {places.get(row['same_as'], row['same_as'])}"
    text = labels.first_line(row["reason"])
    return text if len(text) <= _LONGEST_NOTE else f"{text[: _LONGEST_NOTE - 3].rstrip()}..."


def _places(places: Sequence[int]) -> str:
    """`1, 2 and 5`."""
    first, last = places[:-1], places[-1]
    return f"{', '.join(map(str, first))} and {last}" if first else str(last)


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, values))} |"


def _plain(text: str) -> str:
    """Text on one line that Markdown doesn't take for its own."""
    one_line = " ".join(text.split())
    for sign, escaped in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("<", "&lt;"),
        ("*", "\\*"),
        ("_", "\\_"),
        ("`", "\\`"),
    ):
        one_line = one_line.replace(sign, escaped)
    return one_line
