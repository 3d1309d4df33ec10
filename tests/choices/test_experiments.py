"""The documents' experiments: their names, their rungs, what was published, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastdiff.choices.compose import compose
from fastdiff.choices.experiments import experiments, ladder, ladders
from fastdiff.choices.grid import read_grid
from fastdiff.choices.options import default_options
from fastdiff.config import CONF_DIR, SLOTS
from fastdiff.errors import PlanError, UsageError
from fastdiff.models.sources import model_of

PUBLISHED = {
    "sd15_guide/baseline": (5.27, 1.00),
    "sd15_guide/tf32": (4.14, 1.27),
    "sd15_guide/fp16": (3.51, 1.50),
    "sd15_guide/combined": (3.41, 1.54),
    "distilled_guide/baseline": (6.37, 1.00),
    "distilled_guide/distilled": (4.18, 1.52),
    "distilled_guide/distilled_tiny_vae": (3.83, 1.66),
    "sdxl_tutorial/baseline": (7.36, 1.00),
    "sdxl_tutorial/bf16": (4.63, 1.59),
    "sdxl_tutorial/sdpa": (3.31, 2.22),
    "sdxl_tutorial/compile": (2.54, 2.90),
    "sdxl_tutorial/fused_qkv": (2.52, 2.92),
    "sdxl_tutorial/int8": (2.43, 3.03),
}
GUIDE = [
    "bf16",
    "fp16",
    "tf32",
    "efficient_attention",
    "compile_max_autotune",
    "compile_dynamic",
    "compile_repeated_blocks",
    "compile_regions",
    "int8",
    "fused_qkv",
    "aot",
]


def changed(name: str) -> dict[str, str]:
    """The options that an experiment chooses otherwise than by default, the model's aside."""
    run = compose([f"experiment={name}"])
    return {
        slot: run.choices[slot]
        for slot, default in default_options().items()
        if slot != "model" and run.choices[slot] != default
    }


def test_every_published_row_is_an_experiment_with_its_figures() -> None:
    for name, figures in PUBLISHED.items():
        published = compose([f"experiment={name}"]).experiment
        assert (published.latency_s, published.speedup) == figures, name
        assert published.hardware is not None
        assert "A100" in published.hardware
        assert published.source is not None
        assert published.source.startswith("https://huggingface.co/docs/diffusers/")


def test_the_guide_has_its_techniques_and_no_figures() -> None:
    assert [e.short for e in ladder("guide")] == GUIDE
    for short in GUIDE:
        published = compose([f"experiment=guide/{short}"]).experiment
        assert (published.latency_s, published.speedup, published.hardware) == (None, None, None)


def test_there_are_these_ladders_and_nothing_else() -> None:
    assert ladders() == ["distilled_guide", "guide", "sd15_guide", "sdxl_tutorial"]
    assert set(experiments()) == set(PUBLISHED) | {f"guide/{short}" for short in GUIDE}


@pytest.mark.parametrize("name", ["sd15_guide", "distilled_guide", "sdxl_tutorial"])
def test_rungs_stand_in_the_documents_order_each_faster_than_the_one_below(name: str) -> None:
    speedups = [compose([f"experiment={e.name}"]).experiment.speedup or 0 for e in ladder(name)]
    assert speedups == sorted(speedups)
    assert [e.published.rung for e in ladder(name)] == list(range(len(speedups)))


def test_the_tutorials_ladder_adds_one_technique_a_rung() -> None:
    bf16 = {"precision": "bf16"}
    compiled = {**bf16, "memory_format": "channels_last", "compile": "max_autotune"}
    fused = {**compiled, "qkv": "fused"}
    assert changed("sdxl_tutorial/baseline") == {"attention": "math"}
    assert changed("sdxl_tutorial/bf16") == {**bf16, "attention": "math"}
    assert changed("sdxl_tutorial/sdpa") == bf16
    assert changed("sdxl_tutorial/compile") == compiled
    assert changed("sdxl_tutorial/fused_qkv") == fused
    assert changed("sdxl_tutorial/int8") == {**fused, "quant": "int8"}
    run = compose(["experiment=sdxl_tutorial/int8"])
    assert (run.generation.steps, run.choices["model"]) == (30, "sdxl")
    flags = run.to_dict()["compile"]
    assert [flags[name] for name in ("conv_1x1_as_mm", "coordinate_descent_tuning")] == [True, True]
    assert flags["coordinate_descent_check_all_directions"] is True
    assert flags["epilogue_fusion"] is False
    assert not {"force_fuse_int_mm_with_mul", "use_mixed_mm"} & set(flags)  # nothing reads them


def test_the_sd15_guides_last_row_is_fp16_and_tf32_together() -> None:
    run = compose(["experiment=sd15_guide/combined"])
    assert (run.choices["precision"], run.precision.tf32) == ("fp16", True)  # type: ignore[attr-defined]
    assert (run.choices["scheduler"], run.generation.steps) == ("ddim", 50)


