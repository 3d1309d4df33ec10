"""`recipe schema`: the JSON Schema of a recipe, with the options that plug-ins and folders bring."""

from __future__ import annotations

from fastdiff.choices.options import option_files
from fastdiff.choices.recipe.schema import schema_text
from fastdiff.commands.words import Words


def run(asked: Words) -> int:
    """`recipe schema`."""
    print(schema_text(option_files()), end="")
    return 0
