"""`report DIR`: a sweep's pages made anew from what lies in its folder, and its table."""

from __future__ import annotations

from pathlib import Path

from fastdiff.commands.sweep import pages_in
from fastdiff.errors import UsageError


def run(words: list[str]) -> int:
    """`report DIR`: a sweep's pages made anew from what lies in its folder, and its table."""
    from fastdiff.display.layout import shown
    from fastdiff.display.sweep import sweep_row, sweep_text, write_sweep_pages
    from fastdiff.runs.sweep.sweep import looked_again

    if len(words) != 1 or words[0].startswith("-"):
        raise UsageError(
            "report needs a sweep's folder, and nothing else\n"
            "  instead: python -m fastdiff report outputs/sweeps/NAME"
        )
    folder = Path(words[0])
    data = looked_again(folder)
    write_sweep_pages(folder, data)
    print(sweep_text(data))
    print(sweep_row("written", pages_in(shown(folder))))
    return 0
