"""The recipe's JSON Schema, from the same dataclasses that check one, so that editors complete and check the file.

python -m fastdiff.choices.recipe.schema        # writes fastdiff/choices/recipe/recipe.schema.json anew
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fastdiff.choices.docstrings import key_texts
from fastdiff.choices.options import OptionFile, shipped_files
from fastdiff.choices.recipe.format import CHOOSABLE, FORMAT, RecipeFile

FILE = Path(__file__).with_name("recipe.schema.json")

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


Options = Mapping[str, Mapping[str, OptionFile]]


def schema(options: Options) -> dict[str, Any]:
    """The schema, of draft 2020-12, for options by slot and name. What paths may be it can't say; `recipe check` does."""
    found = _of_dataclass(RecipeFile)
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
        found = _of_dataclass(file.schema)
    return found | {
        "description": file.comment,
        "properties": {"option": {"const": name}, **found["properties"]},
        "required": ["option"],
        "additionalProperties": False,
    }


def _of_dataclass(documented: type) -> dict[str, Any]:
    hints, texts = get_type_hints(documented), key_texts(documented)
    properties, needed = {}, []
    for f in fields(documented):
        if f.metadata.get("place") == "code":
            continue
        properties[f.name] = _of(hints[f.name])
        if f.name in texts:
            properties[f.name]["description"] = texts[f.name]
        if f.default is MISSING and f.default_factory is MISSING:
            needed.append(f.name)
    found: dict[str, Any] = {"type": "object", "properties": properties}
    if needed:
        found["required"] = needed
    return found | {"additionalProperties": False}


def _of(kind: Any) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _TYPES:
        return {"type": _TYPES[kind]}
    if is_dataclass(kind) and isinstance(kind, type):
        return _of_dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": list(kind.__members__)}
    if origin is list:
        return {"type": "array", "items": _of(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(inner[1]) if inner else {}}
    if type(None) in inner:
        others = [_of(each) for each in inner if each is not type(None)]
        return {"anyOf": [*others, {"type": "null"}]}
    if kind is Any:
        return {"not": {"type": "object"}}
    return {"anyOf": [_of(each) for each in inner]} if inner else {}


if __name__ == "__main__":
    FILE.write_text(schema_text(shipped_files()), encoding="utf-8")
    print(f"written: {FILE}")
