"""The page's charts as plotly's figures. Colours and the baseline are the page's: they change while it is open."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastdiff import latency
from fastdiff.display import words
from fastdiff.display.sweep import cells, labels
from fastdiff.errors import Status

Row = Mapping[str, Any]

BAR_PX = 36
"""Height of a bar with its label above it."""
MOST_BARS = 16
"""Bars shown at first; the page has a button for the others."""
_MARGIN = {"l": 8, "r": 16, "t": 8, "b": 44}


def charts(data: Mapping[str, Any]) -> dict[str, Any]:
    """`speedup`, `quality` and `memory`: plotly figures as plain data, None where there is nothing to draw.

    A row that is the same run as another, and one that isn't ok, isn't drawn.
    """
    rows = [
        row
        for row in data["rows"]
        if row["status"] == Status.OK and row["same_as"] is None and latency.median_s(row)
    ]
    found = {
        "speedup": _speedups(rows, data["varied"]),
        "quality": _scatter(rows, data["varied"]),
        "memory": _memory(rows, data["varied"]),
    }
    return {
        name: json.loads(figure.to_json()) if figure else None for name, figure in found.items()
    }


def uncompared(data: Mapping[str, Any]) -> list[str]:
    """Rows with a latency that the scatter can't place: `5 (fp32, math): not compared, quality=none`."""
    return [
        f"{row['place']} ({labels.label(row, data['varied'])}): "
        + (labels.first_line((row["quality"] or {}).get("reason")) or "not compared")
        for row in data["rows"]
        if row["status"] == Status.OK
        and row["same_as"] is None
        and latency.median_s(row)
        and latency.closeness_db(row) is None
    ]


def _name(row: Row, varied: Sequence[str]) -> str:
    """`3  bf16, sdpa`, escaped: plotly reads a few tags in texts; marked where others took the machine meanwhile."""
    mark = " (disturbed)" if row.get("disturbed") else ""
    return f"{row['place']}  {html.escape(labels.label(row, varied), quote=False)}{mark}"


def _bars(rows: Sequence[Row], values: Sequence[float], names: list[str], title: str) -> Any:
    """Horizontal bars, the first on top, each with its label above it."""
    import plotly.graph_objects as go

    figure = go.Figure(layout={"template": "none"})
    figure.add_bar(
        x=list(values),
        y=list(range(len(rows))),
        orientation="h",
        width=0.36,
        customdata=[row["cell"] for row in rows],
        hoverinfo="none",
    )
    shown = min(len(rows), MOST_BARS)
    figure.update_layout(
        template=None,
        height=shown * BAR_PX + 52,
        margin=_MARGIN,
        showlegend=False,
        dragmode=False,
        hovermode="closest",
        bargap=0,
        xaxis={
            "title": {"text": title, "standoff": 8},
            "rangemode": "tozero",
            "fixedrange": True,
            "nticks": 6,
            "zeroline": False,
        },
        yaxis={
            "range": [shown - 0.6, -0.8],
            "fixedrange": True,
            "visible": False,
        },
        annotations=[
            {
                "text": name,
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "y": index,
                "yshift": BAR_PX * 0.4,
                "showarrow": False,
                "borderpad": 0,
            }
            for index, name in enumerate(names)
        ],
    )
    return figure


def _speedups(rows: Sequence[Row], varied: Sequence[str]) -> Any:
    """Fastest first. The page fills in ratios, intervals and labels for the baseline that is chosen."""
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: latency.median_s(row) or 0)
    ratios = [row["speedup"]["ratio"] if row["speedup"] else 0 for row in ordered]
    names = [_name(row, varied) for row in ordered]
    figure = _bars(ordered, ratios, names, "times as fast as the baseline")
    figure.update_traces(
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [],
            "arrayminus": [],
            "thickness": 1.5,
            "width": 4,
        }
    )
    figure.add_vline(x=1, line={"width": 1, "dash": "dot"}, layer="below")
    return figure


def _memory(rows: Sequence[Row], varied: Sequence[str]) -> Any:
    """Least memory first; of the device where there is one, of the process otherwise."""
    known = [row for row in rows if cells.peak_bytes(row) is not None]
    if not known:
        return None
    ordered = sorted(known, key=lambda row: cells.peak_bytes(row) or 0)
    names = [f"{_name(row, varied)}  <b>{words.size(cells.peak_bytes(row))}</b>" for row in ordered]
    device = any(row["peak_memory_bytes"]["device_allocated"] is not None for row in ordered)
    where = "on the device" if device else "of the process"
    return _bars(
        ordered,
        [(cells.peak_bytes(row) or 0) / 1e9 for row in ordered],
        names,
        f"GB {where} at the peak",
    )


