"""`resume DIR`: what is missing of a sweep, or failed."""

from __future__ import annotations

from pathlib import Path

from fastdiff.choices.folders import named_in
from fastdiff.commands import sweep
from fastdiff.errors import UsageError


def run(words: list[str]) -> int:
    """`resume DIR`: what is missing of a sweep, or failed."""
    from fastdiff.runs.sweep.sweep import resumed

    if not words or "=" in words[0] or words[0].startswith("-"):
        raise UsageError(
            "resume needs a sweep's folder first\n"
            "  instead: python -m fastdiff resume outputs/sweeps/NAME"
        )
    with named_in(resumed(Path(words[0]), words[1:])) as again:
        return sweep.run(again)
