"""What a pipeline is asked for, and pictures that are no result."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import silent
from PIL import Image

from fastdiff.config import Generation
from fastdiff.errors import InvalidOutputError, RunError
from fastdiff.measuring.timing import first_call
from fastdiff.models.pictures import LastLatents, arguments, draw, what_is_wrong

WAY_OUT = (
    "\n  instead: precision=bf16 or precision=fp32 if it was fp16, which overflows on some models, or "
    "lora=none, the model's own guidance_scale and scheduler; a safety checker paints what it rejects black"
)


def coloured() -> Image.Image:
    picture = Image.new("RGB", (16, 16), (200, 10, 10))
    picture.putpixel((3, 3), (0, 0, 255))
    return picture


class Drawn:
    """What a pipeline returns."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images


class Fake:
    """A pipeline that returns a given picture, and given latents after its steps."""

    def __init__(self, *pictures: Image.Image, latents: list[Any] | None = None) -> None:
        self.pictures, self.latents, self.calls = pictures, latents, []

    def __call__(
        self,
        prompt: Any = None,
        negative_prompt: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        callback_on_step_end: Any = None,
    ) -> Drawn:
        self.calls.append({k: v for k, v in locals().items() if k != "self"})
        for index in range(num_inference_steps):
            if callback_on_step_end:
                given = {"latents": self.latents[index]} if self.latents else {}
                assert callback_on_step_end(self, index, 0, given) == given
        many = 1 if isinstance(prompt, str) else len(prompt)
        return Drawn([*self.pictures] * (many * num_images_per_prompt // len(self.pictures)))


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("RGB", (16, 16)), "the picture is black"),
        (Image.new("L", (16, 16)), "the picture is black"),
        (Image.new("RGB", (16, 16), (7, 8, 9)), "the picture has one colour only"),
        (Image.new("RGB", (16, 16), "white"), "the picture has one colour only"),
    ],
)
def test_a_black_or_constant_picture_is_no_result(picture: Image.Image, reason: str) -> None:
    with pytest.raises(InvalidOutputError) as refused:
        first_call(Fake(picture), Generation("a", steps=2), "cpu", silent)
    assert str(refused.value) == reason + WAY_OUT


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_latents_that_are_no_numbers_are_named_with_the_first_step_that_had_them(
    number: float,
) -> None:
    import torch

    good, bad = torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    bad[0, 1, 1, 1] = number
    pipeline = Fake(Image.new("RGB", (16, 16)), latents=[good, bad, bad])
    with pytest.raises(InvalidOutputError) as refused:
        first_call(pipeline, Generation("a", steps=3), "cpu", silent)
    first, _, rest = str(refused.value).partition("\n")
    assert first == "the latents are not numbers (NaN or infinite) after step 2"
    assert "\n" + rest == WAY_OUT


def test_one_bad_picture_of_several_is_enough() -> None:
    pipeline = Fake(coloured(), Image.new("RGB", (16, 16)))
    with pytest.raises(InvalidOutputError, match="the picture is black"):
        first_call(pipeline, Generation(["a", "b"], steps=1), "cpu", silent)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_a_real_pipeline_with_broken_weights_gives_an_error_and_no_picture(
    sd_folder: Any, local_plan: Any
) -> None:
    import torch

    from fastdiff.planning.build import build

    plan = local_plan(sd_folder)
    pipeline = build(plan).pipeline
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(InvalidOutputError, match="after step 1\n"):
        first_call(pipeline, plan.setting.run.generation, "cpu", silent)


def test_a_picture_with_one_pixel_of_another_colour_is_a_result() -> None:
    assert what_is_wrong(coloured()) is None


def test_only_what_was_given_reaches_the_pipeline() -> None:
    pipeline = Fake(coloured())
    assert arguments(pipeline, Generation("a cat")) == {"prompt": "a cat"}
    everything = Generation("a cat", "rain", 3, 0.0, 64, 32, images_per_prompt=2)
    assert arguments(pipeline, everything) == {
        "prompt": "a cat",
        "negative_prompt": "rain",
        "num_inference_steps": 3,
        "guidance_scale": 0.0,
        "height": 64,
        "width": 32,
        "num_images_per_prompt": 2,
    }


def test_a_batch_of_prompts_has_as_many_negative_ones() -> None:
    given = arguments(Fake(coloured()), Generation(["a", "b", "c"], "rain"))
    assert given == {"prompt": ["a", "b", "c"], "negative_prompt": ["rain"] * 3}


def test_prompts_times_pictures_are_drawn() -> None:
    pictures = draw(Fake(coloured()), Generation(["a", "b"], steps=1, images_per_prompt=3))
    assert len(pictures) == 6


def test_the_seed_decides_the_generator_and_0_is_a_seed() -> None:
    pipeline = Fake(coloured())
    for seed in (0, 0, 5):
        draw(pipeline, Generation("a", steps=1, seed=seed))
    seeds = [call["generator"].initial_seed() for call in pipeline.calls]
    assert seeds == [0, 0, 5]
    assert len({id(call["generator"]) for call in pipeline.calls}) == 3


def test_something_asked_for_that_the_pipeline_has_no_argument_for_is_an_error() -> None:
    class NoGuidance:
        def __call__(self, prompt: Any, num_inference_steps: int, generator: Any) -> Drawn:
            return Drawn([coloured()])

    with pytest.raises(RunError) as refused:
        arguments(NoGuidance(), Generation("a", "rain", 2, 5.0))
    assert str(refused.value) == (
        "NoGuidance takes no negative_prompt, guidance_scale\n"
        "  instead: leave that key at null; a pipeline that takes no prompt can't be run by fastdiff"
    )


def test_steps_are_told_as_they_end_and_a_pipeline_that_tells_none_is_drawn_all_the_same() -> None:
    class Silent:
        def __call__(self, prompt: Any, num_inference_steps: int, generator: Any) -> Drawn:
            return Drawn([coloured()])

    told: list[tuple[int, Any]] = []
    draw(
        Fake(coloured()),
        Generation("a", steps=3),
        lambda index, latents: told.append((index, latents)),
    )
    assert told == [(0, None), (1, None), (2, None)]
    told.clear()
    assert len(draw(Silent(), Generation("a", steps=3), lambda i, x: told.append((i, x)))) == 1
    assert told == []


def test_the_last_steps_latents_are_kept_in_fp32() -> None:
    import torch

    told = [torch.full((1, 4, 2, 2), float(step), dtype=torch.float16) for step in range(3)]
    last = LastLatents()
    draw(Fake(coloured(), latents=told), Generation("a", steps=3), last)
    kept = last.copied()
    assert kept is not None
    assert kept.dtype == torch.float32
    assert kept.tolist() == told[2].tolist()
    told[2].zero_()  # a buffer that the next call writes over
    assert float(kept.max()) == 2.0


def test_a_pipeline_that_tells_no_latents_leaves_none() -> None:
    last = LastLatents()
    draw(Fake(coloured()), Generation("a", steps=2), last)
    assert last.copied() is None


def test_the_latents_kept_are_what_is_decoded(sd_folder: Any, local_plan: Any) -> None:
    import torch

    from fastdiff.planning.build import build

    plan = local_plan(sd_folder)
    pipeline = build(plan).pipeline
    last = LastLatents()
    with torch.no_grad():
        pictures = draw(pipeline, plan.setting.run.generation, last)
        kept = last.copied()
        assert kept is not None
        decoded = pipeline.vae.decode(kept / pipeline.vae.config.scaling_factor).sample
    again = pipeline.image_processor.postprocess(decoded)[0]
    assert again.tobytes() == pictures[0].tobytes()
