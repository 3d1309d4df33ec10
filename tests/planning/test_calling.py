"""What a pipeline's call can't do or wouldn't read is told before the run; who calls it himself is told nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.choices.compose import compose
from fastdiff.config import Generation
from fastdiff.errors import PlanError, Problem
from fastdiff.machine.environment import this_machine
from fastdiff.models.calls import negative_prompt_unread
from fastdiff.models.facts import ModelFacts
from fastdiff.models.pictures import arguments, draw
from fastdiff.models.sources import model_of
from fastdiff.planning.plan import make_plan
from fastdiff.runs.reference import plain_run

Folder = Callable[[str], Path]
BY_HAND = (
    "a model that draws from a prompt alone, or fastdiff.load(...) in Python, which optimizes this one and leaves "
    "the call to you"
)


def _problems(plan: Callable[..., Any], *words: Any) -> tuple[Problem, ...]:
    with pytest.raises(PlanError) as caught:
        plan(*words)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CogVideoXPipeline", "makes frames, not pictures"),
        ("LTXPipeline", "makes frames, not pictures"),
        ("WanPipeline", "makes frames, not pictures"),
        ("StableDiffusionControlNetPipeline", "needs image=, which fastdiff doesn't give yet"),
        ("StableDiffusionImg2ImgPipeline", "needs image=, which fastdiff doesn't give yet"),
        ("StableDiffusionInpaintPipeline", "needs image= and mask_image=, which fastdiff doesn't give yet"),
        ("StableDiffusionXLImg2ImgPipeline", "needs image=, which fastdiff doesn't give yet"),
    ],
)  # fmt: skip
def test_a_pipeline_that_a_prompt_is_not_enough_for_is_refused(
    name: str, reason: str, tiny_folder: Folder, local_plan: Any
) -> None:
    (problem,) = _problems(local_plan, tiny_folder(name))
    assert problem == Problem("model=local", f"{name} {reason}", BY_HAND)


def test_who_calls_it_himself_may_have_it(tiny_folder: Folder) -> None:
    from PIL import Image

    pipeline = fastdiff.load(
        model=tiny_folder("StableDiffusionImg2ImgPipeline"), device="cpu", precision="bf16"
    )
    pipeline.set_progress_bar_config(disable=True)
    start = Image.new("RGB", (32, 32), "red")
    drawn = pipeline(prompt="a circle", image=start, num_inference_steps=2).images
    assert [picture.size for picture in drawn] == [(32, 32)]
    with fastdiff.applied(pipeline, generation={"negative_prompt": "ugly", "guidance_scale": 1.0}):
        pass


def _renamed(folder: Path, name: str, into: Path) -> Path:
    """A copy whose model_index.json names another class."""
    shutil.copytree(folder, into)
    index = json.loads((into / "model_index.json").read_text())
    (into / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
    return into


def test_a_class_that_diffusers_lacks_is_refused_with_the_nearest_name(
    sd_folder: Path, local_plan: Any, tmp_path: Path
) -> None:
    folder = _renamed(sd_folder, "StableDifusionPipeline", tmp_path / "m")
    (problem,) = _problems(local_plan, folder)
    version = this_machine().versions["diffusers"]
    assert problem == Problem(
        "model=local",
        f"its pipeline StableDifusionPipeline is not in diffusers {version}, and fastdiff runs no code that comes "
        "with a model",
        "`_class_name` StableDiffusionPipeline in model_index.json, or a pipeline whose class is in diffusers",
    )


def test_a_class_of_a_later_diffusers_is_only_told(sd_folder: Path, tmp_path: Path) -> None:
    folder = _renamed(sd_folder, "BrandNewPipeline", tmp_path / "m")
    run = compose(["device=cpu", "model=local", f"model.path={folder}"])
    machine = replace(this_machine(), versions={"diffusers": "0.43.0"})
    plan = make_plan(run, machine, model_of(run).facts())
    assert [(notice.choice, notice.text) for notice in plan.notices] == [
        (
            "model=local",
            "BrandNewPipeline is not known to fastdiff: whether a prompt is enough shows in the run",
        )
    ]


def test_an_argument_that_the_call_lacks_is_refused(
    sd_folder: Path, local_plan: Any, tmp_path: Path
) -> None:
    folder = _renamed(sd_folder, "LatentConsistencyModelPipeline", tmp_path / "m")
    (problem,) = _problems(local_plan, folder, "generation.negative_prompt=ugly")
    assert problem == Problem(
        "generation.negative_prompt=ugly",
        "LatentConsistencyModelPipeline takes no negative_prompt",
        "generation.negative_prompt=null",
    )


def _published(*sides: str) -> tuple[Problem, ...]:
    run = compose(["device=cpu", "model=flux_schnell", "model.weights=random", *sides])
    return _problems(make_plan, run, this_machine(), model_of(run).facts())


def test_a_side_that_would_be_rounded_is_refused() -> None:
    assert _published("generation.height=1000", "generation.width=1016") == (
        Problem(
            "generation.height=1000",
            "FluxPipeline's sides are multiples of 16, and it would draw 992",
            "generation.height=992",
        ),
        Problem(
            "generation.width=1016",
            "FluxPipeline's sides are multiples of 16, and it would draw 1008",
            "generation.width=1008",
        ),
    )


@pytest.mark.parametrize(
    ("pipeline", "sides", "problem"),
    [
        (
            "SanaPipeline",
            ("generation.height=1000",),
            Problem("generation.height=1000", "SanaPipeline's sides are multiples of 32", "generation.height=992"),
        ),
        (
            "FluxKontextPipeline",
            ("generation.height=512", "generation.width=512"),
            Problem(
                "generation.height=512 generation.width=512",
                "FluxKontextPipeline keeps the sides' ratio only, and would draw 1024 x 1024",
                "generation.height=1024 generation.width=1024",
            ),
        ),
        (
            "HunyuanDiTPipeline",
            ("generation.width=512",),
            Problem(
                "generation.width=512",
                "HunyuanDiTPipeline keeps the sides' ratio only, and would draw 768 x 1280",
                "generation.height=1280 generation.width=768",
            ),
        ),
    ],
)  # fmt: skip
def test_sides_that_a_pipeline_does_not_draw_are_refused(
    pipeline: str, sides: tuple[str, ...], problem: Problem
) -> None:
    run = compose(["device=cpu", "model=local", "model.path=x", *sides])
    assert _problems(make_plan, run, this_machine(), ModelFacts(pipeline, {})) == (problem,)


# --- what the call wouldn't read ----------------------------------------------------------------

SCALE, NEGATIVE = "generation.guidance_scale=7.0", "generation.negative_prompt=ugly"
UNREAD = [
    (
        "QwenImagePipeline",
        [SCALE],
        "QwenImagePipeline reads it only where guidance_embeds is true in the transformer's configuration; its own "
        "guidance is true_cfg_scale, 4 by default, which acts with a negative prompt",
        "generation.guidance_scale=null with generation.negative_prompt='a text'",
    ),
    (
        "FluxPipeline",
        [SCALE],
        "FluxPipeline reads it only where guidance_embeds is true in the transformer's configuration",
        "generation.guidance_scale=null",
    ),
    (
        "FluxPipeline with guidance_embeds",
        [NEGATIVE],
        "FluxPipeline reads it only with true_cfg_scale above 1",
        "generation.call.true_cfg_scale=4, or generation.negative_prompt=null",
    ),
    (
        "Flux2KleinPipeline distilled",
        [SCALE],
        "Flux2KleinPipeline leaves it unread where is_distilled is true in model_index.json",
        "generation.guidance_scale=null",
    ),
    (
        "StableDiffusionPipeline distilled",
        [NEGATIVE],
        "its UNet was distilled from guidance (time_cond_proj_dim), and reads no negative prompt",
        "generation.negative_prompt=null",
    ),
    (
        "ZImagePipeline",
        [NEGATIVE, "generation.guidance_scale=0"],
        "ZImagePipeline reads it only with guidance_scale above 0; here it is 0",
        "generation.guidance_scale=3, or generation.negative_prompt=null",
    ),
    (
        "StableDiffusionPipeline",
        [NEGATIVE, "generation.guidance_scale=1"],
        "StableDiffusionPipeline reads it only with guidance_scale above 1; here it is 1",
        "generation.guidance_scale=4, or generation.negative_prompt=null",
    ),
    (
        "ChromaPipeline",
        [NEGATIVE, "generation.guidance_scale=0.5"],
        "ChromaPipeline reads it only with guidance_scale above 1; here it is 0.5",
        "generation.guidance_scale=4, or generation.negative_prompt=null",
    ),
]


@pytest.mark.parametrize(("name", "words", "reason", "instead"), UNREAD)
def test_what_changes_nothing_is_refused_and_really_changes_nothing(
    name: str,
    words: list[str],
    reason: str,
    instead: str,
    tiny_folder: Folder,
    local_plan: Any,
    local_run: Any,
) -> None:
    folder = tiny_folder(name)
    (problem,) = _problems(local_plan, folder, *words)
    assert problem == Problem(
        words[0], f"changes nothing: {reason}", f"{instead}, or allow_no_effect=true"
    )
    ran = local_run(folder, *words, "allow_no_effect=true")
    assert [(notice.choice, notice.text) for notice in ran.plan.notices] == [
        (words[0], f"changes nothing: {reason}")
    ]
    assert ran.psnr_db(local_run(folder, *words[1:])) == float("inf")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("QwenImagePipeline", [NEGATIVE]),
        ("FluxPipeline with guidance_embeds", [SCALE]),
        ("Flux2KleinPipeline", [SCALE]),
        ("StableDiffusionPipeline distilled", [SCALE]),
        ("ZImagePipeline", [NEGATIVE, "generation.guidance_scale=0.5"]),
        ("StableDiffusionPipeline", [NEGATIVE, "generation.guidance_scale=1.5"]),
        ("ChromaPipeline", [NEGATIVE]),
    ],
)
def test_what_is_read_moves_the_picture(
    name: str, words: list[str], tiny_folder: Folder, local_run: Any
) -> None:
    import numpy

    folder = tiny_folder(name)
    pictures = [local_run(folder, *words[n:]).pictures[0] for n in (0, 1)]
    with_it, without = (numpy.asarray(picture).astype(int) for picture in pictures)
    assert (with_it != without).any()


def test_a_models_own_default_is_not_somebodys_choice() -> None:
    words = ["device=cpu", "model=flux_schnell", "model.weights=random"]
    run = compose(words)
    assert run.generation.guidance_scale == 0.0
    facts = model_of(run).facts()
    make_plan(run, this_machine(), facts)
    run = compose([*words, "generation.guidance_scale=3.5"])
    (problem,) = _problems(make_plan, run, this_machine(), facts)
    assert problem.choice == "generation.guidance_scale=3.5"


def test_the_reference_may_have_what_the_run_was_allowed(tiny_folder: Folder) -> None:
    folder = tiny_folder("FluxPipeline")
    words = ["device=cpu", "model=local", f"model.path={folder}", NEGATIVE, "allow_no_effect=true"]
    plain = plain_run(compose(words))
    plan = make_plan(plain, this_machine(), model_of(plain).facts())
    assert [notice.choice for notice in plan.notices] == [NEGATIVE]


# Other arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("clip_skipp=1", ("clip_skipp=1", "StableDiffusionPipeline's call has no such argument", "generation.call.clip_skip=1")),
        ("num_inference_steps=3", ("num_inference_steps=3", "has a key of its own", "generation.steps=3")),
        ("output_type=latent", ("output_type=latent", "is what fastdiff itself takes pictures and steps by", "generation.call.output_type=null")),
        ("clip_skip={a:1}", ("clip_skip={'a': 1}", "takes texts, numbers, true, false, and lists of them", "generation.call.clip_skip=null")),
    ],
)  # fmt: skip
def test_what_a_call_can_not_be_given(
    typed: str, problem: tuple[str, str, str], sd_folder: Path, local_plan: Any
) -> None:
    (found,) = _problems(local_plan, sd_folder, f"generation.call.{typed}")
    choice, reason, instead = problem
    assert found == Problem(f"generation.call.{choice}", reason, instead)


def test_an_argument_that_nothing_reads_is_refused(
    sd_folder: Path, local_plan: Any, tmp_path: Path
) -> None:
    folder = _renamed(sd_folder, "StableDiffusionXLControlNetPAGImg2ImgPipeline", tmp_path / "m")
    given = (
        "generation.call.guess_mode=true",
        "generation.call.image=a",
        "generation.call.control_image=a",
    )
    (found,) = _problems(local_plan, folder, *given)
    assert found == Problem(
        "generation.call.guess_mode=True",
        "changes nothing: StableDiffusionXLControlNetPAGImg2ImgPipeline's call takes it, and nothing in it reads it",
        "generation.call.guess_mode=null, or allow_no_effect=true",
    )


def test_a_negative_prompt_is_read_where_true_cfg_scale_is_given(tmp_path: Path) -> None:
    facts = ModelFacts("FluxPipeline", {})
    (reason, instead) = negative_prompt_unread(facts, None, {}) or ("", "")
    assert reason == "FluxPipeline reads it only with true_cfg_scale above 1"
    assert instead == "generation.call.true_cfg_scale=4, or generation.negative_prompt=null"
    assert negative_prompt_unread(facts, None, {"true_cfg_scale": 4}) is None


def test_arguments_of_the_call_are_the_models_own_and_those_that_are_given() -> None:
    words = [
        "model.generation.call={clip_skip:1,guidance_rescale:0.5}",
        "generation.call.clip_skip=2",
    ]
    run = compose(["model=shapes", *words, "generation.call.guidance_rescale=null"])
    assert run.generation.call == {"clip_skip": 2}
    assert compose(["model=shapes"]).generation.call == {}


def test_arguments_of_the_call_reach_it(shapes_plain: Any) -> None:
    pipeline = shapes_plain.pipeline
    generation = Generation(prompt="a red circle", steps=2, call={"guidance_rescale": 0.7})
    assert arguments(pipeline, generation)["guidance_rescale"] == 0.7
    rescaled = draw(pipeline, generation)[0].tobytes()
    generator = torch.Generator("cpu").manual_seed(0)
    call = {"num_inference_steps": 2, "guidance_rescale": 0.7, "generator": generator}
    assert rescaled == pipeline("a red circle", **call).images[0].tobytes()
    assert rescaled != draw(pipeline, replace(generation, call={}))[0].tobytes()
