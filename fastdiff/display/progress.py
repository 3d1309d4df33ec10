"""How a run and a sweep get on, on the screen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastdiff.display import words

if TYPE_CHECKING:
    from rich.console import RenderableType


class LineProgress:
    """Progress without a terminal: one plain line whenever something new begins."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, message: str) -> None:
        if message != self._last:
            print(f"  {message} ...", file=sys.stderr, flush=True)
            self._last = message

    def tell(self, phase: str, done: int, of: int) -> None:
        if phase != "first call":
            self.say(phase)


class BarProgress:
    """Progress on a terminal: one line with a spinner, what is going on, and the time it has taken."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=2,  # a busier line would take time from what is being timed
        )
        self._task = self._bar.add_task("starting", total=None)
        self._phase = ""

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        self._phase = message
        self._bar.reset(self._task, description=message, total=None)

    def tell(self, phase: str, done: int, of: int) -> None:
        if phase == "first call":
            phase = self._phase if self._phase in ("compiling", "first call") else phase
        elif phase != self._phase:
            self.say(phase)
        self._bar.update(self._task, description=phase, completed=done, total=of or None)


def progress() -> LineProgress | BarProgress:
    """A bar on a terminal, lines elsewhere."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return BarProgress()
    return LineProgress()


Row = Mapping[str, Any]


_LAST = 8
"""Finished cells that stay in sight."""


class Pace:
    """How far a sweep is, and when it may end: the cells that are left, at the pace of those that this call has run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._before: int | None = None

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began

    def look(self, rows: Sequence[Row]) -> tuple[int, int, float | None]:
        """Finished rows, all rows, and the seconds that are left; None before the first cell of this call is finished."""
        finished = sum(row["status"] is not None or row["same_as"] is not None for row in rows)
        if self._before is None:
            self._before = finished
        done = finished - self._before
        left = len(rows) - finished
        return finished, len(rows), self.elapsed_s / done * left if done else None


def cell_words(row: Row) -> str:
    """The values that tell a cell from others: `bf16 math int8`."""
    return " ".join(row["values"].values()) or "the only cell"


def outcome(row: Row) -> str:
    """What came of a finished cell, in a few words."""
    if row["latency_s"] is None:
        said = (row["reason"] or "").splitlines()
        return f"{row['status']}{f': {said[0]}' if said else ''}"
    faster = row["speedup"]["ratio"] if row["speedup"] else None
    times = f", {faster:.2f}x" if faster else ""
    status = "" if row["status"] == "ok" else f"{row['status']}, "
    mark = ", disturbed" if row.get("disturbed") else ""
    return f"{status}{words.seconds(row['latency_s']['median'])} a call{times}{mark}"


def best(rows: Sequence[Row]) -> Row | None:
    """The fastest cell that ended well."""
    good = [row for row in rows if row["status"] == "ok" and row["latency_s"] is not None]
    return min(good, key=lambda row: row["latency_s"]["median"], default=None)


class LineBoard:
    """Without a terminal: a plain line for each cell once it is finished, or can't be run."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._said: set[str] = set()
        self._first = True

    def __enter__(self) -> LineBoard:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, rows: Sequence[Row], running: Mapping[str, Row]) -> None:
        finished, count, left_s = self._pace.look(rows)
        new = [r for r in rows if r["status"] is not None and r["cell"] not in self._said]
        for row in new:
            self._said.add(row["cell"])
            if self._first and row["report"]:
                continue  # an earlier call's
            print(f"  {row['place']}/{count}  {cell_words(row)}: {outcome(row)}", file=sys.stderr)
        ended = any(row["status"] == "interrupted" for row in new)
        if new and finished < count and left_s is not None and not ended:
            print(f"  {finished} of {count} done, {about(left_s)} left", file=sys.stderr)
        self._first = False
        sys.stderr.flush()


class LiveBoard:
    """On a terminal: what runs, what was last finished, the best so far, and when it may end."""

    def __init__(self, pace: Pace | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._pace = pace or Pace()
        self._live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)

    def __enter__(self) -> LiveBoard:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, rows: Sequence[Row], running: Mapping[str, Row]) -> None:
        self._live.update(self.render(rows, running), refresh=True)

    def render(
        self, rows: Sequence[Row], running: Mapping[str, Row], now: Callable[[], float] = time.time
    ) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        finished, count, left_s = self._pace.look(rows)
        end = "" if left_s is None else f", {about(left_s)} left"
        head = Text(f"{finished} of {count} cells, {words.seconds(self._pace.elapsed_s)}{end}")
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
        ended = [row for row in rows if row["finished_at"] and row["same_as"] is None]
        for row in sorted(ended, key=lambda row: row["finished_at"])[-_LAST:]:
            table.add_row(f"{row['place']}", Text(cell_words(row)), Text(outcome(row)))
        for row in rows:
            mark = running.get(row["cell"])
            if mark and row["same_as"] is None:
                lasted = words.seconds(max(0.0, now() - mark["started_at"]))
                said = Text(f"{mark['phase']}, {lasted}")
                table.add_row(f"{row['place']}", Text(cell_words(row)), said)
        bar = Padding(ProgressBar(count, finished, width=60), 0)  # which ends its line
        lines: list[RenderableType] = [head, bar, table]
        if (fastest := best(rows)) is not None:
            lines.append(Text(f"best so far: {cell_words(fastest)}, {outcome(fastest)}"))
        return Group(*lines)


def about(seconds: float) -> str:
    """`about 40 s`, `about 3 min`, `about 2.5 h`."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def board() -> LineBoard | LiveBoard:
    """A live table on a terminal, lines elsewhere."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return LiveBoard()
    return LineBoard()
