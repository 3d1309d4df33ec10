"""`recipe save`: a run's folder → a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdiff.choices.recipe.writing import recipe_of, recipe_text
from fastdiff.commands.words import Words
from fastdiff.display.layout import headline
from fastdiff.errors import UsageError
from fastdiff.machine.files import read_json, sha256_of, write_text


def run(asked: Words) -> int:
    """`recipe save RUN_DIR -o FILE`."""
    out = Path(asked.flags["-o"])
    name, description = asked.flags.get("--name", out.stem), asked.flags.get("--description")
    write_new(out, saved(Path(asked.files[0]), name, description, "--generation" in asked.flags))
    print(headline(f"recipe '{name}' written: {out}"))
    return 0


def saved(folder: Path, name: str, description: str | None = None, generation: bool = False) -> str:
    """The recipe of a run's folder, or of a cell of a sweep, as text. Raises UsageError if it holds no run that ended well.

    generation: whether what was drawn becomes the recipe's default.
    """
    path = folder / "report.json"
    try:
        report: Any = read_json(path)
        status = report["status"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{folder} is no run's folder: its report.json can't be read ({type(error).__name__})\n"
            "  instead: the folder that a run's last line names, or a cell's in outputs/sweeps/NAME"
        ) from error
    if status != "ok":
        raise UsageError(
            f"the run in {folder} ended with '{status}', and a recipe is to be relied on\n"
            "  instead: a run that ended with 'ok'"
        )
    return recipe_text(recipe_of(report, name, sha256_of(path), description, generation))


def write_new(path: Path, text: str, key: str = "-o") -> None:
    """Write a file that isn't there yet. Raises UsageError if it is, or can't be written."""
    if path.exists():
        raise UsageError(
            f"{path} is there already, and nothing is overwritten\n  instead: {key} with another name"
        )
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder\n  instead: {key} with one that is there")
    try:
        write_text(path, text)
    except OSError as error:
        raise UsageError(
            f"{path} can't be written: {error.strerror}\n  instead: {key} with a place of yours"
        ) from error
