"""What is shown while a sweep runs: lines without a terminal, a table on one."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest

from fastdiff.display.progress import LineBoard, LiveBoard, Pace, about, best, board, outcome


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def row(place: int, status: str | None = None, latency_s: float | None = None, **given: Any) -> Any:
    """A row with what boards look at."""
    found = {
        "cell": f"cell-{place}",
        "place": place,
        "values": {"generation.seed": str(place)},
        "status": status,
        "reason": None,
        "report": f"cells/{place}/report.json" if status else None,
        "same_as": None,
        "finished_at": f"2026-01-01T00:00:{place:02}" if status else None,
        "latency_s": None if latency_s is None else {"median": latency_s},
        "speedup": None,
    }
    return found | given


def test_the_pace_of_this_call_tells_what_is_left() -> None:
    clock = Clock()
    pace = Pace(clock)
    early = [row(1, "ok", 1.0), row(2), row(3), row(4, same_as="cell-1")]
    assert pace.look(early) == (2, 4, None)  # finished by an earlier call, and nothing to run
    clock.now_s = 30.0
    assert pace.look([row(1, "ok", 1.0), row(2, "failed"), row(3)]) == (2, 3, None)
    pace = Pace(clock)
    assert pace.look([row(n) for n in range(4)]) == (0, 4, None)
    clock.now_s = 50.0
    assert pace.elapsed_s == 20.0
    assert pace.look([row(0, "ok", 1.0), row(1), row(2), row(3)]) == (1, 4, 60.0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "about 1 s"), (89, "about 89 s"), (90, "about 2 min"), (9000, "about 2.5 h")],
)
def test_times_that_are_left_are_round(seconds: float, said: str) -> None:
    assert about(seconds) == said


def test_a_line_for_every_cell_once(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    rows = [row(1, "ok", 0.5), row(2), row(3), row(4)]
    rows.append(row(5, "incompatible", reason="it can't\nfor two reasons", report=None))
    with LineBoard(Pace(clock)) as lines:
        lines.show(rows, {})
        assert capsys.readouterr().err == "  5/5  5: incompatible: it can't\n"
        lines.show(rows, {"cell-2": {}})
        assert capsys.readouterr().err == ""
        clock.now_s = 10.0
        rows[1] = row(2, "ok", 0.25, speedup={"ratio": 2.0})
        lines.show(rows, {})
        assert capsys.readouterr().err == (
            "  2/5  2: 0.250 s a call, 2.00x\n  3 of 5 done, about 20 s left\n"
        )
        rows[2] = row(3, "timeout", reason="the run took longer than 8 s (sweep.timeout_s)")
        rows[3] = row(4, "over_budget", 0.5)
        lines.show(rows, {})
        assert capsys.readouterr().err == (
            "  3/5  3: timeout: the run took longer than 8 s (sweep.timeout_s)\n"
            "  4/5  4: over_budget, 0.500 s a call\n"
        )


def test_the_best_is_the_fastest_that_ended_well() -> None:
    rows = [row(1, "ok", 0.5), row(2, "ok", 0.25), row(3, "over_budget", 0.1), row(4)]
    assert best(rows) == rows[1]
    assert best([row(1)]) is None
    assert outcome(row(1, "crashed")) == "crashed"


def drawn(rows: list[Any], running: dict[str, Any], elapsed_s: float = 0.0) -> list[str]:
    """The live table's lines on a terminal of 80 columns, at 100 s after the epoch."""
    from rich.console import Console

    clock = Clock()
    live = LiveBoard(Pace(clock))
    live.render([r | {"status": None} for r in rows], {})
    clock.now_s = elapsed_s
    console = Console(width=80, record=True, file=StringIO(), color_system=None)
    console.print(live.render(rows, running, now=lambda: 100.0))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_table_says_what_runs_and_what_is_done_and_the_best() -> None:
    rows = [row(1, "ok", 0.5), row(2, "ok", 0.25, speedup={"ratio": 2.0}), row(3), row(4)]
    running = {"cell-3": {"phase": "timed calls", "started_at": 88.0}}
    head, bar, *lines = drawn(rows, running, elapsed_s=30.0)
    assert head == "2 of 4 cells, 30.0 s, about 30 s left"
    assert bar == "━" * 30  # of 60
    assert lines == [
        "1 1 0.500 s a call",
        "2 2 0.250 s a call, 2.00x",
        "3 3 timed calls, 12.0 s",
        "best so far: 2, 0.250 s a call, 2.00x",
    ]


def test_the_table_stays_within_eighty_columns_and_twenty_lines() -> None:
    long = {"generation.prompt": '["[bold]a[/nothing]", "b"] ' + "and so on " * 20, "quant": "int8"}
    rows = [row(n, "failed", values=long, reason="why " * 60) for n in range(1, 30)]
    rows += [row(30, values=long), row(31, "ok", 0.5, values=long)]
    running = {"cell-30": {"phase": "a phase with many words " * 9, "started_at": 88.0}}
    lines = drawn(rows, running)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 20
    assert any("failed: why" in line for line in lines)
    assert any("[bold]a[/nothing]" in line for line in lines)


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(board(), LineBoard)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(board(), LineBoard)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(board(), LiveBoard)
