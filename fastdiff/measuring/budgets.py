"""Budgets: how far a user lets a run's pictures move, and what is said when they moved further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastdiff.measuring.fields import Quality


@dataclass(frozen=True)
class _Figure:
    """What a budget is about: the field of a run's `quality`, its name in a sentence, and its unit."""

    field: str
    name: str
    unit: str = ""


_FIGURES = {
    "min_psnr_db": _Figure("psnr_db", "PSNR", " dB"),
    "min_ssim": _Figure("ssim", "SSIM"),
    "min_ms_ssim": _Figure("ms_ssim", "MS-SSIM"),
    "max_lpips": _Figure("lpips", "LPIPS"),
    "max_abs_difference": _Figure("max_abs_difference", "the largest difference of pixels"),
    "max_abs_difference_latents": _Figure(
        "max_abs_difference_latents", "the largest difference of latents"
    ),
}
_CAPTIONS = "min_caption_score"


def missed(quality: Quality, budgets: Mapping[str, float]) -> list[str]:
    """Every budget that a run misses, in words; one whose figure can't be had is missed too.

    quality: of the run's report, `caption` included. budgets: limits by key, as `Reference.budgets()` gives them.
    """
    said = []
    for key, limit in budgets.items():
        find = _caption_fault if key == _CAPTIONS else _fault
        fault = find(quality, key, limit)
        if fault:
            said.append(f"quality.{key}={limit:g}: {fault}")
    return said


def refusal(missed: list[str]) -> str:
    """The error of a run that missed these budgets."""
    what = "the picture misses its budget" if len(missed) == 1 else "the picture misses its budgets"
    return "\n".join(
        [
            what,
            *(f"  {each}" for each in missed),
            "  instead: leave out what moves the picture most (quant, cache, precision, vae), or a "
            "wider budget",
        ]
    )


def _fault(quality: Quality, key: str, limit: float) -> str | None:
    """What is wrong with a figure; None if it keeps its budget, as those of identical pictures do."""
    about = _FIGURES[key]
    if quality.identical and about.field != "max_abs_difference_latents":
        return None
    value = getattr(quality, about.field)
    if value is None:
        reason = quality.reasons.get(about.field) or quality.reason
        return f"can't be judged: {reason}"
    if _keeps(key, value, limit):
        return None
    return f"{about.name} is {_shown(value, limit)}{about.unit} against {quality.reference}"


def _caption_fault(quality: Quality, key: str, limit: float) -> str | None:
    found = quality.caption
    if found.score is None:
        return f"can't be judged: {found.reason}"
    if _keeps(key, found.score, limit):
        return None
    share = _shown(found.score, limit)
    return f"{found.right} of {found.pictures} pictures are right, {share} of them"


def _keeps(key: str, value: float, limit: float) -> bool:
    return value >= limit if key.startswith("min_") else value <= limit


def _shown(value: float, limit: float) -> str:
    """A figure with as many digits as it takes, four at least, to see on which side of its limit it is."""
    for digits in range(4, 17):
        text = f"{value:.{digits}g}"
        if (float(text) < limit) == (value < limit) and float(text) != limit:
            return text
    return repr(value)
