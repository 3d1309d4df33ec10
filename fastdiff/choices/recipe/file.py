"""A recipe's file → the recipe. Raises RecipeError with every problem."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from fastdiff.choices.recipe.checking import problems_of, recipe_from
from fastdiff.choices.recipe.format import Recipe
from fastdiff.choices.recipe.reading import parse, read_bytes
from fastdiff.errors import RecipeError, RecipeProblem


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a file. Raises RecipeError: nothing of it was used."""
    place = _place(path)
    try:
        state = place.stat()
    except (OSError, ValueError):
        return _recipe(str(path), place, 0, 0)
    return _recipe(str(path), place, state.st_size, state.st_mtime_ns)


@cache
def _recipe(path: str, place: Path, size: int, mtime_ns: int) -> Recipe:
    """Read once as long as the file stays the same: a grid asks for it in every cell."""
    recipe, problems = look_at(path)
    if problems:
        raise RecipeError(path, problems)
    return recipe


def look_at(path: str | Path) -> tuple[Recipe, list[RecipeProblem]]:
    """The recipe in a file as far as it is right, and what isn't. Raises RecipeError if it is no YAML that could be one."""
    place = _place(path)
    content = read_bytes(place, str(path))
    document = parse(content, str(path))
    sha256 = hashlib.sha256(content).hexdigest()
    return recipe_from(document, place, sha256), problems_of(document, place.parent)


def _place(path: str | Path) -> Path:
    return Path(os.path.expanduser(path)).absolute()
