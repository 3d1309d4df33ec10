"""The pages that follow from the program: written into `docs/reference/` each time the site is built.

Nothing of them is kept in git. What an option, a key, an experiment or a field of the report is, the program says
itself.
"""

from __future__ import annotations

from pathlib import Path

from fastdiff.machine.files import write_text
from generating import commands, experiments, options, recipe, report, settings

REFERENCE = Path(__file__).parent.parent / "reference"


def pages() -> dict[str, str]:
    """Every generated text by its path in `docs/reference/`; what lies in `parts/` is included in a written page."""
    return {
        **{f"options/{slot}.md": text for slot, text in options.pages().items()},
        "parts/options.md": options.overview(),
        "parts/settings.md": settings.render(),
        "parts/experiments.md": experiments.render(),
        "parts/report.md": report.render(),
        "parts/recipe-fields.md": recipe.render(),
        "parts/recipe-limits.md": recipe.limits(),
        "parts/recipe-example.md": recipe.example(),
        "parts/sweep.md": commands.sweep(),
        "parts/launchers.md": commands.launchers(),
        "parts/compare.md": commands.compare(),
        "parts/ladder.md": commands.ladder(),
        "parts/recipe-verbs.md": commands.recipe_verbs(),
        "parts/verify.md": commands.verify(),
        "parts/python.md": commands.python(),
    }


def write(folder: Path = REFERENCE) -> None:
    """Write all pages; one that says what it said before isn't touched, and what is no page any more is removed."""
    wanted = {folder / name: text for name, text in pages().items()}
    for path in folder.rglob("*.md"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
