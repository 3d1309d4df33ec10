"""library.json against the installed diffusers, and how classes are looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diffusers.utils import BaseOutput

from fastdiff.models import inspection, library
from fastdiff.models.library import MODEL_CLASSES, PIPELINE_CLASSES

FILE = Path(library.__file__).with_name("library.json")


def test_the_file_is_what_the_installed_diffusers_says() -> None:
    """In a process of its own, for the program imports every model and pipeline class that there is."""
    code = (
        "from fastdiff.models import inspection; print(inspection.written(inspection.of_library()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, kept = json.loads(done.stdout), json.loads(FILE.read_text())
    anew = "python -m fastdiff.models.inspection writes library.json anew"
    assert found["diffusers"] == kept["diffusers"], anew
    for table in ("pipelines", "models"):
        changed = [
            n for n in found[table] | kept[table] if found[table].get(n) != kept[table].get(n)
        ]
        assert not changed, f"{changed}: {anew}"


@dataclass
class DrawnOutput(BaseOutput):
    images: Any
    flags: Any


class DrawingPipeline:
    """As pipelines of diffusers are written, and with their traps."""

    def __init__(self, transformer: Any, transformer_2: Any, vae: Any, scheduler: Any) -> None: ...

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1

    @property
    def clip_skip(self) -> int:
        return self._clip_skip

    def check_inputs(self, prompt: Any, strength: Any) -> None: ...

    def step(self, model: Any, latents: Any) -> Any:
        return self.transformer_2(latents)

    def __call__(
        self,
        prompt: str,
        guidance_scale: float = 7.5,
        clip_skip: int | None = None,
        strength: float = 0.8,
        steps: int = 3,
        dtype: type = float,
        **kwargs: Any,
    ) -> DrawnOutput:
        self.check_inputs(prompt, strength)
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        latents = [prompt]
        model = self.transformer if self.is_guided else None
        for _ in self.scheduler.timesteps(steps):
            with model.cache_context("cond" if self.is_guided else "uncond"):
                latents = model(latents)
            latents = self.step(model, latents)
        latents = self.vae(latents, dtype)
        return DrawnOutput(images=latents, flags=None)


DrawingPipeline.__module__ = "diffusers.pipelines.drawing"


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(sys.modules, "diffusers.pipelines.drawing", sys.modules[__name__])
    return inspection.pipeline_facts(DrawingPipeline)


def test_a_call_is_read_for_its_arguments(drawing: dict[str, Any]) -> None:
    assert drawing["arguments"] == [
        *("prompt", "guidance_scale", "clip_skip", "strength", "steps", "dtype")
    ]
    assert drawing["defaults"] == {
        "guidance_scale": 7.5,
        "strength": 0.8,
        "steps": 3,
        "dtype": "<class 'float'>",
    }
    assert drawing["required"] == ["prompt"]


def test_what_only_checks_and_unread_attributes_take_is_unread(drawing: dict[str, Any]) -> None:
    assert drawing["unread"] == ["clip_skip", "strength"]


def test_steps_are_read_for_the_components_that_they_call(drawing: dict[str, Any]) -> None:
    assert drawing["each_step"] == ["transformer", "transformer_2"], "by another name, in a method"
    assert drawing["contexts"] == ["cond", "uncond"]
    assert drawing["gives"] == ["images", "flags"]


@pytest.mark.parametrize(
    ("pipeline", "argument"),
    [
        ("AudioLDM2Pipeline", "cross_attention_kwargs"),
        ("ChromaInpaintPipeline", "true_cfg_scale"),
        ("PaintByExamplePipeline", "negative_prompt"),
        ("StableUnCLIPImg2ImgPipeline", "clip_skip"),
    ],
)
def test_arguments_that_nothing_reads_are_known(pipeline: str, argument: str) -> None:
    assert argument in PIPELINE_CLASSES[pipeline].unread


@pytest.mark.parametrize(
    ("pipeline", "denoisers"),
    [
        ("FluxPipeline", ("transformer",)),
        ("Ideogram4Pipeline", ("transformer", "unconditional_transformer")),
        ("StableDiffusionControlNetPipeline", ("unet",)),
        ("HunyuanVideo15Pipeline", ("transformer",)),
        ("WanPipeline", ("transformer", "transformer_2")),
    ],
)
def test_who_predicts_in_each_step(pipeline: str, denoisers: tuple[str, ...]) -> None:
    assert PIPELINE_CLASSES[pipeline].denoisers == denoisers


def test_what_models_show() -> None:
    flux, sd3 = MODEL_CLASSES["FluxTransformer2DModel"], MODEL_CLASSES["SD3Transformer2DModel"]
    assert (flux.attention, flux.dispatched) == (2, 2)
    assert (sd3.attention, sd3.dispatched) == (1, 0), "its processors don't ask the dispatcher"
    assert flux.cached_blocks == ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    assert (flux.context_parallel, sd3.context_parallel) == (True, False)
    assert MODEL_CLASSES["MultiControlNetModel"].attention is None, "it can't be built alone"
    tiled = {"AutoencoderKLWan": True, "ConsistencyDecoderVAE": False, "VQModel": False}
    assert {name: MODEL_CLASSES[name].tiling for name in tiled} == tiled
