"""The JSON Schema that ships, held to the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fastdiff.choices.docstrings import key_texts
from fastdiff.choices.options import shipped_files
from fastdiff.choices.recipe.checking import look_at
from fastdiff.choices.recipe.schema import FILE, schema, schema_text

HEAD = {"format": 2, "name": "x", "made_for": {"model": "shapes", "device": "cpu"}, "choices": {}}


def test_the_shipped_file_is_what_the_dataclasses_say() -> None:
    assert FILE.read_text(encoding="utf-8") == schema_text(shipped_files()), (
        "write it anew: python -m fastdiff.choices.recipe.schema"
    )


def test_it_is_a_schema_and_says_what_options_and_keys_are_for() -> None:
    jsonschema.Draft202012Validator.check_schema(schema(shipped_files()))
    quant = schema(shipped_files())["properties"]["choices"]["properties"]["quant"]["anyOf"]
    int8 = next(each for each in quant if each.get("required") and each["properties"]["option"] == {"const": "int8"})  # fmt: skip
    assert int8["properties"]["min_in_features"]["type"] == "integer"
    assert "fewer inputs" in int8["properties"]["min_in_features"]["description"]
    assert all(each["description"] for each in quant)
    text = json.dumps(schema(shipped_files()))
    assert "cache_dir" not in text


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"description": "d"},
        {"choices": {"precision": "bf16", "quant": {"option": "int8", "skip_shapes": [[1, 2]]}}},
        {"choices": {"compile": {"option": "regional", "freezing": "auto"}}},
        {"generation": {"steps": 3, "prompt": ["a", "b"], "seed": 1}},
        {"measured": {"latency_s": 1, "quality": {"psnr_db": None}}},
        {"made_for": {"model": "ours", "device": "cuda"}},
        {"made_for": {"model": {"option": "sdxl", "weights": "random"}, "device": "cuda"}},
        {"format": 1},
        {"name": ""},
        {"name": 3},
        {"nam": "x"},
        {"choices": []},
        {"choices": {"quant": "imt8"}},
        {"choices": {"quant": {"option": "int8", "min_in_features": "x"}}},
        {"choices": {"quant": {"option": "int8", "min_in_features": True}}},
        {"choices": {"quant": {"option": "int8", "min": 3}}},
        {"choices": {"quant": {}}},
        {"choices": {"model": "sdxl"}},
        {"choices": {"compile": {"option": "regional", "cache_dir": "x"}}},
        {"generation": {"steps": "x"}},
        {"generation": {"prompt": {"a": 1}}},
        {"measured": {}},
        {"measured": {"latency_s": 1, "more": 2}},
        {"made_for": {"model": "shapes"}},
        {"made_for": {"model": "shapes", "device": "tpu"}},
        {"made_for": {"model": {"option": "sdxl", "weights": "none"}, "device": "cpu"}},
    ],
)
def test_it_takes_what_the_reader_takes_and_nothing_else(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    data = HEAD | change
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(data))
    _, problems = look_at(path)
    valid = jsonschema.Draft202012Validator(schema(shipped_files())).is_valid(data)
    assert valid == (not problems), problems


def test_keys_of_a_docstring() -> None:
    from fastdiff.config import Bench, Reference

    texts = key_texts(Bench)
    assert texts["runs"] == "timed calls, at least 1."
    assert key_texts(Reference)["min_psnr_db"] == "in dB, more is nearer."
    assert texts["warmup"].startswith("calls after the first one")
