"""`index.html`: one file with everything in it, which opens from disk and loads nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastdiff import latency
from fastdiff.display.sweep import cells, labels
from fastdiff.display.sweep.charts import BAR_PX, MOST_BARS, charts, uncompared
from fastdiff.display.sweep.pictures import Pictures, embed

_FILES = Path(__file__).parent
_FIRST_DESCENDING = ("speed-up", "quality")
_ENVIRONMENT = (
    "device", "device_name", "capability", "threads", "cpu", "memory_bytes", "os", "python", "torch", "diffusers",
    "transformers", "torchao", "git",
)  # fmt: skip


def page(folder: Path, data: Mapping[str, Any]) -> str:
    """The page of a sweep. folder: what the paths of pictures in data are relative to."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    script = (_FILES / "page.js").read_text(encoding="utf-8")
    plotly, plotly_hash = _plotly()
    pictures = embed(folder, data["rows"])
    varied, rows = data["varied"], data["rows"]
    return templates.get_template("index.html.jinja").render(
        data=data,
        rows=[_shown(row, varied) for row in rows],
        columns=_columns(varied),
        choices={
            key: list(dict.fromkeys(row["values"].get(key, "") for row in rows)) for key in varied
        },
        statuses=list(dict.fromkeys(labels.status(row) for row in rows)),
        counts=labels.counts(rows),
        state=labels.state(data),
        doubt=labels.doubt(data),
        times=_times(data),
        on=labels.on(data),
        highlights=cells.highlights(rows, varied),
        baselines=[
            (row["cell"], f"{row['place']}  {labels.label(row, varied)}")
            for row in rows
            if latency.median_s(row)
            and row["same_as"] is None
            and (row["status"] == "ok" or row["cell"] == data["baseline"])
        ],
        method=latency.METHOD,
        uncompared=uncompared(data),
        environment=_environment(data["environment"] or {}),
        everything=_everything(data),
        content={
            "rows": {row["cell"]: _content(row, varied, pictures) for row in rows},
            "baseline": data["baseline"],
            "charts": charts(data),
            "bar_px": BAR_PX,
            "most_bars": MOST_BARS,
            "plotly_sha256": plotly_hash,
        },
        pictures=pictures.embedded,
        plotly=plotly,
        style=Markup((_FILES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        hashes=[_sha256(script), plotly_hash],
    )


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js, compressed and in base64, and the hash of the script itself."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().replace("\r\n", "\n")
    packed = gzip.compress(script.encode("utf-8"), 9, mtime=0)
    return base64.b64encode(packed).decode("ascii"), _sha256(script)


def _sha256(script: str) -> str:
    """A script's hash as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _times(data: Mapping[str, Any]) -> str:
    """`Started 2026-11-21 02:00 UTC, ended 2026-11-21 02:20 UTC`, as far as it is known."""
    known = (("Started", data["started_at"]), ("ended", data["finished_at"]))
    said = [f"{what} {labels.moment(at)}" for what, at in known if at]
    return ", ".join(said)


def _columns(varied: list[str]) -> list[dict[str, Any]]:
    names = ["#", *varied, "status", *cells.FIGURES]
    return [
        {
            "name": name,
            "kind": "choice"
            if 0 < index <= len(varied)
            else "numeric"
            if index > len(varied) + 1
            else "",
            "first": "descending" if name in _FIRST_DESCENDING else "ascending",
        }
        for index, name in enumerate(names)
    ]


def _shown(row: Mapping[str, Any], varied: list[str]) -> dict[str, Any]:
    """A row as the table has it; without figures it has its reason in their place."""
    measured = latency.median_s(row) is not None
    return {
        "cell": row["cell"],
        "place": row["place"],
        "label": labels.label(row, varied),
        "values": [row["values"].get(key, "") for key in varied],
        "status": labels.status(row),
        "pareto": row["pareto"],
        "disturbed": row.get("disturbed"),
        "figures": cells.figure_cells(row) if measured else None,
        "reason": labels.first_line(row["reason"]),
        "instead": labels.first_line(row["instead"]),
        "pictures": len(row["images"]),
    }


def _content(row: Mapping[str, Any], varied: list[str], pictures: Pictures) -> dict[str, Any]:
    """What the page's script needs of a row."""
    values = [row["values"].get(key, "") for key in varied]
    latency = row["latency_s"]
    sorts = [
        row["place"],
        *map(_number, values),
        labels.status(row),
        *(c.sort for c in cells.figure_cells(row)),
    ]
    return {
        "cell": row["cell"],
        "place": row["place"],
        "same_as": row["same_as"],
        "label": labels.label(row, varied),
        "values": values,
        "status": labels.status(row),
        "sorts": sorts,
        "latency_s": {name: latency[name] for name in ("median", "ci95")} if latency else None,
        "reason": row["reason"],
        "instead": row["instead"],
        "log": row["log"],
        "log_tail": row["log_tail"],
        "details": cells.details(row),
        "choices": " ".join(f"{slot}={option}" for slot, option in row["choices"].items()),
        "applied": row["applied"],
        "notices": row["notices"],
        "disturbed": row.get("disturbed"),
        "command": row["command"],
        "recipe": row["recipe"],
        "report": row["report"],
        "images": pictures.of(row["images"]),
        "reference": pictures.of(row["reference"]),
    }


def _number(value: str) -> float | str:
    """A typed value as what it is ordered by."""
    try:
        number = float(value)
    except ValueError:
        return value
    return number if abs(number) < 1e300 else value


def _environment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The machine in a few lines."""
    from fastdiff.display import words

    return [
        (
            name.removesuffix("_bytes").replace("_", " "),
            words.size(found[name]) if name.endswith("_bytes") else str(found[name]),
        )
        for name in _ENVIRONMENT
        if found.get(name) is not None
    ]


def _everything(data: Mapping[str, Any]) -> str:
    """All that was recorded of the machine and of how the sweep was made."""
    return json.dumps(
        {
            "environment": data["environment"],
            "made_with": data["made_with"],
            "launcher": data["launcher"],
        },
        indent=2,
        ensure_ascii=False,
    )
