"""Recipes of older formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdiff.choices.recipe.file import read_recipe
from fastdiff.choices.recipe.upgrading import upgraded
from fastdiff.errors import RecipeError

OLD = """\
format: 1
name: first
made_for:
  model: shapes
  device: cpu

choices:
  precision: bf16

measured:
  latency_s: 0.41
  compile_s: 30.7
  peak_memory_bytes: 800000000
  psnr_db: 41.2
  identical: false
  device_name: a CPU
  torch: 2.13.0
  report_sha256: abcd
"""


def test_format_1_becomes_2_with_all_that_it_says(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    with pytest.raises(RecipeError, match="recipe upgrade FILE"):
        read_recipe(path)
    before, text = upgraded(path)
    assert before == 1
    path.write_text(text)
    recipe = read_recipe(path)
    assert recipe.name == "first"
    assert recipe.choices == {"precision": {"option": "bf16"}}
    assert recipe.measured == {
        "latency_s": 0.41,
        "compile_s": 30.7,
        "peak_memory_bytes": 800000000,
        "quality": {"identical": False, "psnr_db": 41.2},
        "environment": {"device_name": "a CPU", "torch": "2.13.0"},
        "report_sha256": "abcd",
    }
    assert upgraded(path) == (2, text)


def test_one_without_figures_is_upgraded_too(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD.partition("measured:")[0])
    assert "format: 2" in upgraded(path)[1]


@pytest.mark.parametrize("value", ["0", "3", "two", "true", "null"])
def test_formats_that_there_never_were_are_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD.replace("format: 1", f"format: {value}"))
    with pytest.raises(RecipeError) as raised:
        upgraded(path)
    assert "line 1, format: is none of the formats that there are: 1, 2" in str(raised.value)


def test_what_is_wrong_with_an_old_one_is_told_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD.replace("precision: bf16", "precison: bf16"))
    with pytest.raises(RecipeError) as raised:
        upgraded(path)
    assert "choices.precison: there is no such slot\n    did you mean: precision" in str(
        raised.value
    )
