"""What is made of the pipeline classes' calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest

from fastdiff.models.calls import why_no_pictures
from fastdiff.models.library import PIPELINE_CLASSES
from fastdiff.models.reading import read_folder

diffusers: Any = _diffusers


def test_who_draws_from_a_prompt_has_one_scheduler() -> None:
    drawing = [name for name in PIPELINE_CLASSES if why_no_pictures(name) is None]
    assert len(drawing) > 60
    for name in drawing:
        kind = getattr(diffusers, name)
        if "dummy" not in kind.__module__:  # a package of its is missing here
            assert "scheduler" in inspect.signature(kind.__init__).parameters, name


def test_a_class_outside_the_table_has_no_facts() -> None:
    assert why_no_pictures("BrandNewPipeline") is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StableDiffusionPipeline", None),
        ("FluxKontextPipeline", None),  # its image may be left out
        ("FluxControlInpaintPipeline", "needs image=, control_image= and mask_image=, which fastdiff doesn't give yet"),
        ("LTXImageToVideoPipeline", "makes frames, not pictures; it needs image=, which fastdiff doesn't give yet"),
        ("StableAudioPipeline", "makes sound, not pictures"),
        ("KandinskyV22PriorPipeline", "makes embeddings for another pipeline, not pictures"),
        ("StableDiffusionUpscalePipeline", "needs image=, which fastdiff doesn't give yet"),
        ("MarigoldDepthPipeline", "makes maps of a picture that it is given, not pictures; it needs image=, which fastdiff doesn't give yet; it takes no prompt"),
        ("Kandinsky5T2IPipeline", "gives .image back, where fastdiff reads .images"),
        ("DDPMPipeline", "takes no prompt"),
        ("DiTPipeline", "needs class_labels=, which fastdiff doesn't give yet; it takes no prompt"),
        ("TextToVideoZeroPipeline", "makes frames, not pictures"),
        ("UnCLIPPipeline", "has a scheduler for each of its three parts, and fastdiff follows one"),
        ("VersatileDiffusionPipeline", "gives something else back, where fastdiff reads .images; it takes no prompt"),
    ],
)  # fmt: skip
def test_why_a_class_gives_no_pictures(name: str, reason: str | None) -> None:
    assert why_no_pictures(name) == reason


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionControlNetPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLImg2ImgPipeline",
    ],
)
def test_a_call_without_what_it_needs_fails(name: str, tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder(name)
    assert why_no_pictures(read_folder(folder).pipeline)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises((TypeError, ValueError)):
        pipeline(prompt="a red circle", num_inference_steps=2)
