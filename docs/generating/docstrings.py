"""What classes say of themselves, and the types of their keys, in words."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fastdiff.choices.docstrings import one_line, own_text, split


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
    if get_origin(hint) is Annotated:
        return str(hint.__metadata__[0])
    if get_origin(hint) in (Union, types.UnionType):
        return _either(word for part in get_args(hint) for word in _alternatives(part))
    if get_origin(hint) is Literal:
        return _either(map(str, get_args(hint)))
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
