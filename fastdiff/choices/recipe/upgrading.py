"""A recipe of an older format → today's, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdiff.choices.recipe.checking import problems_of
from fastdiff.choices.recipe.format import FORMAT
from fastdiff.choices.recipe.reading import parse, read_bytes
from fastdiff.choices.recipe.writing import recipe_text
from fastdiff.errors import RecipeError, RecipeProblem


def upgraded(path: Path) -> tuple[int, str]:
    """The format that the file has, and the recipe as text in today's. Raises RecipeError if it is none of any format.

    The file's own comments are not in it: a recipe is read as data.
    """
    name = str(path)
    content = read_bytes(path, name)
    document = parse(content, name)
    found = document.plain
    before = found.get("format")
    if isinstance(before, bool) or not isinstance(before, int) or not 1 <= before <= FORMAT:
        forms = ", ".join(map(str, range(1, FORMAT + 1)))
        line = dict(document.walk()).get("format", document).line
        reason = f"is none of the formats that there are: {forms}"
        raise RecipeError(name, [RecipeProblem(line, "format", reason, f"format: {FORMAT}")])
    for number in range(before, FORMAT):
        found = _STEPS[number](found)
    text = recipe_text(found) if before < FORMAT else content.decode("utf-8")
    upgraded_document = parse(text.encode(), f"{name}, upgraded,")
    problems = problems_of(upgraded_document, path.absolute().parent)
    if problems:
        # Lines are those of the text that nobody has seen yet, so the keys alone tell the place.
        raise RecipeError(name, [RecipeProblem(None, p.key, p.reason, p.instead) for p in problems])
    return before, text


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had all that was measured on one level."""
    measured = data.get("measured")
    if not isinstance(measured, dict):
        return data | {"format": 2}
    left = dict(measured)
    quality = {key: left.pop(key) for key in ("identical", "psnr_db") if key in left}
    on = ("device_name", "torch", "diffusers", "transformers", "torchao")
    environment = {key: left.pop(key) for key in on if key in left}
    sha256 = {"report_sha256": left.pop("report_sha256")} if "report_sha256" in left else {}
    parts = {"quality": quality, "environment": environment}
    found = left | {key: part for key, part in parts.items() if part} | sha256
    return data | {"format": 2, "measured": found}


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""From each older format to the next one."""
