"""The end of a sweep on the screen: its table in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fastdiff import latency
from fastdiff.display import words
from fastdiff.display.layout import WIDTH, headline, labelled, table
from fastdiff.display.sweep import cells, labels
from fastdiff.display.sweep.markdown import reasons

_INDENT = 18
_MOST_ROWS = 20
_MOST_REASONS = 8
_LONGEST_REASON = 240


FIGURES = ("status", "latency", "speed-up", "PSNR", "memory")


def sweep_text(data: Mapping[str, Any]) -> str:
    """The measured rows, fastest first where there are many; the others by their reasons."""
    rows = data["rows"]
    measured = [row for row in rows if latency.median_s(row) is not None]
    shown = measured
    if len(measured) > _MOST_ROWS:
        ok_first = sorted(measured, key=lambda row: (row["status"] != "ok", latency.median_s(row)))
        shown = ok_first[:_MOST_ROWS]
    lines = [headline(f"sweep {data['name']}: {data['model']}{labels.on(data)}"), ""]
    if shown:
        lines += [_table(shown, data["varied"]), ""]
    if left := len(measured) - len(shown):
        lines.append(
            sweep_row(
                "", f"the fastest {len(shown)} of {len(measured)}; {left} more are on the page"
            )
        )
    lines.append(sweep_row("cells", labels.counts(rows)))
    if base := labels.baseline(data):
        lines.append(
            sweep_row("speed-up", f"over {base['place']}: {labels.label(base, data['varied'])}")
        )
    if doubt := labels.doubt(data):
        lines.append(sweep_row("disturbed", doubt))
    lines += _reasons(rows)
    if data["state"] != "complete":
        because = f": {labels.first_line(data['error'])}" if data["error"] else ""
        lines.append(
            sweep_row("state", f"{data['state']}{because}; the same line again goes on from here")
        )
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> str:
    headings, values = _choices(rows, varied)
    cells = [
        [str(row["place"]), *chosen, *_figures(row)]
        for row, chosen in zip(rows, values, strict=True)
    ]
    return table(["", *headings, *FIGURES], cells, wrapped=headings, right=[""])


def _choices(
    rows: Sequence[Mapping[str, Any]], varied: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Headings and values: a column for each varied key where they fit, one for all of them otherwise."""
    headings = [key.rpartition(".")[2] for key in varied]
    values = [[str(row["values"].get(key, "")) for key in varied] for row in rows]
    widths = [max(map(len, column)) + 1 for column in zip(headings, *values, strict=True)]
    others = [["", *FIGURES], *([str(row["place"]), *_figures(row)] for row in rows)]
    taken = [max(map(len, column)) + 1 for column in zip(*others, strict=True)]
    if sum(widths) + sum(taken) <= WIDTH - 2:
        return headings, values
    return ["choices"], [[labels.label(row, varied)] for row in rows]


def _figures(row: Mapping[str, Any]) -> list[str]:
    speedup = row["speedup"]
    quality = cells.figure_cells(row)[cells.FIGURES.index("quality")].text
    return [
        labels.marked_status(row),
        words.seconds(latency.median_s(row)),
        f"{speedup['ratio']:.2f}x" if speedup else "-",
        quality,
        words.size(cells.peak_bytes(row)),
    ]


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Reasons, those of most rows first; one that few rows have is left to the page where there are many."""
    found = sorted(reasons(rows).items(), key=lambda each: -len(each[1]))
    lines = []
    for (status, reason, instead), places in found[:_MOST_REASONS]:
        way_out = f"; instead: {labels.first_line(instead)}" if instead else ""
        text = textwrap.shorten(
            f"{labels.first_line(reason)}{way_out}", _LONGEST_REASON, placeholder=" ..."
        )
        lines.append(sweep_row(status, f"{_numbers(places)}: {text}"))
    left = sum(len(places) for _, places in found[_MOST_REASONS:])
    if left:
        lines.append(
            sweep_row("", f"the reasons of {words.counted(left, 'more row')} are on the page")
        )
    return lines


def _numbers(places: Sequence[int]) -> str:
    """`3, 5, 8`; `3, 5, 8 and 9 more` where there are many."""
    if len(places) <= 6:
        return ", ".join(map(str, places))
    return f"{', '.join(map(str, places[:5]))} and {len(places) - 5} more"


def sweep_row(label: str, text: str) -> str:
    """A labelled line below the table."""
    return labelled(label, text, _INDENT)
