"""The recipe's JSON Schema, from the same dataclasses that check one, so that editors complete and check the file.

python -m fastdiff.choices.recipe.schema        # writes fastdiff/choices/recipe/recipe.schema.json anew
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdiff.choices.keys import json_schema
from fastdiff.choices.options import OptionFile, shipped_files
from fastdiff.choices.recipe.format import CHOOSABLE, FORMAT, RecipeFile

FILE = Path(__file__).with_name("recipe.schema.json")

Options = Mapping[str, Mapping[str, OptionFile]]


def schema(options: Options) -> dict[str, Any]:
    """The schema, of draft 2020-12, for options by slot and name. What paths may be it can't say; `recipe check` does."""
    found = json_schema(RecipeFile)
    keys = found["properties"]
    keys["format"] = {"const": FORMAT, "description": keys["format"].get("description", "")}
    keys["name"] |= {"minLength": 1, "maxLength": 100}
    keys["choices"] |= {
        "additionalProperties": False,
        "properties": {slot: _choice(options[slot]) for slot in CHOOSABLE},
    }
    another = {"type": "string", "pattern": r"^\w+$", "description": "A model of a team's own."}
    keys["made_for"]["properties"]["model"] |= {
        "anyOf": [*_choice(options["model"])["anyOf"], another]
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fastdiff recipe",
        **found,
    }


def schema_text(options: Options) -> str:
    """The same as a file's text."""
    return json.dumps(schema(options), indent=1, ensure_ascii=False) + "\n"


def _choice(options: Mapping[str, OptionFile]) -> dict[str, Any]:
    """An option's name, or a mapping of one option's keys."""
    names = [{"const": name, "description": file.comment} for name, file in options.items()]
    return {"anyOf": [*names, *(_with_keys(name, file) for name, file in options.items())]}


def _with_keys(name: str, file: OptionFile) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "properties": {}}
    if file.schema:
        found = json_schema(file.schema)
    return found | {
        "description": file.comment,
        "properties": {"option": {"const": name}, **found["properties"]},
        "required": ["option"],
        "additionalProperties": False,
    }


if __name__ == "__main__":
    FILE.write_text(schema_text(shipped_files()), encoding="utf-8")
    print(f"written: {FILE}")
