"""`report DIR`: a sweep's pages made anew from what lies in its folder, and its table."""

from __future__ import annotations

from pathlib import Path

from fastdiff.commands.sweep import pages_in
from fastdiff.commands.words import read_words


def run(words: list[str]) -> int:
    """`report DIR`: a sweep's pages made anew from what lies in its folder, and its table."""
    from fastdiff.display.layout import shown
    from fastdiff.display.sweep import sweep_row, sweep_text, write_sweep_pages
    from fastdiff.runs.sweep.sweep import looked_again

    (named,) = read_words("report", "outputs/sweeps/NAME", words).files
    folder = Path(named)
    data = looked_again(folder)
    write_sweep_pages(folder, data)
    print(sweep_text(data))
    print(sweep_row("written", pages_in(shown(folder))))
    return 0
