"""What a dataclass says of its keys: lines such as `steps: denoising steps, at least 1.` in its docstring."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Collection, Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin


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


def whole_text(schema: type) -> str:
    """What a class's own docstring says beside its keys, in paragraphs of Markdown."""
    text, _ = split(own_text(schema), [f.name for f in fields(schema)])
    paragraphs = (one_line(part) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(re.sub(r":$", ".", part) for part in paragraphs if part)


_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def type_words(hint: Any) -> str:
    """A type as a reader of an override needs it: `whole number or null`, `list of text`."""
    if hint is Any:
        return "any value"
    if get_origin(hint) in (Union, types.UnionType):
        return _either(word for part in get_args(hint) for word in _alternatives(part))
    if get_origin(hint) is list:
        (inner,) = get_args(hint)
        return f"list of {_plural(type_words(inner))}"
    if get_origin(hint) is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _either(_alternatives(hint))
    if is_dataclass(hint):
        return "keys of its own"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def comments(path: Path) -> dict[str, str]:
    """The comments that stand behind the values of a YAML file, by key; nested keys have dots."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = re.match(r"( *)(\w+):(?:(?!\s#).)*(?:\s+#\s*(.*))?$", line)
        if entry is None:
            continue
        indent = len(entry[1])
        parents = [parent for parent in parents if parent[0] < indent]
        parents.append((indent, entry[2]))
        if entry[3]:
            found[".".join(name for _, name in parents)] = entry[3].strip()
    return found


def _alternatives(hint: Any) -> list[str]:
    if hint is bool:
        return ["true", "false"]
    if hint is types.NoneType:
        return ["null"]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [f"`{member.name}`" for member in hint]
    return [type_words(hint)]


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _plural(words: str) -> str:
    """Of types in words: `texts`, `whole numbers`, `lists of texts`."""
    if words.startswith("list of "):
        return words.replace("list", "lists", 1)
    return f"{words}s" if words in ("text", "whole number", "number") else words
