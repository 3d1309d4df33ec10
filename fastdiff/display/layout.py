"""Lines of the screen: 80 columns, no colour needed."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from fastdiff.errors import wrap_words

WIDTH = 80
_INDENT = 16


def labelled(label: str, text: str, indent: int = _INDENT) -> str:
    """A labelled line, wrapped under its text."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"  {label:<{indent - 3}} ",
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    wrapped: Collection[str] = (),
    right: Collection[str] = (),
) -> str:
    """Columns under their headings, as wide as their longest cell; `wrapped` ones give way where the screen is too narrow.

    Two blanks stand before it, as before every line but a headline.
    """
    from rich.console import Console
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for heading in headings:
        made.add_column(
            heading,
            overflow="fold",
            no_wrap=heading not in wrapped,
            justify="right" if heading in right else "left",
        )
    for row in rows:
        made.add_row(*row)
    console = Console(
        width=WIDTH - 2, color_system=None, markup=False, emoji=False, highlight=False
    )
    with console.capture() as captured:
        console.print(made)
    return "\n".join(f"  {line}".rstrip() for line in captured.get().rstrip().splitlines())


def headline(text: str) -> str:
    """The first line of a screen: what it is about."""
    return textwrap.fill(
        f"fastdiff  {text}",
        WIDTH,
        subsequent_indent=" " * 10,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shown(path: Path) -> str:
    """A path as a person would type it from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def in_columns(text: str, columns: int = 80) -> str:
    """A text whose long lines go on below themselves, further in than what belongs to them; words stay whole."""
    lines = []
    for line in text.split("\n"):
        inside = " " * (len(line) - len(line.lstrip(" ")))
        lines += wrap_words(line, columns, f"{inside}    ") or [""]
    return "\n".join(lines)
