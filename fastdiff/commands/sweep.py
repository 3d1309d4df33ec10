"""A sweep: every combination in a process of its own, each a row of its table."""

from __future__ import annotations

import os
import sys

from fastdiff.display.layout import in_columns
from fastdiff.errors import FastdiffError


def run(words: list[str]) -> int:
    """Every combination in a process of its own, each a row of the sweep's table."""
    from fastdiff.display.layout import shown
    from fastdiff.display.progress import board
    from fastdiff.display.sweep import sweep_row, sweep_text
    from fastdiff.runs.sweep.sweep import exit_code, plan_sweep

    planned = plan_sweep(with_folder(words))
    for notice in planned.notices:
        print(in_columns(f"fastdiff: {notice}"), file=sys.stderr)
    with board() as shown_board:
        data = planned.go(shown_board)
    try:
        print(
            sweep_text(data), sweep_row("written", pages_in(shown(planned.folder.path))), sep="\n"
        )
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # whoever read our output has seen enough; how the sweep ended counts all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if data["error"]:
        raise FastdiffError(data["error"])
    return exit_code(data)


def with_folder(words: list[str]) -> list[str]:
    """`hydra.sweep.dir=DIR` as `sweep.dir=DIR`, the folder as Hydra resolves it. Raises UsageError."""
    named = [word for word in words if word.startswith("hydra.sweep.dir=")]
    if not named:
        return words
    from fastdiff.choices.compose import hydras_config

    folder = hydras_config(named).hydra.sweep.dir
    return [*(word for word in words if word not in named), f"sweep.dir={folder}"]


def pages_in(folder: str) -> str:
    """What `written` says of a sweep's folder."""
    return f"{folder}/index.html, sweep.md, sweep.csv"
