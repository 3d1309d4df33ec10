"""Pieces of Markdown that several pages are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(
    r"`[^`]*`"  # what is code already
    r"|(?<![\w./])[a-z_]+(?:[./][a-z_]+)*=(?:\[\[?[^\]]*\]\]?|[^\s,;:()\[\"]*[^\s,;:().\[\"])"  # an override
    r"|(?<![\w./])(?:\w+\.)*\w*_\w+(?:\.\w+)*(?:\(\))?"  # a name with underscores
    r"|\b(?:null|true|false|auto)\b"  # a value
)


def text(words: str) -> str:
    """A plain text as Markdown: overrides, names and values in it as code, other signs as nothing but signs."""
    lines, at = [], 0
    for found in _CODE.finditer(words):
        lines += [_plain(words[at : found.start()]), f"`{found[0].strip('`')}`"]
        at = found.end()
    return "".join([*lines, _plain(words[at:])])


def _plain(words: str) -> str:
    return re.sub(r"([*_\[\]<>{}$~\\|#`])", r"\\\1", words)


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
    """A term and what it is, in paragraphs; an empty one is left out."""
    first, *others = [paragraph for paragraph in paragraphs if paragraph] or ["-"]
    lines = [term, f": {first}"]
    for paragraph in others:
        lines += ["", f"  {paragraph}"]
    return [*lines, ""]


def sentence(words: str) -> str:
    """Words as a sentence: a full stop, and a capital where they begin with a plain word."""
    words = words.strip()
    if re.match(r"(?!torch|mps|path\b)[a-z]+['’]?[a-z]*[ ,;:]", words):
        words = words[0].upper() + words[1:]
    return words if not words or words[-1] in ".!?" else f"{words}."


def fence(lines: Sequence[str], language: str) -> list[str]:
    return [f"```{language}", *lines, "```", ""]


def anchor(*words: str) -> str:
    """A name to link to: `key-quant-skip-shapes`."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)


def marked(term: str, name: str, kind: str) -> str:
    """A term as code that can be linked to, and what kind of thing it is."""
    return f"[{code(term)}]{{#{name}}} *{kind}*"
