"""How far pictures, and the latents that they were decoded from, are from their references."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Reference
from fastdiff.errors import named_line
from fastdiff.models.hub import downloads_are_forbidden
from fastdiff.planning.rules import lpips_weights

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

LATENTS = "latents.safetensors"
"""The file beside a run's pictures that holds the latents of its last step."""

NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("identical", "psnr_db", "ssim", "ms_ssim")),
    **dict.fromkeys(("max_abs_difference", "max_abs_difference_latents", "lpips")),
    "reasons": {},
}
"""The figures of a run that was compared with nothing."""

Figure = float | str
"""A figure, or the reason why there is none."""


@dataclass(frozen=True)
class Distance:
    """Pictures against references of the same number and size, all of them together.

    psnr_db: peak signal-to-noise ratio in dB; None if all are identical, where it is infinite.
    ssim, ms_ssim: structural similarity at one scale and at five, at most 1.
    max_abs_difference: of pixels, in [0, 1]. max_abs_difference_latents: of the last step's latents, in fp32.
    lpips: distance as a trained network sees it, 0 for the same picture.
    reasons: why, for each of them that is None.
    """

    identical: bool
    psnr_db: float | None
    ssim: float
    max_abs_difference: float
    ms_ssim: float | None = None
    max_abs_difference_latents: float | None = None
    lpips: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def given(self, **figures: Figure) -> Distance:
        """With these figures; a text stands for a figure that can't be had, and says why."""
        reasons = {name: why for name, why in figures.items() if isinstance(why, str)}
        values: dict[str, Any] = {n: None if n in reasons else v for n, v in figures.items()}
        return replace(self, **values, reasons={**self.reasons, **reasons})

    def to_dict(self) -> dict[str, Any]:
        return {name: asdict(self)[name] for name in NOTHING}


def against(
    reference: Mapping[str, Any],
    pictures: Sequence[Image],
    latents: Tensor | None,
    *,
    lpips: bool = False,
) -> dict[str, Any]:
    """A run's `quality`: its distance from the reference, or null with the reason.

    reference: {"run_id", "name", "reason", "pictures", "latents"}. Its pictures are a list of paths, `own` if the
        run is its own reference, or None; its latents are the path of a file, which need not exist, or None.
    latents: of the run's last step, fp32 on the CPU; None if its pipeline tells none.
    """
    known = not_compared(reference, reference.get("reason"))
    paths = reference.get("pictures")
    if not paths:
        return known
    own = paths == "own"
    try:
        found = compare(pictures, pictures if own else _opened(paths), lpips=lpips)
    except (OSError, ValueError) as error:
        return not_compared(reference, str(error))
    wanted = latents if own else load_latents(reference.get("latents"))
    return (
        known | found.given(max_abs_difference_latents=latent_difference(latents, wanted)).to_dict()
    )


def not_compared(reference: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    """A run's `quality` where nothing was compared with its reference."""
    known = {"reference_run_id": reference.get("run_id"), "reference": reference.get("name")}
    return {**known, "reason": reason, **NOTHING}


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
) -> Distance:
    """Compare 8-bit RGB pictures. Raises ValueError if they differ in number or size."""
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
        same = Distance(True, None, 1.0, 0.0)
        return same.given(
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
    return Distance(False, psnr, ssim, difference).given(
        ms_ssim=_ms_ssim(given, wanted), lpips=_lpips(given, wanted) if lpips else _NOT_ASKED
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
