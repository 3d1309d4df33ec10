"""Pictures judged by the captions that they were drawn for."""

from __future__ import annotations

import random
from typing import Any

import pytest
from conftest import silent
from PIL import Image

from fastdiff.choices.compose import compose
from fastdiff.config import RunConfig
from fastdiff.measuring.captions import EXAM_SEED, caption_quality
from fastdiff.measuring.fields import Caption
from fastdiff.models.shapes.scenes import Scene, draw, exam_scenes

RED = "a red circle on a white background"
BLUE = "a blue square left of a green ring on a black background"


def picture(caption: str) -> Image.Image:
    """What a caption means."""
    scene = Scene.parse(caption)
    assert scene is not None
    return draw(scene, random.Random(0))


def a_run(*overrides: str, **generation: Any) -> RunConfig:
    run = compose(["device=cpu", *overrides])
    for name, value in generation.items():
        setattr(run.generation, name, value)
    return run


class Painter:
    """A pipeline that draws what captions mean, but everything from the `spoils`th call on in black."""

    def __init__(self, spoils: int | None = None) -> None:
        self.spoils, self.calls = spoils, []

    def __call__(
        self,
        prompt: Any,
        num_inference_steps: int = 1,
        guidance_scale: float = 1.0,
        height: int = 64,
        width: int = 64,
        num_images_per_prompt: int = 1,
        generator: Any = None,
    ) -> Any:
        self.calls.append({"prompt": prompt, "seed": generator.initial_seed(), "height": height})
        captions = [prompt] if isinstance(prompt, str) else prompt
        spoilt = self.spoils is not None and len(self.calls) > self.spoils
        made = [
            Image.new("RGB", (64, 64)) if spoilt else picture(caption)
            for caption in captions
            for _ in range(num_images_per_prompt)
        ]
        return type("Drawn", (), {"images": made})


def untouched() -> None:
    """A pipeline that must not be called."""
    raise AssertionError("nothing was to be drawn")


def test_the_runs_own_picture_is_judged_by_its_prompt() -> None:
    right = caption_quality(untouched, a_run(prompt=RED), [picture(RED)], silent)
    assert right == Caption("own prompts", 1, 1, 1, 1.0, None)
    wrong = caption_quality(untouched, a_run(prompt=RED), [picture(BLUE)], silent)
    assert (wrong.right, wrong.shapes_right, wrong.score) == (0, 0, 0.0)


def test_pictures_of_several_prompts_belong_to_them_in_order() -> None:
    run = a_run(prompt=[RED, "a sunset", BLUE], images_per_prompt=2)
    made = [picture(RED)] * 2 + [picture(RED)] * 2 + [picture(BLUE)] * 2
    found = caption_quality(untouched, run, made, silent)
    assert (found.pictures, found.right) == (4, 4)  # the sunset can't be judged
    swapped = caption_quality(untouched, run, made[::-1], silent)
    assert (swapped.pictures, swapped.right) == (4, 0)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["generation.prompt=a sunset"],
            "the prompt is none of the captions that this model was taught",
        ),
        (["quality=none"], "quality=none"),
        (
            ["model=local", "model.path=DIR", f"generation.prompt={RED}"],
            "only the embedded model, model=shapes, is judged by captions",
        ),
    ],
)
def test_where_no_caption_can_be_judged_the_score_is_null_with_the_reason(
    overrides: list[str], reason: str
) -> None:
    found = caption_quality(untouched, a_run(*overrides), [picture(RED)], silent)
    assert found == Caption(reason=reason)


def test_held_out_captions_are_drawn_as_the_run_draws_and_are_always_the_same() -> None:
    told: list[tuple[str, int, int]] = []
    painter = Painter(spoils=3)
    run = a_run("quality.captions=4", "model.role=student", seed=5)
    found = caption_quality(painter, run, [picture(RED)], lambda *said: told.append(said))
    captions = [scene.caption for scene in exam_scenes(4, EXAM_SEED)]
    assert painter.calls == [
        {"prompt": caption, "seed": 5 + number, "height": 64}
        for number, caption in enumerate(captions)
    ]
    assert (found.of_, found.pictures, found.right) == ("held-out captions", 4, 3)
    assert found.score == 0.75
    assert told == [("drawing captions", number, 4) for number in range(4)]


def test_captions_are_drawn_in_batches_of_the_runs_own_size() -> None:
    painter = Painter()
    run = a_run("quality.captions=3", prompt=[RED, BLUE], images_per_prompt=2)
    found = caption_quality(painter, run, [], silent)
    assert [len(call["prompt"]) for call in painter.calls] == [2, 2]
    assert painter.calls[1]["prompt"][1] == painter.calls[0]["prompt"][0]
    assert (found.pictures, found.right) == (6, 6)


def test_more_captions_begin_with_those_of_fewer() -> None:
    assert exam_scenes(30, EXAM_SEED)[:12] == exam_scenes(12, EXAM_SEED)


@pytest.mark.parametrize(
    ("captions", "right"), [(2, 1), pytest.param(4, 3, marks=pytest.mark.exhaustive)]
)
def test_the_embedded_model_draws_most_of_its_captions(
    captions: int, right: int, shapes_plan: Any, built: Any
) -> None:
    from fastdiff.models.pictures import float32_noise

    plan = shapes_plan(f"quality.captions={captions}", "generation.steps=12")
    pipeline, _ = built(plan)
    with float32_noise(pipeline):
        found = caption_quality(pipeline, plan.setting.run, [], silent)
    assert found.pictures == captions
    assert found.right >= right
