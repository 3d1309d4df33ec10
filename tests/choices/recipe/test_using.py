"""A recipe beside overrides: what it brings, what wins, what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdiff.choices.compose import compose
from fastdiff.choices.grid import read_grid
from fastdiff.choices.recipe.using import spelled_out, words_of
from fastdiff.errors import RecipeError, UsageError
from fastdiff.planning.cells import planned_cells
from fastdiff.planning.outlook import planned

TEXT = """\
format: 2
name: team
made_for: {model: shapes, device: cpu}
choices:
  precision: bf16
  quant: {option: int8, min_in_features: 64}
generation: {steps: 4}
"""
NASTY = 'a "red", circle\'s {left}: [of] \\ a $blue = star, 100%'


@pytest.fixture
def team(tmp_path: Path) -> Path:
    path = tmp_path / "team.yaml"
    path.write_text(TEXT)
    return path


def test_a_recipe_s_choices_are_the_run_s(team: Path) -> None:
    run = compose([f"recipe={team}"])
    assert run.choices["precision"] == "bf16"
    assert (run.choices["quant"], run.quant.min_in_features) == ("int8", 64)  # type: ignore[attr-defined]
    assert run.generation.steps == 4
    assert (run.recipe.name, run.recipe.device) == ("team", "cpu")


def test_what_is_typed_wins_wherever_it_stands(team: Path) -> None:
    for words in (
        [f"recipe={team}", "quant.min_in_features=17", "generation.steps=9"],
        ["quant.min_in_features=17", "generation.steps=9", f"recipe={team}"],
    ):
        run = compose(words)
        assert (run.quant.min_in_features, run.generation.steps) == (17, 9)  # type: ignore[attr-defined]


def test_another_option_of_a_slot_drops_the_recipe_s_keys_and_the_plan_says_so(team: Path) -> None:
    run = compose([f"recipe={team}", "quant=int8_weight_only"])
    assert run.quant.min_in_features == 17  # type: ignore[attr-defined]
    assert next((n.choice, n.text) for n in planned(run).notices) == (
        "quant=int8_weight_only",
        "takes the place of the recipe's quant=int8, and with it min_in_features",
    )


def test_the_same_option_typed_again_keeps_the_recipe_s_keys(team: Path) -> None:
    run = compose([f"recipe={team}", "quant=int8"])
    assert run.quant.min_in_features == 64  # type: ignore[attr-defined]


def test_another_model_than_it_was_made_for_is_said(team: Path) -> None:
    team.write_text(TEXT.replace("model: shapes", "model: sdxl").replace("cpu", "cuda"))
    run = compose([f"recipe={team}", "model=shapes"])
    notices = [(n.choice, n.text) for n in planned(run).notices]
    assert (
        "model=shapes",
        "'team' was made for model=sdxl; here it may gain less, or nothing",
    ) in notices
    assert (
        "device=cpu",
        "'team' was made for device=cuda; here it may gain less, or nothing",
    ) in notices


def test_the_model_that_a_recipe_names_is_used_where_nobody_names_one(team: Path) -> None:
    text = TEXT.replace("model: shapes", "model: {option: sdxl, weights: random}")
    team.write_text(text)
    run = compose([f"recipe={team}"])
    assert run.choices["model"] == "sdxl"
    assert compose([f"recipe={team}", "model=sd15"]).choices["model"] == "sd15"


def test_a_model_that_isn_t_among_the_options_here_is_a_clear_refusal(team: Path) -> None:
    team.write_text(TEXT.replace("model: shapes", "model: shapez"))
    with pytest.raises(UsageError) as raised:
        compose([f"recipe={team}"])
    assert str(raised.value) == (
        "recipe 'team' was made for model=shapez, which isn't among the options here\n"
        "  instead: model=shapes, or --config-dir DIR with the folder that has shapez.yaml"
    )
    assert compose([f"recipe={team}", "model=shapes"]).choices["model"] == "shapes"


def test_texts_come_through_as_they_stand(team: Path) -> None:
    import json

    team.write_text(TEXT.replace("{steps: 4}", json.dumps({"prompt": NASTY})))
    assert compose([f"recipe={team}"]).generation.prompt == NASTY
    team.write_text(TEXT.replace("{steps: 4}", "{prompt: [a, 'b, c']}"))
    assert compose([f"recipe={team}"]).generation.prompt == ["a", "b, c"]


def test_paths_begin_at_the_recipe_s_folder(team: Path) -> None:
    (team.parent / "mine.safetensors").write_bytes(b"x")
    text = TEXT.replace("  precision: bf16\n", "  lora: {option: file, path: mine.safetensors}\n")
    team.write_text(text)
    run = compose([f"recipe={team}"])
    assert run.lora.path == str(team.parent / "mine.safetensors")  # type: ignore[attr-defined]


def test_two_recipes_or_one_and_an_experiment_are_refused(team: Path) -> None:
    with pytest.raises(UsageError) as raised:
        compose([f"recipe={team}", f"recipe={team}"])
    assert "a run takes one recipe, not 2\n  instead: recipe=" in str(raised.value)
    with pytest.raises(UsageError) as raised:
        compose([f"recipe={team}", "experiment=sdxl_tutorial/int8"])
    assert str(raised.value) == (
        f"recipe={team} and experiment=sdxl_tutorial/int8 both make choices\n  instead: one of them"
    )
    with pytest.raises(UsageError, match="recipe= names no file"):
        compose(["recipe="])


def test_recipes_are_a_dimension_of_a_grid(team: Path) -> None:
    other = team.with_name("other.yaml")
    other.write_text(TEXT.replace("name: team", "name: other").replace("int8", "int8_weight_only"))
    grid = read_grid([f"recipe={team},{other}", "precision=fp32,bf16"])
    assert grid.varied == ("recipe", "precision")
    assert [cell.run.choices["quant"] for cell in grid.cells if cell.run] == [
        *["int8", "int8"],
        *["int8_weight_only", "int8_weight_only"],
    ]
    assert not any(cell.problems for cell in planned_cells(grid))
    words = grid.cells[0].spelled_out
    assert not any(word.startswith("recipe=") for word in words)
    again = compose(words, literal=False)
    assert again.to_dict() | {"recipe": None} == grid.cells[0].run.to_dict() | {"recipe": None}  # type: ignore[union-attr]


def test_the_same_run_by_recipe_and_by_overrides_is_one(team: Path) -> None:
    typed = ["precision=bf16", "quant=int8", "quant.min_in_features=64", "generation.steps=4"]
    (a,) = read_grid([f"recipe={team}"]).cells
    (b,) = read_grid(typed).cells
    assert a.identity == b.identity


def test_a_broken_recipe_in_a_grid_is_refused_before_anything_runs(team: Path) -> None:
    team.write_text("format: 2\n")
    with pytest.raises(RecipeError):
        read_grid([f"recipe={team}", "precision=fp32,bf16"])


def test_spelled_out_means_the_same_without_the_file(team: Path) -> None:
    run = compose([f"recipe={team}", "generation.steps=9"])
    words = spelled_out([f"recipe={team}", "generation.steps=9"], run.recipe)
    team.unlink()
    again = compose(words)
    assert again.to_dict() | {"recipe": None} == run.to_dict() | {"recipe": None}


def test_choices_as_words() -> None:
    assert words_of({"quant": "int8", "device": "cpu", "allow_no_effect": True}) == [
        "quant=int8",
        'device="cpu"',
        "allow_no_effect=true",
    ]
    words = words_of(
        {"quant": {"option": "int8", "skip_shapes": [[1, 2]]}, "generation": {"steps": 3}}
    )
    assert words == ["quant=int8", "quant.skip_shapes=[[1,2]]", "generation.steps=3"]
    assert compose(words, literal=False).quant.skip_shapes == [[1, 2]]  # type: ignore[attr-defined]
