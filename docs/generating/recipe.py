"""A recipe's file: its fields from the dataclasses that check it, its limits, and one that was really measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastdiff.choices.docstrings import key_texts
from fastdiff.choices.options import default_options
from fastdiff.choices.recipe.format import CHOOSABLE, FORMAT, RecipeFile
from fastdiff.choices.recipe.reading import MOST_BYTES, MOST_LEVELS, MOST_VALUES
from fastdiff.choices.recipe.writing import recipe_of, recipe_text
from fastdiff.config import Generation
from fastdiff.machine.files import read_json, sha256_of
from generating.docstrings import type_words, whole_text
from generating.markdown import anchor, code, definition, fence, marked, sentence, text

MEASURED = Path("benchmarks/results/cpu/sdxl_tutorial_fp32/int8/round-1/report.json")
"""A committed report, from the top of the checkout; the page shows the recipe of that run."""


@dataclass(frozen=True)
class Field:
    """A field of the file. path: with dots. kind: its type in words. said: what the dataclasses say of it."""

    path: str
    kind: str
    said: str
    needed: bool


def render() -> str:
    """Every field of the file; those that explain themselves stand with the one that holds them."""
    lines = []
    for field in file_fields(RecipeFile):
        kind = f"{field.kind}, needed" if field.needed else field.kind
        lines += definition(marked(field.path, anchor("recipe", field.path), kind), field.said)
    return "\n".join(lines)


def file_fields(schema: type, prefix: str = "") -> Iterator[Field]:
    """Fields of a dataclass that is read from the file, and of those in it."""
    hints, texts = get_type_hints(schema), key_texts(schema)
    for f in fields(schema):
        path, inner = f"{prefix}{f.name}", _dataclass_in(hints[f.name])
        needed = f.default is MISSING and f.default_factory is MISSING
        kind = _choices() if path == "choices" else type_words(inner or hints[f.name])
        said = [sentence(text(texts.get(f.name, "")))]
        if inner is not None and inner is not Generation:
            said += [sentence(text(whole_text(inner))), _inside(inner)]
        if f.name in texts or inner is not None:
            yield Field(path, kind, " ".join(filter(None, said)), needed)
        if inner is not None and inner is not Generation:
            yield from file_fields(inner, f"{path}.")


def _inside(schema: type) -> str:
    """The fields of a dataclass that it says nothing of, by name and type."""
    hints, texts = get_type_hints(schema), key_texts(schema)
    plain = [
        f.name for f in fields(schema) if f.name not in texts and not _dataclass_in(hints[f.name])
    ]
    listed = ", ".join(f"{code(name)} ({type_words(hints[name])})" for name in plain)
    return f"It has {listed}." if listed else ""


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
    report = read_json(path)
    # A slot that is younger than the report was at its default.
    defaults = {slot: {"option": option} for slot, option in default_options().items()}
    report["config"] = defaults | report["config"]
    recipe = recipe_of(report, "sdxl-tutorial-int8", sha256_of(path))
    lines = fence(recipe_text(recipe).rstrip().splitlines(), "yaml")
    return "\n".join([*lines, f"It is what `{MEASURED}` says of its run.", ""])
