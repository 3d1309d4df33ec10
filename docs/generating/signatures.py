"""Docstrings in plain English → reStructuredText, for the page of the Python API."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

from fastdiff.choices.docstrings import one_line, split


def as_restructured_text(
    app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Sphinx's `autodoc-process-docstring`: parameters and attributes become lists, other signs stay what they are."""
    names = _names(found)
    whole, about = split("\n".join(lines).strip(), names)
    told = [_escaped(part) for part in re.split(r"\n\s*\n", whole) if part.strip()]
    kind = "ivar" if isinstance(found, type) else "param"
    listed = [f":{kind} {key}: {_escaped(text)}" for key in names if (text := about.get(key))]
    lines[:] = [*"\n\n".join(told).split("\n"), "", *listed, ""]


def _names(found: Any) -> list[str]:
    """Of a dataclass its fields, of another class what it declares and takes, of a function its parameters."""
    if is_dataclass(found):
        return [f.name for f in fields(found)]
    declared = list(found.__annotations__) if isinstance(found, type) else []
    try:
        return [*declared, *inspect.signature(found).parameters]
    except (TypeError, ValueError):
        return declared


def _escaped(paragraph: str) -> str:
    """A paragraph whose signs mean nothing but themselves; an indented one stays as it stands, as code."""
    if paragraph.startswith((" ", "\t")):
        return "::\n\n" + paragraph
    parts = re.split(r"`([^`]*)`", one_line(paragraph))
    plain = [re.sub(r"([*|_\\])", r"\\\1", part) for part in parts[::2]]
    said = plain[0]
    for code, after in zip(parts[1::2], plain[1:], strict=True):
        said += f"``{code}``" + ("\\ " if after[:1].isalnum() else "") + after
    return said
