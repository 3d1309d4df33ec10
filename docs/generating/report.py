"""The fields of `report.json` by the dataclasses that the program writes and reads them with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

from fastdiff.choices.docstrings import key_texts
from fastdiff.measuring.fields import Part, Report, hints_of, name_of, part_in
from generating.docstrings import type_words
from generating.markdown import anchor, definition, marked, sentence, text

HEADINGS = {
    "schema": "The run",
    "plan": "What was planned, and what really happened",
    "import_s": "Times",
    "compile": "Compiling",
    "peak_memory_bytes": "Memory",
    "parts_s": "Where the time goes",
    "images": "Quality",
    "exactness": "Exactness",
    "conditions": "Conditions while calls were timed",
    "flags_at_start": "The machine and its software",
}
"""What stands above a field and those after it."""


@dataclass(frozen=True)
class Field:
    """One field. path: `latency_s.median`, with `[]` behind a list. kind: its unit or type. meaning: a plain text."""

    path: str
    kind: str
    meaning: str


@cache
def described() -> dict[str, Field]:
    """Every field by its path, in the report's order. A part that several fields hold is described at the first."""
    return {field.path: field for field in _fields(Report, "", {})}


def _fields(part: type[Part], prefix: str, seen: dict[type, str]) -> Iterator[Field]:
    texts, hints = key_texts(part), hints_of(part)
    for f in fields(part):
        path, inner = f"{prefix}{name_of(f)}", part_in(hints[f.name])
        meaning = texts.get(f.name, "")
        if inner in seen:
            meaning = f"{sentence(meaning)} Fields as in `{seen[inner]}`.".strip()
        if not meaning and inner is None:
            raise ValueError(
                f"{part.__name__} says nothing of {f.name}\n"
                f"  instead: a line '{f.name}: what it is' in its docstring"
            )
        kind = type_words(hints[f.name])
        if meaning:
            yield Field(path, kind, meaning)
        if inner and inner not in seen:
            seen[inner] = path
            yield from _fields(inner, f"{path}{'[]' * kind.startswith('list')}.", seen)


def render() -> str:
    """Every field below the heading of its part."""
    lines: list[str] = []
    for path, field in described().items():
        if heading := _heading(path):
            lines += [f"## {heading}", ""]
        term = marked(path, anchor("field", path), field.kind)
        lines += definition(term, _linked(field.meaning))
    return "\n".join(lines)


def _heading(path: str) -> str | None:
    """The heading that begins with a field: with the first of its part where nothing is said of the whole."""
    top = path.split(".")[0]
    first = next(each for each in described() if each.split(".")[0] == top)
    return HEADINGS.get(top) if path == first else None


def _linked(meaning: str) -> str:
    """A meaning as Markdown, with fields that it names in backticks made links."""

    def link(found: re.Match[str]) -> str:
        path = found[1]
        return f"[`{path}`](#{anchor('field', path)})" if path in described() else found[0]

    return re.sub(r"`([^`]+)`", link, sentence(text(meaning)))