def _scatter(rows: Sequence[Row], varied: Sequence[str]) -> Any:
    """Latency against PSNR; identical pictures have a line of their own above the highest figure."""
    import plotly.graph_objects as go

    known = [row for row in rows if latency.closeness_db(row) is not None]
    if not known:
        return None
    finite = [db for row in known if math.isfinite(db := latency.closeness_db(row) or 0)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    room = max((high - low) * 0.2, 3.0)
    top = high + room
    front = latency.pareto(known)
    figure = go.Figure(layout={"template": "none"})
    for role, chosen in (("other", False), ("front", True)):
        among = sorted(
            (row for row in known if (row["cell"] in front) == chosen),
            key=lambda row: (latency.median_s(row) or 0, latency.closeness_db(row) or 0),
        )
        figure.add_scatter(
            x=[latency.median_s(row) for row in among],
            y=[min(latency.closeness_db(row) or 0, top) for row in among],
            mode="lines+markers+text" if chosen else "markers",
            line={"shape": "hv", "width": 1.5} if chosen else None,
            marker={
                "size": 10 if chosen else 8,
                "symbol": ["circle-open" if row.get("disturbed") else "circle" for row in among],
            },
            text=_numbers(among, top) if chosen else None,
            textposition="top left",
            cliponaxis=False,
            customdata=[row["cell"] for row in among],
            hovertext=[_told(row, varied) for row in among],
            hoverinfo="text",
            meta={"role": role},
        )
    shapes = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": top - room / 2,
            "y1": top - room / 2,
            "line": {"width": 1, "dash": "dot"},
        }
    ]
    figure.update_layout(
        template=None,
        height=420,
        margin={"l": 64, "r": 20, "t": 28, "b": 48},
        showlegend=False,
        dragmode=False,
        hovermode="closest",
        shapes=shapes if finite and len(finite) < len(known) else [],
        xaxis={
            "title": {"text": "latency, seconds", "standoff": 8},
            "fixedrange": True,
            "zeroline": False,
            "nticks": 6,
        },
        yaxis={
            "title": {"text": "PSNR against the reference, dB", "standoff": 4},
            "fixedrange": True,
            "zeroline": False,
            "range": [low - room / 2 if finite else top - 3, top + room / 2],
            **_levels(low, high, bool(finite), top if len(finite) < len(known) else None),
        },
    )
    return figure


def _numbers(front: Sequence[Row], top: float) -> list[str]:
    """Each point's number, left out where it would stand on the one before; top: where identical pictures lie, in dB."""
    points = [
        (latency.median_s(row) or 0, min(latency.closeness_db(row) or 0, top)) for row in front
    ]
    room = [0.04 * (max(side) - min(side)) for side in zip(*points, strict=True)]
    said: list[str] = []
    last: tuple[float, float] | None = None
    for row, point in zip(front, points, strict=True):
        near = last is not None and all(
            abs(a - b) < gap for a, b, gap in zip(point, last, room, strict=True)
        )
        said.append("" if near else str(row["place"]))
        last = last if near else point
    return said


def _levels(low: float, high: float, finite: bool, identical: float | None) -> dict[str, Any]:
    """Ticks in round dB between the figures, and one for identical pictures."""
    values: list[float] = []
    if finite:
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if (high - low) / s <= 6)
        values = [
            float(v)
            for v in range(step * math.floor(low / step), math.ceil(high) + 1, step)
            if low - step / 2 <= v <= high + 0.5
        ]
    texts = [f"{value:g}" for value in values]
    if identical is not None:
        values, texts = [*values, identical], [*texts, "identical"]
    return {"tickvals": values, "ticktext": texts}


def _told(row: Row, varied: Sequence[str]) -> str:
    """A point's text under the pointer."""
    quality = cells.figure_cells(row)[cells.FIGURES.index("quality")]
    said = ", ".join(filter(None, (quality.text, quality.note)))
    return f"{_name(row, varied)}<br>{words.seconds(latency.median_s(row))}, {html.escape(said, quote=False)}"
