"""Calling a pipeline so that every device and precision starts from the same latents, and judging what comes out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastdiff.config import Generation
from fastdiff.errors import RunError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

OnStep = Callable[[int, Any], None]
"""Told the step's number (from 0) and its latents, whenever a denoising step ends."""


@contextmanager
def float32_noise(pipeline: Any) -> Iterator[None]:
    """Within it, the pipeline and its scheduler draw noise in fp32 on the CPU and cast it afterwards.

    diffusers draws in the latents' dtype, and for some sizes the same seed then gives other numbers in bf16 or fp16
    than in fp32: another picture, not a less exact one.
    """
    import torch
    from diffusers.utils.torch_utils import randn_tensor

    def drawn(
        shape: Any,
        generator: Any = None,
        device: Any = None,
        dtype: Any = None,
        layout: Any = None,
    ) -> Any:
        noise = randn_tensor(
            shape, generator=generator, device=torch.device("cpu"), dtype=torch.float32
        )
        return noise.to(device=device, dtype=dtype)

    parts = (pipeline, pipeline.scheduler)
    owners = {kind.__module__ for part in parts for kind in type(part).__mro__}
    changed = [sys.modules[name] for name in owners if hasattr(sys.modules[name], "randn_tensor")]
    before = [module.randn_tensor for module in changed]
    for module in changed:
        module.randn_tensor = drawn  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, function in zip(changed, before, strict=True):
            module.randn_tensor = function  # type: ignore[attr-defined]


def arguments(pipeline: Any, generation: Generation) -> dict[str, Any]:
    """The pipeline's keyword arguments for this generation, the generator left out.

    Raises RunError if something was asked for that this pipeline has no argument for.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    prompt = generation.prompt if isinstance(generation.prompt, str) else generation.prompts
    negative: Any = generation.negative_prompt
    if negative is not None and isinstance(prompt, list):
        negative = [negative] * len(prompt)
    wanted = {
        "prompt": prompt,
        "negative_prompt": negative,
        "num_inference_steps": generation.steps,
        "guidance_scale": generation.guidance_scale,
        "height": generation.height,
        "width": generation.width,
        "num_images_per_prompt": generation.images_per_prompt,
        **generation.call,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    if given["num_images_per_prompt"] == 1:
        del given["num_images_per_prompt"]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise RunError(
            f"{type(pipeline).__name__} takes no {', '.join(unknown)}\n"
            "  instead: leave that key at null; a pipeline that takes no prompt can't be run by fastdiff"
        )
    return given


def draw(pipeline: Any, generation: Generation, on_step: OnStep | None = None) -> list[Image]:
    """One call of the pipeline: RGB pictures, prompts times images_per_prompt of them.

    Raises RunError under torch.autocast.
    """
    import torch

    refuse_autocast()
    given = arguments(pipeline, generation)
    if on_step is not None and _tells_steps(pipeline):

        def told(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(index, tensors.get("latents"))
            return tensors

        given["callback_on_step_end"] = told
    generator = torch.Generator("cpu").manual_seed(generation.seed)
    pictures: list[Image] = pipeline(**given, generator=generator).images
    return pictures


class LastLatents:
    """Keeps the latents that the last step told: what the VAE decodes. Told as `OnStep`."""

    def __init__(self) -> None:
        self._latents: Tensor | None = None

    def __call__(self, index: int, latents: Any) -> None:
        self._latents = latents

    def copied(self) -> Tensor | None:
        """The latents in fp32 on the CPU, in the pipeline's own shape; None if no step told any.

        Copying waits for the device: not to be called while a clock runs.
        """
        return None if self._latents is None else self._latents.detach().float().cpu().clone()


def _tells_steps(pipeline: Any) -> bool:
    return "callback_on_step_end" in inspect.signature(type(pipeline).__call__).parameters


def what_is_wrong(picture: Image) -> str | None:
    """Why a picture is no result: it is black, or of one colour. None if it is one."""
    import numpy

    pixels = numpy.asarray(picture.convert("RGB"))
    if pixels.max() == 0:
        return "the picture is black"
    if (pixels.reshape(-1, 3) == pixels[0, 0]).all():
        return "the picture has one colour only"
    return None


_GUIDE = "https://huggingface.co/docs/diffusers/optimization/fp16"


def refuse_autocast() -> None:
    """Raise RunError if torch.autocast is on in this thread, for any kind of device."""
    import torch

    for device in ("cpu", "cuda", "mps"):
        if torch.is_autocast_enabled(device):
            raise RunError(
                f"torch.autocast is on ({device}): it casts at every operation, which is slower than weights in half "
                "precision, and it can paint pictures black\n"
                "  instead: leave torch.autocast out and take precision=fp16 or precision=bf16\n"
                f"  source: {_GUIDE}"
            )
