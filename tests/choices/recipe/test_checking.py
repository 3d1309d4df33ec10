"""What a recipe may say: every problem at once, each with its line, its key and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdiff.choices.recipe.checking import look_at, read_recipe
from fastdiff.errors import RecipeError

HEAD = "format: 2\nname: team\nmade_for: {model: shapes, device: cpu}\n"


def problems(folder: Path, text: str) -> list[tuple[int | None, str, str, str]]:
    path = folder / "team.yaml"
    path.write_text(text)
    _, found = look_at(path)
    return [(p.line, p.key, p.reason, p.instead) for p in found]


def only(folder: Path, text: str) -> tuple[int | None, str, str, str]:
    (problem,) = problems(folder, text)
    return problem


def test_a_whole_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(
        "format: 2\nname: fast\ndescription: 'for the demo: quick'\n"
        "made_for: {model: {option: sdxl, weights: random}, device: cuda}\n"
        "choices:\n  precision: bf16\n  quant: {option: int8, min_in_features: 64}\n"
        "generation: {steps: 4, prompt: [a cat, a dog], guidance_scale: 5}\n"
        "measured: {latency_s: 0.41, quality: {psnr_db: 41.2}, environment: {torch: 2.13.0}}\n"
    )
    recipe = read_recipe(tmp_path / "team.yaml")
    assert recipe.name == "fast"
    assert recipe.description == "for the demo: quick"
    assert recipe.model == {"option": "sdxl", "weights": "random"}
    assert recipe.device == "cuda"
    assert recipe.choices == {
        "precision": {"option": "bf16"},
        "quant": {"option": "int8", "min_in_features": 64},
    }
    assert recipe.generation == {"steps": 4, "prompt": ["a cat", "a dog"], "guidance_scale": 5}
    assert recipe.measured["quality"] == {"psnr_db": 41.2}
    assert len(recipe.sha256) == 64


def test_what_is_missing_is_named_with_an_example(tmp_path: Path) -> None:
    assert problems(tmp_path, "description: x\n") == [
        (1, "format", "is missing", "format: 2"),
        (1, "name", "is missing", "name: fast-bf16"),
        (1, "made_for", "is missing", "made_for: {model: shapes, device: cpu}"),
        (1, "choices", "is missing", "choices: {precision: bf16}, or choices: {} for the defaults"),
    ]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("choises: {}", (4, "choises", "a recipe has no such key", "did you mean: choices")),
        ("choices: {precison: bf16}", (4, "choices.precison", "there is no such slot", "did you mean: precision")),
        ("choices:\n  quant: imt8", (5, "choices.quant", "has no option 'imt8'", "did you mean: int8")),
        ("choices:\n  quant: {option: imt8}", (5, "choices.quant", "has no option 'imt8'", "did you mean: int8")),
        ("choices:\n  quant: {min_in_features: 3}", (5, "choices.quant", "names no option", "{option: fp8, ...}")),
        ("choices:\n  quant: [int8]", (5, "choices.quant", "must be an option's name, or a mapping with `option` and its keys", "there are: fp8, fp8_weight_only, int8, int8_weight_only, none")),
        ("choices:\n  quant:\n    option: int8\n    min_in_feature: 3", (7, "choices.quant.min_in_feature", "quant=int8 has no such key", "did you mean: min_in_features")),
        ("choices:\n  quant: {option: int8, min_in_features: many}", (5, "choices.quant.min_in_features", "can't be 'many': it must be a whole number", "for example: min_in_features: 17")),
        ("choices:\n  quant: {option: int8, min_in_features: true}", (5, "choices.quant.min_in_features", "can't be 'True': it must be a whole number", "for example: min_in_features: 17")),
        ("choices:\n  attention: {option: sdpa, flash: true}", (5, "choices.attention.flash", "attention=sdpa has no such key", "leave it out: it has no keys")),
        ("choices: [precision]", (4, "choices", "must be a mapping of slots", "choices: {precision: bf16}, or choices: {} for the defaults")),
        ("choices: {model: sdxl}", (4, "choices.model", "is what a recipe is made for, no choice of it", "made_for: {model: ...}")),
        ("choices: {bench: once}", (4, "choices.bench", "says how a run is measured, which is for whoever runs it to choose", "bench=... on the command line")),
        ("choices: {quality: none}", (4, "choices.quality", "says how a run is measured, which is for whoever runs it to choose", "quality=... on the command line")),
    ],
)  # fmt: skip
def test_names_and_types_are_checked(
    tmp_path: Path, lines: str, problem: tuple[int, str, str, str]
) -> None:
    found = [p for p in problems(tmp_path, f"{HEAD}{lines}\n") if p[2] != "is missing"]
    assert found == [problem]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1", "is 1, and this fastdiff reads 2"),
        ("3", "is 3, and this fastdiff reads 2"),
        ("-1", "is -1, and this fastdiff reads 2"),
        ("two", "must be a whole number"),
        ("true", "must be a whole number"),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, value: str, reason: str) -> None:
    text = HEAD.replace("format: 2", f"format: {value}") + "choices: {}\n"
    assert only(tmp_path, text)[:3] == (1, "format", reason)


@pytest.mark.parametrize(
    ("lines", "key", "reason"),
    [
        ("choices:\n  quant: {option: int8, _target_: os.system}", "choices.quant._target_", "would name code, and a recipe is data"),
        ("choices: {}\ngeneration: {prompt: [{_target_: os.system}]}", "generation.prompt[0]._target_", "would name code, and a recipe is data"),
        ("choices: {}\nhydra: {run: {dir: x}}", "hydra", "is Hydra's own, and Hydra never composes a recipe"),
        ("choices: {}\ndefaults: [a]", "defaults", "is Hydra's own, and Hydra never composes a recipe"),
        ("choices: {'quant@_global_': int8}", "choices.quant@_global_", "is Hydra's own, and Hydra never composes a recipe"),
        ("choices: {_self_: 1}", "choices._self_", "would name code, and a recipe is data"),
        ("choices: {}\ngeneration: {prompt: '${oc.env:HF_TOKEN}'}", "generation.prompt", "holds ${...}, and nothing is looked up for a recipe"),
        ("choices: {}\ndescription: 'my ${x'", "description", "holds ${...}, and nothing is looked up for a recipe"),
        ("choices: {'${x}': 1}", "choices.${x}", "holds ${...}, and nothing is looked up for a recipe"),
        ("choices: {lora: {option: file, path: /etc/passwd}}", "choices.lora.path", "is an absolute path, which only its author's machine has"),
        ("choices: {lora: {option: file, path: ~/x.safetensors}}", "choices.lora.path", "is an absolute path, which only its author's machine has"),
        ("choices: {lora: {option: file, path: 'C:\\x.safetensors'}}", "choices.lora.path", "is an absolute path, which only its author's machine has"),
        ("choices: {lora: {option: file, path: a/../../x.safetensors}}", "choices.lora.path", "leads out of the recipe's folder (..)"),
        ("choices: {vae: {option: tiny, id: ../../x}}", "choices.vae.id", "leads out of the recipe's folder (..)"),
        ("choices: {quant: ../../conf/quant/int8}", "choices.quant", "leads out of the recipe's folder (..)"),
        ("choices: {lora: {option: file, path: lora.bin}}", "choices.lora.path", "names pickled weights, which can hold code; only safetensors are read"),
        ("choices: {lora: {option: file, path: 'https://x/y'}}", "choices.lora.path", "is an address, and a recipe names models by org/name"),
        ("choices: {compile: {option: regional, cache_dir: mine}}", "choices.compile.cache_dir", "is a folder of code that is run, which a recipe can't bring"),
        ("choices: {compile: {option: regional, trust_remote_code: true}}", "choices.compile.trust_remote_code", "would run code that comes with a model, which fastdiff never does"),
        ("choices: {}\ncustom_pipeline: x", "custom_pipeline", "would run code that comes with a model, which fastdiff never does"),
    ],
)  # fmt: skip
def test_what_could_act_is_refused(tmp_path: Path, lines: str, key: str, reason: str) -> None:
    found = problems(tmp_path, f"{HEAD}{lines}\n")
    assert (key, reason) in [(p[1], p[2]) for p in found]


def test_a_recipe_for_a_team_s_own_model_is_right_and_its_keys_are_for_that_team(
    tmp_path: Path,
) -> None:
    assert problems(tmp_path, HEAD.replace("shapes", "ours") + "choices: {}\n") == []
    assert only(tmp_path, HEAD.replace("shapes", "'our model'") + "choices: {}\n")[1:3] == (
        "made_for.model",
        "has no option 'our model'",
    )


def test_paths_stay_below_the_recipe_s_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "shared", tmp_path / "secret.safetensors"
    inside.mkdir()
    outside.write_bytes(b"x")
    (inside / "mine.safetensors").write_bytes(b"x")
    (inside / "link.safetensors").symlink_to(outside)
    (inside / "loop").symlink_to(inside / "loop")

    def said(name: str) -> list[str]:
        text = f"{HEAD}choices: {{lora: {{option: file, path: {name}}}}}\n"
        return [problem[2] for problem in problems(inside, text)]

    assert said("mine.safetensors") == []
    assert said("link.safetensors") == ["is a link that leads out of the recipe's folder"]
    assert said("other.safetensors") == ["names nothing below the recipe's folder"]
    assert said("loop") in (["is no path"], ["names nothing below the recipe's folder"])


def test_a_name_on_the_hub_is_no_path(tmp_path: Path) -> None:
    text = HEAD.replace("shapes", "{option: sdxl, tiny_vae: org/name}") + "choices: {}\n"
    assert problems(tmp_path, text) == []
    text = HEAD.replace("shapes", "{option: sdxl, tiny_vae: a/b/c}") + "choices: {}\n"
    assert only(tmp_path, text)[1:3] == (
        "made_for.model.tiny_vae",
        "names nothing below the recipe's folder, and no name on the hub",
    )


def test_every_problem_is_in_the_error_in_the_order_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(HEAD + "choices:\n  precison: bf16\n  quant: imt8\ngeneration: {steps: abc}\n")
    with pytest.raises(RecipeError) as raised:
        read_recipe(path)
    assert str(raised.value) == (
        f"{path} can't be used as a recipe (3 problems)\n"
        "  line 5, choices.precison: there is no such slot\n"
        "    did you mean: precision\n"
        "  line 6, choices.quant: has no option 'imt8'\n"
        "    did you mean: int8\n"
        "  line 7, generation.steps: can't be 'abc': it must be a whole number or null\n"
        "    for example: steps: 30"
    )
    assert [p.line for p in raised.value.problems] == [5, 6, 7]


def test_what_is_right_beside_a_problem_is_still_known(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(HEAD + "choices:\n  precison: bf16\n  quant: int8\n")
    recipe, found = look_at(path)
    assert len(found) == 1
    assert recipe.choices == {"quant": {"option": "int8"}}
    assert recipe.model == {"option": "shapes"}


@pytest.mark.parametrize("key", ["latency_s", "step_latency_s", "compile_s", "peak_memory_bytes"])
def test_what_was_measured_is_not_negative(key: str, tmp_path: Path) -> None:
    more = "" if key == "latency_s" else ", latency_s: 0.4"
    text = f"{HEAD}choices: {{}}\nmeasured: {{{key}: -1{more}}}\n"
    _, named, reason, instead = only(tmp_path, text)
    assert (named, reason.removesuffix(" or null")) == (
        f"measured.{key}",
        f"can't be '-1': it must be a {'whole ' * key.endswith('bytes')}number of at least 0",
    )
    assert instead.startswith(f"for example: {key}: ")


def test_a_gpus_memory_is_no_number_too_large(tmp_path: Path) -> None:
    more = "measured: {latency_s: 0.4, peak_memory_bytes: 80000000000}"
    assert problems(tmp_path, f"{HEAD}choices: {{}}\n{more}\n") == []
