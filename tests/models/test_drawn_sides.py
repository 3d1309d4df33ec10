"""Sides that pipelines refuse, round, or take for others, against the pipelines themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit

from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.reading import read_folder
from fastdiff.models.sides import HUNYUAN_DIT_SIDES, drops_the_rest, side_multiple, taken_for

diffusers: Any = _diffusers


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        # The tiny VAEs make two pixels of a latent, Qwen's four, and Flux 2's one.
        ("ChromaPipeline", 4),
        ("Flux2KleinPipeline", 2),
        ("FluxPipeline", 4),
        ("QwenImagePipeline", 8),
        ("ZImagePipeline", 4),
    ],
)
def test_sides_are_whole_patches(
    name: str, multiple: int, tiny_folder: Callable[[str], Path]
) -> None:
    folder = tiny_folder(name)
    assert side_multiple(read_folder(folder)) == multiple
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)

    def draw(height: int) -> Any:
        return pipeline(prompt="a red circle", height=height, width=32, num_inference_steps=1)

    assert draw(32 + multiple).images[0].size == (32, 32 + multiple)
    if drops_the_rest(name):
        assert draw(32 + multiple - 1).images[0].size == (32, 32)
    else:
        with pytest.raises(ValueError, match=f"divisible by {multiple}"):
            draw(32 + multiple - 1)


def test_stable_diffusion_has_no_multiple_but_eight(tiny_folder: Callable[[str], Path]) -> None:
    assert side_multiple(read_folder(tiny_folder("StableDiffusionPipeline"))) is None


def test_an_unknown_vae_tells_no_multiple() -> None:
    transformer = Component("transformer", "diffusers", "FluxTransformer2DModel", 0, 0)
    assert side_multiple(ModelFacts("FluxPipeline", {"transformer": transformer})) is None
    assert side_multiple(ModelFacts("SanaPipeline", {})) == 32


def test_stable_diffusion_3_counts_its_own_patches() -> None:
    parts = {
        "transformer": Component("transformer", "diffusers", "SD3Transformer2DModel", 0, 0, {"patch_size": 2}),
        "vae": Component("vae", "diffusers", "AutoencoderKL", 0, 0, {"block_out_channels": [1, 2, 4, 4]}),
    }  # fmt: skip
    assert side_multiple(ModelFacts("StableDiffusion3Pipeline", parts)) == 16


SIDES = (256, 512, 768, 864, 1000, 1024, 1152, 1280, 1536)


@pytest.mark.parametrize("height", SIDES)
def test_hunyuan_dit_takes_the_nearest_that_it_knows(height: int) -> None:
    for width in SIDES:
        wide, high = pipeline_hunyuandit.map_to_standard_shapes(width, height)
        supported = (height, width) in pipeline_hunyuandit.SUPPORTED_SHAPE
        expected = None if supported or (high, wide) == (height, width) else (high, wide)
        assert taken_for("HunyuanDiTPipeline", height, width) == expected
    assert taken_for("HunyuanDiTPipeline", None, None) is None


def test_hunyuan_dits_sides_are_diffusers_own() -> None:
    known = {sides for shapes in HUNYUAN_DIT_SIDES.values() for sides in shapes}
    assert known == set(pipeline_hunyuandit.SUPPORTED_SHAPE)


@pytest.mark.parametrize(
    ("name", "height", "width", "taken"),
    [
        ("FluxKontextPipeline", 512, 512, (1024, 1024)),
        ("FluxKontextPipeline", 512, 1024, (720, 1440)),
        ("FluxKontextPipeline", 1024, 1024, None),
        ("FluxKontextPipeline", None, None, None),
        ("HiDreamImagePipeline", 512, 512, (1024, 1024)),
        ("HiDreamImagePipeline", 1024, None, None),
        ("FluxPipeline", 512, 512, None),
    ],
)
def test_who_keeps_the_ratio_alone(
    name: str, height: int | None, width: int | None, taken: tuple[int, int] | None
) -> None:
    assert taken_for(name, height, width) == taken
