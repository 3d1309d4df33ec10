"""Keys that belong to a command rather than to a run, as typed: `compare.pairs=30`, `sweep.timeout_s=600`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from fastdiff.errors import UsageError, nearest


def read_own_keys(
    command: str,
    known: Collection[str],
    read: Callable[[str, str, str], Any],
    words: Sequence[str],
) -> tuple[dict[str, Any], list[str]]:
    """Values of the `command.name=value` words by name, and the other words. Raises UsageError for a name that isn't known.

    read: a value, of the whole key, the name and the text.
    """
    given: dict[str, Any] = {}
    others = []
    for word in words:
        key, equals, value = word.partition("=")
        if not key.startswith(f"{command}."):
            others.append(word)
            continue
        name = key.removeprefix(f"{command}.")
        if name not in known or not equals:
            near = nearest(name, known)
            hint = f"did you mean: {command}.{near}" if near else f"it has: {', '.join(known)}"
            raise UsageError(f"{command} has no key '{name}'\n  {hint}")
        given[name] = read(key, name, value)
    return given, others


def read_folder(key: str, value: str) -> str | None:
    """A folder's name; None for null."""
    if not value:
        raise UsageError(f"{key}= names no folder\n  instead: {key}=DIR, or {key}=null")
    return None if value == "null" else value
