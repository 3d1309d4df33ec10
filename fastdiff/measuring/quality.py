"""How far pictures, and the latents that they were decoded from, are from their references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Reference
from fastdiff.errors import named_line
from fastdiff.measuring.fields import Quality
from fastdiff.measuring.protocol import LATENTS, ReferencePictures
from fastdiff.models.hub import downloads_are_forbidden
from fastdiff.planning.rules import lpips_weights

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Figure = float | str
"""A figure, or the reason why there is none."""


def with_figures(quality: Quality, **figures: Figure) -> Quality:
    """With these figures; a text stands for a figure that can't be had, and says why."""
    reasons = {name: why for name, why in figures.items() if isinstance(why, str)}
    values: dict[str, Any] = {n: None if n in reasons else v for n, v in figures.items()}
    return replace(quality, **values, reasons={**quality.reasons, **reasons})


def against(
    reference: ReferencePictures,
    pictures: Sequence[Image],
    latents: Tensor | None,
    *,
    lpips: bool = False,
) -> Quality:
    """A run's distance from its reference, or the reason why there is none.

    latents: of the run's last step, fp32 on the CPU; None if its pipeline tells none.
    """
    paths, own = reference.pictures, reference.pictures == "own"
    if not paths:
        return not_compared(reference, reference.reason)
    try:
        found = compare(pictures, pictures if own else _opened(paths), lpips=lpips)
    except (OSError, ValueError) as error:
        return not_compared(reference, str(error))
    wanted = latents if own else load_latents(reference.latents)
    named = replace(found, reference_run_id=reference.run_id, reference=reference.name)
    return with_figures(named, max_abs_difference_latents=latent_difference(latents, wanted))


def not_compared(reference: ReferencePictures, reason: str | None) -> Quality:
    """A run's `quality` where nothing was compared with its reference."""
    return Quality(reference.run_id, reference.name, reason)


def _opened(paths: Sequence[str]) -> list[Image]:
    """Pictures in RGB. Raises OSError."""
    from PIL import Image

    found = []
    for path in paths:
        with Image.open(path) as picture:
            found.append(picture.convert("RGB"))
    return found


# Pictures -----------------------------------------------------------------------------------------


def compare(
    pictures: Sequence[Image], references: Sequence[Image], *, lpips: bool = False
) -> Quality:
    """Compare 8-bit RGB pictures, all of them together, with others of the same size.

    Raises ValueError if they differ in number or size.
    """
    if len(pictures) != len(references):
        raise ValueError(f"{len(pictures)} pictures against {len(references)} references")
    for picture, reference in zip(pictures, references, strict=True):
        if picture.size != reference.size:
            raise ValueError(
                f"the picture has {picture.size[0]}x{picture.size[1]} pixels, "
                f"its reference {reference.size[0]}x{reference.size[1]}"
            )
    given, wanted = _stack(pictures), _stack(references)
    difference = float((given - wanted).abs().max())
    if difference == 0:  # where rounding would give an SSIM just below 1
        same = Quality(reason=None, identical=True, ssim=1.0, max_abs_difference=0.0)
        return with_figures(
            same,
            psnr_db="the pictures are identical, and it would be infinite",
            ms_ssim=_too_small("MS-SSIM", Reference.ms_ssim_side, given) or 1.0,
            lpips=0.0 if lpips else _NOT_ASKED,
        )
    # Imported only where something has to be measured: it takes a fifth of a second.
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    ssim = float(structural_similarity_index_measure(given, wanted, data_range=1.0))
    psnr = float(peak_signal_noise_ratio(given, wanted, data_range=1.0))
    return with_figures(
        Quality(reason=None, identical=False, ssim=ssim, max_abs_difference=difference),
        psnr_db=psnr,
        ms_ssim=_ms_ssim(given, wanted),
        lpips=_lpips(given, wanted) if lpips else _NOT_ASKED,
    )


_NOT_ASKED = "quality.lpips=false"


def _stack(pictures: Sequence[Image]) -> Tensor:
    """[n, 3, height, width] float32 in [0, 1]."""
    import numpy
    import torch

    arrays = [numpy.asarray(picture.convert("RGB")) for picture in pictures]
    return torch.from_numpy(numpy.stack(arrays)).permute(0, 3, 1, 2).float() / 255.0


def _too_small(name: str, side: int, pictures: Tensor) -> str | None:
    """Why pictures [n, 3, height, width] can't be compared in this way; None if they are large enough."""
    height, width = pictures.shape[-2:]
    if min(height, width) >= side:
        return None
    return f"{name} needs {side} pixels a side, and the pictures have {width}x{height}"


def _ms_ssim(given: Tensor, wanted: Tensor) -> Figure:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    small = _too_small("MS-SSIM", Reference.ms_ssim_side, given)
    return small or float(
        multiscale_structural_similarity_index_measure(given, wanted, data_range=1.0)
    )


def _lpips(given: Tensor, wanted: Tensor) -> Figure:
    """LPIPS through AlexNet, the mean over the pictures. torchvision fetches its weights where they aren't there yet."""
    small = _too_small("LPIPS", Reference.lpips_side, given)
    if small:
        return small
    weights = lpips_weights()
    if downloads_are_forbidden() and not weights.is_file():
        return f"{weights.name} is not in torch's hub folder, and HF_HUB_OFFLINE forbids to download it"
    try:
        # From its own module: the package leaves it out where torchvision was missing when it was imported.
        from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

        return float(
            learned_perceptual_image_patch_similarity(
                given, wanted, net_type="alex", reduction="mean", normalize=True
            )
        )
    except (ImportError, OSError, RuntimeError) as error:
        return f"LPIPS has no network to look through ({named_line(error)})"


# Latents ------------------------------------------------------------------------------------------


def save_latents(folder: Path, latents: Tensor | None) -> None:
    """Write the latents of the last step beside a run's pictures; nothing where there are none."""
    if latents is not None:
        from safetensors.torch import save_file

        save_file({"latents": latents.contiguous()}, folder / LATENTS)


def load_latents(path: str | None) -> Tensor | str:
    """What `save_latents` wrote, or why there is nothing."""
    if path is None:
        return "the reference is a picture, and a picture has no latents"
    if not Path(path).is_file():
        return "the reference's pipeline tells no latents"
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["latents"]
    except (OSError, KeyError, SafetensorError) as error:
        return f"the reference's latents can't be read ({error})"


def latent_difference(given: Tensor | None, wanted: Tensor | str | None) -> Figure:
    """The largest difference between latents of the same shape, in fp32."""
    if given is None or wanted is None:
        return "this pipeline tells no latents"
    if isinstance(wanted, str):
        return wanted
    if given.shape != wanted.shape:
        return f"the latents are {list(given.shape)}, the reference's {list(wanted.shape)}"
    difference = float((given.float() - wanted.float()).abs().max())
    return difference if math.isfinite(difference) else "the latents are not all numbers"
