"""Two reports' environments side by side, for people: what `diff-env` prints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from fastdiff.display import words
from fastdiff.display.layout import table

_COLUMNS = 80
_INDENT = 4
_ABSENT = {"packages.": "not installed", "environment_variables.": "not set"}


def render(a: str, b: str, found: Mapping[str, Any]) -> str:
    """The difference of two reports as text; a, b: what they were called."""
    lines = [f"fastdiff  diff-env, A -> B\n  A  {a}\n  B  {b}"]
    if is_empty(found):
        lines.append("  nothing that is recorded differs")
    for group, entries in {**found["environment"], "choices": found["choices"]}.items():
        if entries:
            lines += [f"  {group}", *_rows(entries)]
    lines += _figures(found["figures"])
    return "\n".join(lines)


def _rows(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    shown = {field: _short(field) for field in entries}
    width = min(28, max(map(len, shown.values())))
    lines = []
    for field, entry in entries.items():
        if missing := entry.get("missing"):
            said = [f"not recorded in {missing.upper()}"]
        else:
            before, after = _told_apart(field, entry["a"], entry["b"])
            said = [f"{before} -> {after}"]
            if len(said[0]) + width + _INDENT + 2 > _COLUMNS:
                said = [before, f"-> {after}"]
        lines += _laid_out(shown[field], width, said)
    return lines


def _laid_out(label: str, width: int, said: list[str]) -> list[str]:
    """A label and its lines beside it; below it where the label is too long."""
    lines = []
    if len(label) > width:
        lines.append(" " * _INDENT + label)
        label = ""
    for text in said:
        for part in textwrap.wrap(text, _COLUMNS - width - _INDENT - 2) or [""]:
            lines.append(f"{' ' * _INDENT}{label:<{width}}  {part}".rstrip())
            label = ""
    return lines


def _short(field: str) -> str:
    """A field as the report or the command line calls it; a package and a variable by its own name."""
    for group in _ABSENT:
        field = field.removeprefix(group)
    return field


def _told_apart(field: str, a: Any, b: Any) -> tuple[str, str]:
    """Two values in words; exactly as they were recorded where the words are the same."""
    before, after = _value(field, a), _value(field, b)
    return (json.dumps(a), json.dumps(b)) if before == after else (before, after)


def _value(field: str, value: Any) -> str:
    if value is None:
        absent = (text for group, text in _ABSENT.items() if field.startswith(group))
        return next(absent, "none")
    if field.endswith("bytes"):
        return words.size(value) if isinstance(value, int) else str(value)
    if field.endswith("share"):
        return f"{value:.0%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if field == "git":
        return str(value)[:12]
    return value if isinstance(value, str) else json.dumps(value)


def _figures(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each figure of both runs, and the ratio of what can be divided; what neither has is left out."""
    rows = [
        words.compared(name, pair["a"], pair["b"])
        for name, pair in figures.items()
        if (pair["a"], pair["b"]) != (None, None)
    ]
    return table(("figures", "A", "B", "ratio"), rows, right=("A", "B", "ratio")).splitlines()


def is_empty(found: Mapping[str, Any]) -> bool:
    """Whether nothing that is recorded differs, whatever the figures say."""
    return not found["choices"] and not any(found["environment"].values())
