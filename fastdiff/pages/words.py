"""Figures and choices in words, the same on the screen and on every page."""

from __future__ import annotations

from typing import Any

from fastdiff.config import NO_EXPERIMENT
from fastdiff.options import default_options


def seconds(value: float | None) -> str:
    """`0.41 s`; minutes from 120 s on; a dash for what wasn't measured."""
    if value is None:
        return "-"
    if value >= 120:
        return f"{value / 60:.1f} min"
    if value >= 10:
        return f"{value:.1f} s"
    return f"{value:.2f} s" if value >= 1 else f"{value:.3f} s"


def rate(value: float | None) -> str:
    """Pictures a second, three digits: `2.38`; a dash for what wasn't measured."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def size(value: int | None) -> str:
    """`0.8 GB`, in powers of ten; a dash for what wasn't measured."""
    if value is None:
        return "-"
    return f"{value / 1e9:.1f} GB" if value >= 1e8 else f"{value / 1e6:.0f} MB"


def choices(config: dict[str, Any]) -> str:
    """What was chosen, defaults left out: `bf16, sdpa, fused qkv, int8, regional`."""
    words = [config["precision"]["option"], config["attention"]["option"]]
    for slot, default in default_options().items():
        option = config[slot]["option"]
        if slot not in _SAID_ELSEWHERE and option != default:
            words.append(option if slot in _CLEAR_ALONE else f"{option} {slot}")
    return ", ".join(words)


_SAID_ELSEWHERE = ("model", "precision", "attention", "bench", "quality")
_CLEAR_ALONE = ("memory_format", "quant", "cache", "memory", "compile")


def quality(found: dict[str, Any]) -> str:
    """`PSNR 41.2 dB, SSIM 0.9940 against fp32`, or why there is none."""
    if found["ssim"] is None:
        return f"not compared: {found['reason']}"
    if found["reference"] == "itself":
        return "this run is the reference"
    if found["identical"]:
        return f"identical to {found['reference']}"
    ssim = f"SSIM {found['ssim']:.4f}" if found["ssim"] < 0.99995 else "SSIM above 0.9999"
    return f"PSNR {found['psnr_db']:.1f} dB, {ssim} against {found['reference']}"


def published(experiment: dict[str, Any]) -> str | None:
    """What the documents say of an experiment: `published 2.43 s, 3.03x for ... on ...`; None for a run that is none of theirs."""
    if experiment["name"] == NO_EXPERIMENT:
        return None
    if experiment["latency_s"] is None:
        return f"{experiment['name']}: no figures were published"
    figures = seconds(experiment["latency_s"])
    if experiment["speedup"] is not None:
        figures += f", {experiment['speedup']:.2f}x"
    known = [f"for {experiment['workload']}"] if experiment["workload"] else []
    known += [f"on {experiment['hardware']}"] if experiment["hardware"] else []
    return f"{experiment['name']}: published {' '.join([figures, *known])}"


def syncs(found: dict[str, Any]) -> str:
    """`2: diffusers/schedulers/scheduling_ddim.py:342 (2)`, or `none`; the three places that wait most often."""
    places = [f"{place['place']} ({place['count']})" for place in found["places"]]
    more = [f"{len(places) - 3} more places"] if len(places) > 3 else []
    return f"{found['per_step']}: {', '.join(places[:3] + more)}" if places else "none"


def device_peak(memory: dict[str, Any]) -> str:
    """Peak memory in words: the device's if there is one, the host's otherwise."""
    if memory["device_allocated"] is not None:
        return f"{size(memory['device_allocated'])} on the device"
    return size(memory["host"])
