"""Figures and choices in words, the same on the screen and on every page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdiff.choices.options import default_options
from fastdiff.config import NO_EXPERIMENT
from fastdiff.measuring.fields import (
    Caption,
    Exactness,
    Host,
    MeasuredOn,
    MemoryInParts,
    PartTimes,
    PeakMemory,
    Profile,
    Quality,
    Report,
    Roofline,
    Syncs,
    Times,
    Warmup,
)


def seconds(value: float | None) -> str:
    """`0.41 s`; minutes from 120 s on; a dash for what wasn't measured."""
    if value is None:
        return "-"
    if value >= 120:
        return f"{value / 60:.1f} min"
    if value >= 10:
        return f"{value:.1f} s"
    return f"{value:.2f} s" if value >= 1 else f"{value:.3f} s"


FIGURES = {
    "latency_s": "latency",
    "step_latency_s": "one step",
    "first_call_s": "first call",
    "compile_s": "compile",
    "compile_cache": "compile cache",
    "peak_memory_bytes": "peak memory",
    "peak_memory_device_bytes": "peak memory, device",
    "peak_memory_host_bytes": "peak memory, host",
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    "identical": "identical to reference",
    "status": "status",
}
"""What tables of two runs call the figures of a report."""


def figure(name: str, value: Any) -> str:
    """A figure of `FIGURES` in words, by its unit; a dash where there is none."""
    if value is None:
        return "-"
    if name.endswith("_s"):
        return seconds(value)
    if name.endswith("_bytes"):
        return size(value)
    if name == "psnr_db":
        return f"{value:.1f} dB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def compared(name: str, before: Any, now: Any) -> list[str]:
    """A row about a figure of two runs: its name, both, and how many times the first the second is, if that can be divided."""
    divides = name.endswith(("_s", "_bytes")) and before and now
    ratio = f"{now / before:.2f}x" if divides else ""
    return [FIGURES[name], figure(name, before), figure(name, now), ratio]


