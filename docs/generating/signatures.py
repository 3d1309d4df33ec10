"""Docstrings in plain English → reStructuredText, for the page of the Python API."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

from generating.docstrings import one_line, split


def as_restructured_text(
    app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Sphinx's `autodoc-process-docstring`: parameters and attributes become lists, other signs stay what they are."""
    names = [f.name for f in fields(found)] if is_dataclass(found) else _parameters(found)
    whole, about = split("\n".join(lines).strip(), names)
    told = [_escaped(part) for part in re.split(r"\n\s*\n", whole) if part.strip()]
    kind = "ivar" if is_dataclass(found) else "param"
    listed = [f":{kind} {key}: {_escaped(text)}" for key, text in about.items()]
    lines[:] = [*"\n\n".join(told).split("\n"), "", *listed, ""]


def _parameters(found: Any) -> list[str]:
    try:
        return list(inspect.signature(found).parameters)
    except (TypeError, ValueError):
        return []


def _escaped(paragraph: str) -> str:
    """A paragraph whose signs mean nothing but themselves; an indented one stays as it stands, as code."""
    if paragraph.startswith((" ", "\t")):
        return "::\n\n" + paragraph
    parts = re.split(r"(`[^`]*`)", one_line(paragraph))
    return "".join(p if p.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", p) for p in parts)
