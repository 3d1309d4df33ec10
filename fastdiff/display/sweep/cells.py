"""One row's figures in words: the table's columns, and what a row's details list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastdiff import latency
from fastdiff.display import words
from fastdiff.display.sweep import labels
from fastdiff.measuring.fields import Quality, Times

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell of the table.

    text: its figure. note: what is smaller beside it. sort: what rows are ordered by, None where there is nothing.
    """

    text: str
    note: str = ""
    sort: float | str | None = None


FIGURES = ("speed-up", "latency", "peak memory", "quality", "compile")
"""Headings of the columns with figures, in the order of `figure_cells`."""


def figure_cells(row: Row) -> list[Cell]:
    """Cells in the order of FIGURES."""
    return [_speedup(row), _latency(row), _memory(row), _quality(row), _compile(row)]


def _speedup(row: Row) -> Cell:
    found = row["speedup"]
    if not found:
        return Cell("-")
    note = "{:.2f} to {:.2f}".format(*found["ci95"]) if found["ci95"] else ""
    return Cell(f"{found['ratio']:.2f}×", note, found["ratio"])


def _latency(row: Row) -> Cell:
    median = latency.median_s(row)
    if median is None:
        return Cell("-")
    interval = words.interval(Times.of(row["latency_s"])).replace(" s to ", " to ").lstrip("-")
    return Cell(words.seconds(median), interval, median)


def peak_bytes(row: Row) -> int | None:
    """Peak memory in bytes: allocated on the device if there is one, the host's otherwise."""
    memory = row["peak_memory_bytes"]
    if not memory:
        return None
    device: int | None = memory["device_allocated"]
    host: int | None = memory["host"]
    return host if device is None else device


def _memory(row: Row) -> Cell:
    return Cell(words.size(peak_bytes(row)), "", peak_bytes(row))


def _quality(row: Row) -> Cell:
    closeness = latency.closeness_db(row)
    if closeness is None:
        why = row["reason"] or (row["quality"] or {}).get("reason")
        return Cell("-", labels.first_line(why))
    if row["quality"]["identical"]:
        itself = row["quality"].get("reference") == "itself"
        return Cell("reference" if itself else "identical", "", 1e9)
    ssim = row["quality"].get("ssim")
    return Cell(f"{closeness:.1f} dB", f"SSIM {ssim:.4f}" if ssim is not None else "", closeness)


def _compile(row: Row) -> Cell:
    cache = row["compile_cache"]
    if row["compile_s"] is None:
        return Cell("-")
    if cache in (None, "none") and not row["compile_s"]:
        return Cell("none", "", 0)
    return Cell(words.seconds(row["compile_s"]), cache if cache != "none" else "", row["compile_s"])


def details(row: Row) -> list[tuple[str, str]]:
    """What was measured of a row beside the table's columns: labels and texts, without what is unknown."""
    latency, memory = row["latency_s"], row["peak_memory_bytes"] or {}
    found = [
        ("load", words.seconds(row["load_s"])),
        ("first call", words.seconds(row["first_call_s"])),
        ("latency", _timed(latency)),
        ("one step", words.seconds(row["step_latency_s"])),
        ("pictures a second", words.rate(row["throughput_images_per_s"])),
        ("memory allocated on the device", words.size(memory.get("device_allocated"))),
        ("memory reserved on the device", words.size(memory.get("device_reserved"))),
        ("memory of the process", words.size(memory.get("host"))),
        ("quality", words.quality(Quality.of(row["quality"])) if row["quality"] else "-"),
        ("the whole cell", words.seconds(row["seconds"])),
        ("ended", labels.moment(row["finished_at"]) if row["finished_at"] else "-"),
    ]
    return [(name, text) for name, text in found if text != "-"]


def _timed(latency: Mapping[str, Any] | None) -> str:
    if not latency or latency["median"] is None:
        return "-"
    spread = words.spread(Times.of(latency))
    calls = words.counted(len(latency["samples"]), "call")
    return f"median of {calls}{f', {spread}' if spread else ''}"


def highlights(rows: Sequence[Row], varied: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that a reader looks for first: fastest, fastest with the reference's pictures, least memory."""
    ok = [row for row in rows if row["status"] == "ok" and latency.median_s(row)]
    same = [row for row in ok if row["quality"] and row["quality"]["identical"]]
    known = [row for row in ok if peak_bytes(row) is not None]
    wanted = (
        ("Fastest", ok, latency.median_s, words.seconds),
        ("Fastest with identical pictures", same, latency.median_s, words.seconds),
        ("Least memory", known, peak_bytes, words.size),
    )
    found = []
    for title, among, figure, said in wanted:
        if among:
            row = min(among, key=figure)  # type: ignore[arg-type]
            quality = _quality(row)
            found.append(
                {
                    "title": title,
                    "cell": row["cell"],
                    "place": row["place"],
                    "figure": said(figure(row)),  # type: ignore[arg-type]
                    "label": labels.label(row, varied),
                    "quality": _told(quality.text),
                    "disturbed": row.get("disturbed"),
                }
            )
    return found


def _told(quality: str) -> str:
    """A quality by itself: `PSNR 41.2 dB`, `identical pictures`."""
    if quality.endswith("dB"):
        return f"PSNR {quality}"
    return {"-": "pictures not compared", "reference": "the reference"}.get(
        quality, f"{quality} pictures"
    )