def counted(count: int, thing: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def device(environment: MeasuredOn) -> str:
    """`cpu, 2 threads`, or `cuda, NVIDIA H200`: what a run computed on."""
    kind = str(environment.device)
    if kind == "cpu":
        return f"{kind}, {counted(environment.threads or 0, 'thread')}"
    return f"{kind}, {environment.device_name}"


def applied(effects: Sequence[str]) -> str:
    """Effects in words, the move to the device left out: the first line has it."""
    return "; ".join(text for text in effects if not text.startswith("device "))


def spread(latency: Times) -> str | None:
    """`p10 0.40 s, p90 0.43 s`; None below three samples, which have no spread worth the name."""
    if len(latency.samples) < 3:
        return None
    return f"p10 {seconds(latency.p10)}, p90 {seconds(latency.p90)}"


def interval(latency: Times) -> str:
    """`0.40 s to 0.43 s`: where the median lies with 95 %; a dash below five calls."""
    return " to ".join(map(seconds, latency.ci95)) if latency.ci95 else "-"


def warm_up(found: Warmup) -> str:
    """`4 calls (1 asked), steady`, or `none`; a dash where no call was timed."""
    if found.asked is None:
        return "-"
    if not found.calls:
        return "none"
    told = {True: ", steady", False: ", still getting faster", None: ", too few to tell if steady"}
    asked = f" ({found.asked} asked)" if found.asked != found.calls else ""
    return f"{counted(found.calls, 'call')}{asked}{told[found.steady]}"


def room(host: Host) -> str:
    """`2 threads on 2 of 8 CPUs`: what a run computed with."""
    cpus = counted(host.processors, "CPU")
    if host.affinity is not None:
        cpus = f"{len(host.affinity)} of {cpus}"
    return f"{counted(host.threads, 'thread')} on {cpus}"


def load(host: Host) -> str:
    """`1.50 before the timed calls, 2.00 after`, of the last minute each; `unknown` where the system doesn't say."""
    if host.load_before is None or host.load_after is None:
        return "unknown"
    return f"{host.load_before:.2f} before the timed calls, {host.load_after:.2f} after"


def others(host: Host) -> str:
    """`3 % of this run's CPUs; for other machines 0 %`: what was taken while calls were timed, or why that is unknown."""
    if host.other_share is None:
        return f"unknown: {host.reason}"
    share, stolen = 100 * host.other_share, 100 * (host.steal_share or 0.0)
    return f"{share:.0f} % of this run's CPUs; for other machines {stolen:.0f} %"


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


def quality(found: Quality) -> str:
    """`PSNR 41.2 dB, SSIM 0.9940 against fp32; latents differ by up to 0.12; caption right`, as far as it is known.

    Reports from before a figure was taken lack its key.
    """
    return "; ".join([_pictures(found), *_latents(found), *_captions(found.caption)])


def _pictures(found: Quality) -> str:
    if found.ssim is None:
        return f"not compared: {found.reason}"
    if found.reference == "itself":
        return "this run is the reference"
    if found.identical:
        return f"identical to {found.reference}"
    figures = [f"PSNR {found.psnr_db:.1f} dB", _similarity("SSIM", found.ssim)]
    if found.ms_ssim is not None:
        figures.append(_similarity("MS-SSIM", found.ms_ssim))
    if found.lpips is not None:
        figures.append(f"LPIPS {found.lpips:.4f}")
    return f"{', '.join(figures)} against {found.reference}"


def _similarity(name: str, value: float) -> str:
    return f"{name} {value:.4f}" if value < 0.99995 else f"{name} above 0.9999"


def _latents(found: Quality) -> list[str]:
    difference = found.max_abs_difference_latents
    if difference is None or found.reference == "itself":
        return []
    return [f"latents differ by up to {difference:.2g}" if difference else "latents identical"]


def _captions(found: Caption) -> list[str]:
    """`right` is colours and places, and shapes are counted apart; nothing where none was judged."""
    if found.score is None:
        return []
    right, shapes, pictures = found.right, found.shapes_right, found.pictures
    if found.of_ == "own prompts" and pictures == 1:
        return [
            f"caption {'right' if right and shapes else 'right but for shapes' if right else 'wrong'}"
        ]
    return [f"{right} of {pictures} {found.of_} right (shapes {shapes})"]


def compiling(report: Report) -> str:
    """`96.0 s, cold`, or `5.2 s, warm: the cache saved 90.8 s`; `none` where nothing was compiled."""
    compiled = report.compile
    if report.compile_s is None:
        return "-"
    if not (compiled.graphs or report.compile_s):
        return "none"
    said = f"{seconds(report.compile_s)}, {compiled.cache}"
    saved = compiled.saved_s
    return f"{said}: the cache saved {seconds(saved)}" if saved is not None and saved > 0 else said


def exactness(found: Exactness) -> str:
    """`passed: error against fp64 1.00 (denoiser), 1.02 (decode) times the baseline's`, or why nothing was checked."""
    if not found.checked:
        return f"not checked: {found.reason}"
    known = {"denoiser": found.denoiser, "decode": found.decode}
    judged = {name: each for name, each in known.items() if each and each.passed is not None}
    said = ", ".join(f"{each.ratio or 0:.2f} ({name})" for name, each in judged.items())
    slack = any(each.passed and (each.ratio or 0) > (each.factor or 0) for each in judged.values())
    small = ", allowed with 1e-5 of the output" if slack else ""
    verdict = "passed" if found.passed else "failed"
    return f"{verdict}: error against fp64 {said} times the baseline's{small}"


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


def syncs(found: Syncs) -> str:
    """`2: diffusers/schedulers/scheduling_ddim.py:342 (2)`, or `none`; the three places that wait most often."""
    places = [f"{place.place} ({place.count})" for place in found.places]
    more = [f"{len(places) - 3} more places"] if len(places) > 3 else []
    return f"{found.per_step}: {', '.join(places[:3] + more)}" if places else "none"


def device_peak(memory: PeakMemory) -> str:
    """Peak memory in words: the device's if there is one, the host's otherwise."""
    if memory.device_allocated is not None:
        return f"{size(memory.device_allocated)} on the device"
    return size(memory.host)


_PARTS = {
    "denoiser": "denoiser",
    "vae": "VAE",
    "text_encoders": "text encoders",
    "scheduler": "scheduler",
    "other": "the rest",
}


def parts(found: PartTimes) -> str:
    """`denoiser 91 %, VAE 6 %, text encoders 2 %`, the largest first; what is under half a percent is left out."""
    if not found.whole:
        return f"not timed: {found.reason}"
    shares = {name: 100 * getattr(found, name) / found.whole for name in _PARTS}
    ordered = sorted(shares.items(), key=lambda each: -each[1])
    return ", ".join(f"{_PARTS[name]} {share:.0f} %" for name, share in ordered if share >= 0.5)


def roofline(found: Roofline) -> str:
    """`0.31 of 0.74 TFLOP/s (42 %), bound by arithmetic`: what a step reached of what the machine's rates allow."""
    if found.fraction_of_limit is None:
        return f"unknown: {found.reason}"
    achieved, fraction = found.achieved_tflops_per_s or 0.0, found.fraction_of_limit
    bound = "arithmetic" if found.bound == "compute" else "reading the weights"
    reached = f"{tera(achieved)} of {tera(achieved / fraction)} TFLOP/s ({100 * fraction:.0f} %), bound by {bound}"
    return f"{reached}; {found.note}" if found.note else reached


def tera(value: float) -> str:
    """Three digits, and no more than three after the point: `0.31`, `412`, `0.009`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.3f}"


def memory(found: MemoryInParts) -> str | None:
    """`weights 5.1 GB, activations 1.2 GB, compile 3.0 GB`, on the device if there is one; None if nothing is known."""
    place = "device" if found.weights.device is not None else "host"
    parts = {"weights": found.weights, "activations": found.activations, "compile": found.compile}
    known = {name: getattr(part, place) for name, part in parts.items()}
    said = [f"{name} {size(value)}" for name, value in known.items() if value is not None]
    return ", ".join(said) or None


def heaviest(found: Profile) -> str:
    """`aten::addmm 41 %, aten::mkldnn_convolution 22 %, aten::copy_ 9 %`: the three heaviest of the profile."""
    return ", ".join(f"{each.operator} {100 * each.share:.0f} %" for each in found.heaviest[:3])
