"""A run's report → a recipe that reads well, can be read, and describes the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import plan_of

from fastdiff.choices.compose import compose
from fastdiff.choices.recipe.checking import read_recipe
from fastdiff.choices.recipe.writing import recipe_of, recipe_text
from fastdiff.latency import Latency
from fastdiff.measuring.report import blank_report


def report_of(*overrides: str, measured: bool = True) -> dict[str, Any]:
    plan = plan_of(*overrides)
    report = blank_report(
        plan.setting.run, plan, list(overrides), "2026-01-01T00:00:00+00:00"
    ).to_dict()
    report["environment"]["device"] = "cpu"
    if measured:
        report["latency_s"] = Latency((0.412345, 0.42, 0.43)).to_dict()
        report["peak_memory_bytes"] = {
            "device_allocated": None,
            "device_reserved": None,
            "host": 900,
        }
        report["compile_s"] = 30.71234
        report["quality"] |= {"psnr_db": 41.23456, "identical": False}
        report["images"] = [{"path": "image-0.png", "sha256": "0"}]
    return report


def test_only_what_isn_t_a_default_is_written_in_the_order_of_the_slots() -> None:
    report = report_of("quant=int8", "quant.min_in_features=64", "precision=bf16", measured=False)
    assert recipe_text(recipe_of(report, "team")) == (
        "# Use: python -m fastdiff recipe=FILE; look first: python -m fastdiff recipe check FILE\n"
        "format: 2\n"
        "name: team\n"
        "\n"
        "made_for:\n"
        "  model: shapes\n"
        "  device: cpu\n"
        "\n"
        "# Slots that aren't here keep their defaults.\n"
        "choices:\n"
        "  precision: bf16\n"
        "  quant:\n"
        "    option: int8\n"
        "    min_in_features: 64\n"
    )


def test_what_was_measured_is_written_with_four_digits() -> None:
    recipe = recipe_of(report_of("precision=bf16"), "team", "ab" * 32, "why and when")
    assert recipe["description"] == "why and when"
    measured = recipe["measured"]
    assert measured["latency_s"] == 0.42
    assert measured["compile_s"] == 30.71
    assert measured["peak_memory_bytes"] == 900
    assert measured["quality"] == {"identical": False, "psnr_db": 41.23}
    assert measured["work"] == {
        "steps": 25,
        "guidance_scale": 4.0,
        "height": 64,
        "width": 64,
        "images": 1,
    }
    assert measured["environment"]["torch"]
    assert measured["report_sha256"] == "ab" * 32


def test_what_is_written_can_be_read_and_is_the_same_run(tmp_path: Path) -> None:
    for overrides in (
        [],
        ["precision=bf16", "quant=int8", "quant.skip_shapes=[[3,4]]", "qkv=fused"],
        ["compile=default", "compile.freezing=true", "scheduler=ddim"],
        ["model=sdxl", "model.weights=random", "generation.height=512", "generation.width=512"],
        ["model.role=student", "vae=tiny"],
    ):
        path = tmp_path / "team.yaml"
        path.write_text(recipe_text(recipe_of(report_of(*overrides), "team: 'a' \"b\" #c")))
        recipe = read_recipe(path)
        assert recipe.name == "team: 'a' \"b\" #c"
        sizes = [word for word in overrides if word.startswith("generation.")]
        again = compose([f"recipe={path}", *sizes]).to_dict()
        asked = compose(overrides).to_dict()
        assert again | {"recipe": None} == asked | {"recipe": None}


def test_what_was_drawn_becomes_a_default_where_that_is_wanted() -> None:
    report = report_of("generation.steps=7", "generation.seed=3", "generation.prompt=a cat")
    assert "generation" not in recipe_of(report, "team")
    recipe = recipe_of(report, "team", generation=True)
    assert recipe["generation"] == {"prompt": "a cat", "steps": 7, "seed": 3}
    assert list(recipe)[-2:] == ["generation", "measured"]
    assert "generation" not in recipe_of(report_of(), "team", generation=True)


def test_a_model_of_somebody_s_own_becomes_one_to_be_named(smallest_folder: Path) -> None:
    report = report_of("model=local", f"model.path={smallest_folder}", "vae=default")
    text = recipe_text(recipe_of(report, "team"))
    assert str(smallest_folder) not in text
    assert (
        "# A model of somebody's own; name yours: model=local model.path=DIR\n"
        "made_for:\n  model: local\n" in text
    )


def test_places_of_its_author_are_left_out(tmp_path: Path) -> None:
    report = report_of(
        "compile=regional", f"compile.cache_dir={tmp_path}", "model.tiny_vae=org/name"
    )
    recipe = recipe_of(report, "team")
    assert recipe["choices"] == {"compile": "regional"}
    assert recipe["made_for"]["model"] == {"option": "shapes", "tiny_vae": "org/name"}
    relative = report_of("model.tiny_vae=../vae")
    assert recipe_of(relative, "team")["made_for"]["model"] == "shapes"
