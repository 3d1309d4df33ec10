"""A sweep for people: `sweep.csv`, `sweep.md`, the page `index.html`, and its table on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdiff.display.sweep.text import sweep_row, sweep_text
from fastdiff.machine.files import write_text

__all__ = ["sweep_row", "sweep_text", "write_sweep_pages"]


def write_sweep_pages(folder: Path, data: dict[str, Any]) -> None:
    """Write `sweep.csv`, `sweep.md` and `index.html` beside `sweep.json`, whose content data is.

    Pictures are read from the folder. Raises OSError where it can't be written.
    """
    from fastdiff.display.sweep.markdown import markdown
    from fastdiff.display.sweep.page import page
    from fastdiff.display.sweep.spreadsheet import csv_text

    write_text(folder / "sweep.csv", csv_text(data))
    write_text(folder / "sweep.md", markdown(data))
    write_text(folder / "index.html", page(folder, data))
