"""What follows a verb: files, flags with their values, and overrides, as the verb's usage line has them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.errors import UsageError, did_you_mean

_FLAG = re.compile(r"(?P<either>\[?)(?P<flag>--?\w+)(?: (?P<value>[A-Z][\w.]*))?\]?")
_OVERRIDES = "[overrides]"


@dataclass(frozen=True)
class Words:
    """What follows a verb. flags: with their values, which are empty for one that stands alone."""

    files: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)


def read_words(verb: str, usage: str, words: Sequence[str]) -> Words:
    """The words of a verb. Raises UsageError for what its usage line hasn't got.

    usage: such as `FILE -o OUT [--name N] [--json] [overrides]`: a flag takes a value where it has one there, and brackets
    hold what may be left out.
    """
    known = {match["flag"]: match for match in _FLAG.finditer(usage)}
    names = _FLAG.sub("", usage.replace(_OVERRIDES, "")).split()
    instead = f"instead: python -m fastdiff {verb} {usage}".rstrip()
    found, left = Words(), list(words)
    while left:
        word = left.pop(0)
        if word.startswith("-"):
            flag, equals, value = word.partition("=")
            if flag not in known:
                it_has = f"it has: {', '.join(known)}" if known else "it has none"
                hint = did_you_mean(flag, known, otherwise=it_has)
                raise UsageError(f"{verb} has no option {flag}\n  {hint}")
            if known[flag]["value"] and not equals:
                if not left:
                    raise UsageError(f"{flag} needs a value\n  {instead}")
                value = left.pop(0)
            found.flags[flag] = value
        elif not names or ("=" in word and not Path(word).exists()):
            found.overrides.append(word)
        else:
            found.files.append(word)
    if len(found.files) != len(names):
        noun = _noun(names[0])
        what = f"one {noun}" if len(names) == 1 else f"{len(names)} {noun}s"
        raise UsageError(f"{verb} needs {what}, not {len(found.files)}\n  {instead}")
    for flag, match in known.items():
        if not match["either"] and flag not in found.flags:
            raise UsageError(f"{verb} needs {match[0]}\n  {instead}")
    if found.overrides and _OVERRIDES not in usage:
        raise UsageError(f"{verb} takes no overrides, not {found.overrides[0]}\n  {instead}")
    return found


def _noun(name: str) -> str:
    if "report" in name:
        return "report"
    return "folder" if "DIR" in name or name.startswith("outputs/") else "file"


def print_json(data: Any) -> None:
    """Data as JSON that every reader takes."""
    print(json.dumps(data, indent=2, allow_nan=False, default=str))