def test_the_distilled_ladder_names_roles_that_other_models_fill() -> None:
    name = "experiment=distilled_guide/distilled_tiny_vae"
    titles = {
        "sd14": "nota-ai/bk-sdm-small",
        "sdxl": "segmind/SSD-1B",
        "shapes": "shapes (student)",
    }
    for model, title in titles.items():
        run = compose([name, f"model={model}"])
        assert model_of(run).title == title
        assert run.choices["vae"] == "tiny"
        assert (run.generation.steps, run.generation.images_per_prompt) == (25, 4)


def test_prompt_and_size_come_from_the_model_steps_from_the_experiment() -> None:
    run = compose(["experiment=sdxl_tutorial/sdpa", "model=shapes"])
    assert run.generation.prompt == "a red circle left of a blue star on a white background"
    assert (run.generation.height, run.generation.steps) == (64, 30)


def test_what_is_typed_wins_over_the_experiment() -> None:
    run = compose(["precision=fp32", "experiment=sdxl_tutorial/sdpa", "generation.steps=2"])
    assert (run.choices["precision"], run.generation.steps) == ("fp32", 2)


def test_a_key_of_an_option_that_the_experiment_chooses_can_be_set() -> None:
    run = compose(["experiment=sdxl_tutorial/int8", "quant.min_in_features=64"])
    assert run.to_dict()["quant"]["min_in_features"] == 64


def test_the_experiment_is_in_the_report_but_not_in_what_identifies_a_run() -> None:
    from fastdiff.measuring.report import run_id

    typed = ["model=shapes", "precision=bf16", "generation.steps=30"]
    named = compose(["experiment=sdxl_tutorial/sdpa", "model=shapes"])
    assert named.to_dict()["experiment"]["name"] == "sdxl_tutorial/sdpa"
    assert named.to_dict()["experiment"]["speedup"] == 2.22
    assert compose([]).to_dict()["experiment"]["name"] == "none"
    assert run_id(named, "cpu") == run_id(compose(typed), "cpu")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sdxl_tutorial/comple", "did you mean: sdxl_tutorial/compile"),
        ("fused_qkv", "did you mean: guide/fused_qkv, sdxl_tutorial/fused_qkv"),
        ("sdxl_tutorial", "it is a ladder: python -m fastdiff ladder sdxl_tutorial"),
        ("sdxl_tutorial/*", "instead: python -m fastdiff ladder sdxl_tutorial"),
        ("zzz", "ladders: distilled_guide, guide, sd15_guide, sdxl_tutorial"),
    ],
)
def test_an_experiment_that_does_not_exist_is_named_with_the_way_out(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose([f"experiment={name}"])
    assert f"there is no experiment '{name}'\n  {hint}" in str(caught.value)


def test_two_experiments_in_one_run_are_a_grid() -> None:
    both = "experiment=sdxl_tutorial/bf16,sdxl_tutorial/sdpa"
    with pytest.raises(UsageError, match=f"or -m {both} for a run of each"):
        compose([both])
    assert all(cell.run for cell in read_grid([both, "model=shapes"]).cells)
    with pytest.raises(UsageError, match="did you mean: sdxl_tutorial/sdpa"):
        read_grid(["experiment=sdxl_tutorial/bf16,sdxl_tutorial/sdp"])


def test_hydras_glob_looks_into_ladders() -> None:
    cells = read_grid(["experiment=glob(sdxl_tutorial/*)", "model=shapes"]).cells
    chosen = [cell.run.choices["experiment"] for cell in cells if cell.run]
    assert chosen == [rung.name for rung in ladder("sdxl_tutorial")]
    with pytest.raises(UsageError) as refused:
        read_grid(["experiment=glob(sdxl_tutorial)"])
    assert str(refused.value) == (
        "experiment=glob(sdxl_tutorial) matches nothing\n"
        "  there are: distilled_guide/*, guide/*, sd15_guide/*, sdxl_tutorial/*"
    )


def test_what_was_published_cannot_be_set() -> None:
    with pytest.raises(UsageError, match="says what a document published, and can't be set"):
        compose(["experiment=sdxl_tutorial/int8", "experiment.speedup=9"])


def test_an_option_without_a_key_that_the_experiment_sets_is_explained() -> None:
    with pytest.raises(UsageError) as caught:
        compose(["experiment=sd15_guide/combined", "precision=fp32"])
    assert str(caught.value) == (
        "experiment=sd15_guide/combined sets precision.tf32, and precision=fp32 has no such key\n"
        "  instead: leave out precision=fp32, or name the choices without the experiment"
    )


def test_every_experiment_names_only_slots_and_options_that_exist() -> None:
    for experiment in experiments().values():
        assert set(experiment.choices) <= set(SLOTS)
        for slot, option in experiment.choices.items():
            assert (CONF_DIR / slot / f"{option}.yaml").is_file(), experiment.name
        assert experiment.comment.endswith(".")


def test_regions_on_a_unet_is_refused_with_the_way_out(shapes_plan: Callable[..., Any]) -> None:
    with pytest.raises(PlanError, match="compile=regional"):
        shapes_plan("experiment=guide/compile_regions", "model=shapes")
