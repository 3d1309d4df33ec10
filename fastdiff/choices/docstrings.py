"""What a dataclass says of its keys: lines such as `steps: denoising steps, at least 1.` in its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import fields, is_dataclass


def own_text(kind: type) -> str:
    """A class's own docstring; empty for one that has none, or only the signature that dataclasses put there."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    return "" if text.startswith(f"{kind.__name__}(") else text


def split(text: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """A docstring in two: what it says of the whole, and of each of these names.

    A name stands at the beginning of a line or of a sentence, followed by a colon; several names may share one text. The
    text ends with the next name, with an empty line, or with a line that begins a sentence at the margin.
    """
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    pattern = rf"(?:^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*): "
    starts = list(re.finditer(pattern, text, re.MULTILINE)) if names else []
    ends = [*(start.start() for start in starts), len(text)]
    whole, found = [text[: ends[0]]], {}
    for start, end in zip(starts, ends[1:], strict=True):
        said = text[start.end() : end]
        over = re.search(r"\n\s*\n|\n(?=[A-Z])", said)
        if over:
            whole.append(said[over.end() :])
            said = said[: over.start()]
        for name in start[1].split(", "):
            found[name] = one_line(said).rstrip(";")
    return "\n\n".join(part.strip() for part in whole if part.strip()), found


def one_line(text: str) -> str:
    return " ".join(text.split())


def key_texts(schema: type) -> dict[str, str]:
    """What is said of each key of a dataclass, by the class itself or the nearest base that says something of it.

    Keys of a nested dataclass have a dot.
    """
    found: dict[str, str] = {}
    names = [f.name for f in fields(schema)]
    for kind in reversed(schema.__mro__):
        if is_dataclass(kind):
            found |= split(own_text(kind), names)[1]
    return {name: found[name] for name in names if name in found}
