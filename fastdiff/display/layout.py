"""Lines of the screen: 80 columns, no colour needed."""

from __future__ import annotations

import textwrap
from pathlib import Path

from fastdiff.errors import wrap_words

WIDTH = 80
_INDENT = 16


def labelled(label: str, text: str) -> str:
    """A labelled line, wrapped under its text."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"  {label:<{_INDENT - 3}} ",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


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
