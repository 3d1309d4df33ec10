"""A recipe's file: its fields from the dataclasses that check it, its limits, and one that was really measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastdiff.config import Generation
from fastdiff.recipe.format import CHOOSABLE, FORMAT, RecipeFile
from fastdiff.recipe.reading import MOST_BYTES, MOST_LEVELS, MOST_VALUES
from fastdiff.recipe.writing import recipe_of, recipe_text
from fastdiff.result import read_json, sha256_of
from generating.docstrings import key_texts, type_words
from generating.markdown import anchor, code, definition, fence, marked, sentence, text

MEASURED = Path("benchmarks/results/cpu/sdxl_tutorial_fp32/int8/round-1/report.json")
"""A committed report, from the top of the checkout; the page shows the recipe of that run."""


def render() -> str:
    """Every field of the file, nested ones with dots."""
    lines = []
    for path, kind, said, needed in file_fields(RecipeFile):
        words = f"{kind}; {'needed' if needed else 'may be left out'}"
        lines += definition(marked(path, anchor("recipe", path)), words, sentence(text(said)))
    return "\n".join(lines)


def file_fields(schema: type, prefix: str = "") -> Iterator[tuple[str, str, str, bool]]:
    """Path, type, meaning, and whether it has to be there."""
    hints, texts = get_type_hints(schema), key_texts(schema)
    for f in fields(schema):
        path, kind = f"{prefix}{f.name}", _dataclass_in(hints[f.name])
        needed = f.default is MISSING and f.default_factory is MISSING
        words = _choices() if path == "choices" else type_words(kind or hints[f.name])
        yield path, words, texts.get(f.name, ""), needed
        if kind is not None and kind is not Generation:
            yield from file_fields(kind, f"{path}.")


def _choices() -> str:
    return f"a choice for any of {', '.join(map(code, CHOOSABLE))}"


def _dataclass_in(hint: Any) -> Any:
    """The dataclass that a field holds, if there is one to hold."""
    return next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)


def limits() -> str:
    """What a file may be at most, in a sentence."""
    return (
        f"A file holds one document of at most {MOST_BYTES // 1000} kB, {MOST_LEVELS} levels and "
        f"{MOST_VALUES} keys and values; today's format is {FORMAT}.\n"
    )


def example() -> str:
    """The recipe of a committed measurement."""
    path = Path(__file__).parent.parent.parent / MEASURED
    recipe = recipe_of(read_json(path), "sdxl-tutorial-int8", sha256_of(path))
    lines = fence(recipe_text(recipe).rstrip().splitlines(), "yaml")
    return "\n".join([*lines, f"It is what `{MEASURED}` says of its run.", ""])
