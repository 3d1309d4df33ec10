"""Pieces of Markdown that several pages are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def text(words: str) -> str:
    """A plain text as Markdown that says the same: code in backticks stays code, other signs stay signs."""
    parts = re.split(r"(`[^`]*`)", words)
    return "".join(
        p if p.startswith("`") else re.sub(r"([*_\[\]<>{}$~\\|#])", r"\\\1", p) for p in parts
    )


def code(words: str) -> str:
    """Words as code, whatever they hold."""
    return f"`` {words} ``" if "`" in words else f"`{words}`"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table of cells in Markdown; a bar in a cell doesn't end it."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += [
        "| "
        + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell).replace("\n", " ") for cell in row)
        + " |"
        for row in rows
    ]
    return [*lines, ""]


def definition(term: str, *paragraphs: str) -> list[str]:
    """A term and what it is, in paragraphs."""
    first, *others = [paragraph for paragraph in paragraphs if paragraph]
    lines = [term, f": {first}"]
    for paragraph in others:
        lines += ["", f"  {paragraph}"]
    return [*lines, ""]


def sentence(words: str) -> str:
    """Words as a sentence: a capital where they don't begin with code, a full stop."""
    words = words.strip()
    if words[:1].islower() and not re.match(r"(fp\d|bf\d|int\d|tf\d|torch|mps)", words):
        words = words[0].upper() + words[1:]
    return words if not words or words[-1] in ".!?" else f"{words}."


def fence(lines: Sequence[str], language: str) -> list[str]:
    return [f"```{language}", *lines, "```", ""]


def anchor(*words: str) -> str:
    """A name to link to: `key-quant-skip-shapes`."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)


def marked(term: str, name: str) -> str:
    """A term as code that can be linked to."""
    return f"[{code(term)}]{{#{name}}}"
