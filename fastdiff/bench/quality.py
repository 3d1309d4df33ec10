"""How far pictures are from their references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """Pictures against references of the same number and size, all of them together.

    psnr_db: peak signal-to-noise ratio in dB; None if all are identical, where it is infinite.
    ssim: structural similarity, at most 1. max_abs_difference: of pixels, in [0, 1].
    """

    identical: bool
    psnr_db: float | None
    ssim: float
    max_abs_difference: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "identical": self.identical,
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            "max_abs_difference": self.max_abs_difference,
        }


def compare(pictures: Sequence[Image], references: Sequence[Image]) -> Distance:
    """Compare 8-bit RGB pictures. Raises ValueError if they differ in number or size."""
    if len(pictures) != len(references):
        raise ValueError(f"{len(pictures)} pictures against {len(references)} references")
    for picture, reference in zip(pictures, references, strict=True):
        if picture.size != reference.size:
            raise ValueError(
                f"the picture has {picture.size[0]}x{picture.size[1]} pixels, "
                f"its reference {reference.size[0]}x{reference.size[1]}"
            )
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    given, wanted = _stack(pictures), _stack(references)
    difference = float((given - wanted).abs().max())
    if difference == 0:  # where rounding would give an SSIM just below 1
        return Distance(True, None, 1.0, 0.0)
    ssim = float(structural_similarity_index_measure(given, wanted, data_range=1.0))
    psnr = float(peak_signal_noise_ratio(given, wanted, data_range=1.0))
    return Distance(False, psnr, ssim, difference)


def _stack(pictures: Sequence[Image]) -> Tensor:
    """[n, 3, height, width] float32 in [0, 1]."""
    import numpy
    import torch

    arrays = [numpy.asarray(picture.convert("RGB")) for picture in pictures]
    return torch.from_numpy(numpy.stack(arrays)).permute(0, 3, 1, 2).float() / 255.0
