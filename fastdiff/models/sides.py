"""The sides that a pipeline really draws where it is asked for others.

Latents are cut into patches, so that most pipelines of today want multiples of 16 pixels or more: some refuse others after
everything has been loaded, some round without stopping, and a few keep only the ratio. Nothing here imports torch or diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastdiff.models.facts import ModelFacts

_PATCHES_REFUSED = ("AuraFlowPipeline", "Lumina2Pipeline", "ZImageOmniPipeline", "ZImagePipeline")
"""Pipelines whose sides are whole patches of two latents, and that refuse others."""
_PATCHES_ROUNDED = (
    "ChromaPipeline",
    "Flux2KleinKVPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "FluxPipeline",
    "LongCatImagePipeline",
    "OvisImagePipeline",
    "QwenImagePipeline",
)
"""The same, and they leave the rest away."""
_MULTIPLES_REFUSED: Mapping[str, int] = {
    "BriaFiboPipeline": 16,
    "CogView4Pipeline": 16,
    "Cosmos2TextToImagePipeline": 16,
    "SanaPAGPipeline": 32,
    "SanaPipeline": 32,
    "SanaSprintPipeline": 32,
}
"""Pipelines with a multiple of their own, in pixels."""
_OF_ONE_AREA = ("FluxKontextPipeline", "HiDreamImagePipeline")
"""Pipelines that keep the ratio of the sides and always draw 1024 x 1024 pixels or as many."""
_USUAL_SIDE = 1024

_HUNYUAN_DIT = ("HunyuanDiTPAGPipeline", "HunyuanDiTPipeline")
HUNYUAN_DIT_SIDES: Mapping[float, tuple[tuple[int, int], ...]] = {
    1 / 1: ((1024, 1024), (1280, 1280)),
    4 / 3: ((1024, 768), (1152, 864), (1280, 960)),
    3 / 4: ((768, 1024), (864, 1152), (960, 1280)),
    16 / 9: ((1280, 768),),
    9 / 16: ((768, 1280),),
}
"""Width and height that HunyuanDiT knows, by ratio; it takes the nearest."""


def side_multiple(facts: ModelFacts) -> int | None:
    """Pixels that both sides must be a multiple of; None where 8 will do or nobody knows."""
    if facts.pipeline in _MULTIPLES_REFUSED:
        return _MULTIPLES_REFUSED[facts.pipeline]
    scale = _pixels_a_latent(facts)
    if scale is None:
        return None
    if facts.pipeline in _PATCHES_REFUSED + _PATCHES_ROUNDED:
        return 2 * scale
    if facts.pipeline in ("StableDiffusion3PAGPipeline", "StableDiffusion3Pipeline"):
        patch = facts.denoiser.config.get("patch_size") if facts.denoiser else None
        return scale * patch if isinstance(patch, int) else None
    return None


def drops_the_rest(pipeline: str) -> bool:
    """Whether it rounds sides down to its multiple; the others refuse them."""
    return pipeline in _PATCHES_ROUNDED


def _pixels_a_latent(facts: ModelFacts) -> int | None:
    """How many pixels a latent is wide, worked out as the pipelines do."""
    config = facts.vae.config if facts.vae else {}
    blocks = config.get("block_out_channels")
    if facts.pipeline == "QwenImagePipeline":
        halvings = config.get("temperal_downsample")
        return 2 ** len(halvings) if isinstance(halvings, (list, tuple)) else None
    return 2 ** (len(blocks) - 1) if isinstance(blocks, (list, tuple)) else None


def taken_for(pipeline: str, height: int | None, width: int | None) -> tuple[int, int] | None:
    """Height and width that a pipeline draws instead, if it takes the ratio alone; None if it draws what it is asked for."""
    if pipeline not in _OF_ONE_AREA + _HUNYUAN_DIT or (height is None and width is None):
        return None
    asked = height or _USUAL_SIDE, width or _USUAL_SIDE
    drawn = _nearest_known(*asked) if pipeline in _HUNYUAN_DIT else _of_one_area(pipeline, *asked)
    return None if drawn == asked else drawn


def _of_one_area(pipeline: str, height: int, width: int) -> tuple[int, int]:
    if pipeline == "HiDreamImagePipeline":
        scale = (_USUAL_SIDE**2 / (width * height)) ** 0.5
        return int(height * scale // 16 * 16), int(width * scale // 16 * 16)
    ratio = width / height
    sides = round((_USUAL_SIDE**2 / ratio) ** 0.5), round((_USUAL_SIDE**2 * ratio) ** 0.5)
    return sides[0] // 16 * 16, sides[1] // 16 * 16


def _nearest_known(height: int, width: int) -> tuple[int, int]:
    if (height, width) in {sides for known in HUNYUAN_DIT_SIDES.values() for sides in known}:
        return height, width
    ratio = min(HUNYUAN_DIT_SIDES, key=lambda known: abs(known - width / height))
    wide, high = min(HUNYUAN_DIT_SIDES[ratio], key=lambda s: abs(s[0] * s[1] - width * height))
    return high, wide
