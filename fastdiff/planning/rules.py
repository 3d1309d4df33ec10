"""What a run asks that no pass answers for: its recipe, device, prompts, budgets and pictures."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fastdiff.config import Bench, Reference
from fastdiff.errors import MachineProblem, Problem
from fastdiff.machine.cache_folder import VARIABLE, rates_unkeepable
from fastdiff.machine.environment import Environment
from fastdiff.models.shapes.scenes import Scene
from fastdiff.models.sources import Model
from fastdiff.passes.base import Notice, Setting

DEVICES = ("auto", "cpu", "cuda", "mps")


def _recipe(setting: Setting) -> Iterator[Notice]:
    """What of the run's recipe was overridden, and whether it was made for something else."""
    recipe = setting.run.recipe
    for choice, text in recipe.replaced:
        yield Notice(choice, text)
    made_for = {"model": recipe.model, "device": recipe.device}
    here = {"model": setting.run.choices["model"], "device": setting.device}
    for key, value in made_for.items():
        if value not in (None, here[key]):
            text = f"'{recipe.name}' was made for {key}={value}; here it may gain less, or nothing"
            yield Notice(f"{key}={here[key]}", text)


def _device(setting: Setting) -> Iterator[Problem | Notice]:
    asked, environment = setting.run.device, setting.environment
    if asked not in DEVICES:
        number = re.fullmatch(r"(?:cuda|gpu):(\d+)", asked)
        instead = "device=cuda" if asked == "gpu" else "device=auto"
        if number:
            instead = f"CUDA_VISIBLE_DEVICES={number[1]} with device=cuda"
        yield Problem(f"device={asked}", f"is none of {', '.join(DEVICES)}", instead)
    elif asked == "auto" and setting.device == "cpu" and environment.gpu_unusable:
        reason, instead = environment.gpu_unusable
        yield Notice("device=auto", f"takes the processor: {reason}; instead: {instead}")
    elif asked == "cuda" and not environment.has_cuda:
        torch = f"the installed torch {environment.versions.get('torch', '')}"
        reason, instead = "no NVIDIA GPU is visible on this machine", ""
        if environment.gpu_unusable:
            reason, instead = environment.gpu_unusable
        elif environment.torch_cuda is None:
            reason, instead = f"{torch} is built without CUDA", "a CUDA build of torch"
        way_out = ", or ".join(filter(None, ("device=cpu", instead)))
        yield MachineProblem("device=cuda", reason, way_out)
    elif asked == "mps" and not environment.has_mps:
        yield MachineProblem("device=mps", "this is not an Apple-silicon Mac", "device=cpu")
    if setting.device == "cuda":
        yield from _order_of_gpus(environment)


def _order_of_gpus(environment: Environment) -> Iterator[Notice]:
    """That CUDA may compute on another GPU than the one that is planned for, because the user gave it an order of its own."""
    kinds = {(gpu.name, gpu.capability) for gpu in environment.gpus}
    if environment.cuda_order != "PCI_BUS_ID" and len(kinds) > 1:
        yield Notice(
            f"CUDA_DEVICE_ORDER={environment.cuda_order}",
            f"CUDA may compute on another GPU than the {environment.gpus[0].name} that is planned for; instead: unset "
            "it, or CUDA_VISIBLE_DEVICES=GPU-..., one UUID of nvidia-smi -L",
        )


def _generation(setting: Setting) -> Iterator[Problem]:
    asked = setting.run.generation
    given = asked.prompt if isinstance(asked.prompt, (str, list)) else None
    if (
        given is None
        or not given
        or not all(isinstance(p, str) and p.strip() for p in asked.prompts)
    ):
        shown = repr(asked.prompt if given is None else given)
        yield Problem(
            f"generation.prompt={shown}",
            "there is nothing to draw: a prompt is a text, or a list of texts, none of them empty",
            "generation.prompt='a photo of an astronaut', or null for the model's own",
        )
    negative = (asked.negative_prompt or "").strip()
    if re.fullmatch(r"\[[^\[\]]*\]", negative):
        text = ", ".join(part.strip(" '\"") for part in negative[1:-1].split(","))
        yield Problem(
            f"generation.negative_prompt={negative}",
            "is one text for every picture, not a list of texts",
            f"generation.negative_prompt='{text}'",
        )
    for name in ("height", "width"):
        value = getattr(asked, name)
        if value is not None and (value < 8 or value % 8):
            yield Problem(
                f"generation.{name}={value}",
                "must be a multiple of 8, because latents are",
                f"generation.{name}={max(8, round(value / 8) * 8)}",
            )
    least = {"steps": 1, "images_per_prompt": 1, "seed": 0, "guidance_scale": 0}
    for name, low in least.items():
        value = getattr(asked, name)
        if value is not None and not low <= value < math.inf:
            reason = f"must be at least {low}" if value < low else "is not a finite number"
            yield Problem(f"generation.{name}={value}", reason, f"generation.{name}={low}")


def _bench(setting: Setting) -> Iterator[Problem]:
    bench = setting.run.bench
    assert isinstance(bench, Bench)
    if bench.runs < 1:
        yield Problem(f"bench.runs={bench.runs}", "nothing would be timed", "bench.runs=1")
    if bench.warmup < 0:
        yield Problem(f"bench.warmup={bench.warmup}", "can't be negative", "bench.warmup=0")
    if bench.most_warmup < 0:
        yield Problem(
            f"bench.most_warmup={bench.most_warmup}",
            "can't be negative",
            "bench.most_warmup=0, which makes no more calls than bench.warmup says",
        )


def _rates_folder() -> Iterator[Problem]:
    """A cache folder that the user named and that can't be used; what only using it tells is a notice in the run."""
    if reason := rates_unkeepable():
        yield MachineProblem(
            f"{VARIABLE}={os.environ[VARIABLE]}",
            f"{reason}, and this machine's rates would be kept there",
            f"{VARIABLE}=DIR, a folder of your own, or unset it",
        )


def _reference(setting: Setting) -> Iterator[Problem | Notice]:
    quality = setting.run.quality
    if not isinstance(quality, Reference):
        return
    reason = None if quality.reference == "auto" else _no_picture(quality.reference)
    if reason:
        yield Problem(
            f"quality.reference={quality.reference}",
            reason,
            "quality.reference=auto, which draws it, or the path of a PNG or JPEG",
        )
    yield from _budget_ranges(quality)
    yield from _budget_figures(quality, setting)
    yield from _perceptual(quality, setting)
    yield from _caption_rules(quality, setting)


_AT_MOST_ONE = ("min_ssim", "min_ms_ssim", "max_abs_difference", "min_caption_score")
"""Budgets on figures that can't be above 1."""


def _budget_ranges(quality: Reference) -> Iterator[Problem]:
    """Budgets that say nothing: not a number, below what a figure can be, or above it."""
    for key, limit in quality.budgets().items():
        choice = f"quality.{key}={limit:g}"
        if not math.isfinite(limit):
            yield Problem(choice, "is not a finite number", f"quality.{key}=null, or a number")
        elif limit < 0:
            yield Problem(choice, "must be at least 0", f"quality.{key}=0, or null for no budget")
        elif limit > 1 and key in _AT_MOST_ONE:
            yield Problem(
                choice, "must be at most 1: that figure is never above it", f"quality.{key}=1"
            )


def _budget_figures(quality: Reference, setting: Setting) -> Iterator[Problem]:
    """Budgets on figures that this run can't have."""
    asked, budgets = setting.run.generation, quality.budgets()
    sides = [side for side in (asked.height, asked.width) if side is not None]
    least = {
        "min_ms_ssim": ("MS-SSIM", Reference.ms_ssim_side, "quality.min_ssim"),
        "max_lpips": ("LPIPS", Reference.lpips_side, "quality.min_psnr_db"),
    }
    for key, (name, side, other) in least.items():
        if key in budgets and sides and min(sides) < side:
            yield Problem(
                f"quality.{key}={budgets[key]:g}",
                f"{name} needs {side} pixels a side, and the smaller side has {min(sides)}",
                f"a budget on {other}, or larger pictures",
            )
    if "max_lpips" in budgets and not quality.lpips:
        yield Problem(
            f"quality.max_lpips={budgets['max_lpips']:g}",
            "LPIPS is measured on demand only",
            "quality.lpips=true beside it",
        )
    if "max_abs_difference_latents" in budgets and quality.reference != "auto":
        yield Problem(
            f"quality.max_abs_difference_latents={budgets['max_abs_difference_latents']:g}",
            "the reference is a picture, and a picture has no latents",
            "quality.reference=auto, or quality.max_abs_difference",
        )


def _perceptual(quality: Reference, setting: Setting) -> Iterator[Problem | Notice]:
    if not quality.lpips:
        return
    if not setting.environment.has_module("torchvision"):
        yield MachineProblem(
            "quality.lpips=true",
            "needs the package torchvision, which is not installed",
            'pip install "fastdiff-inference[lpips]" (torchvision from where torch is from), or '
            "quality.lpips=false",
        )
    elif not (weights := lpips_weights()).is_file():
        yield Notice(
            "quality.lpips=true",
            f"the weights of its AlexNet (244 MB) come from download.pytorch.org: {weights.name} is not in "
            "torch's hub folder",
        )


def lpips_weights() -> Path:
    """Where torch's hub keeps the weights of the AlexNet that LPIPS looks through."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"


def _caption_rules(quality: Reference, setting: Setting) -> Iterator[Problem]:
    """Captions are the language of the embedded model, which alone is judged by them."""
    asked = {"captions": f"{quality.captions}"} if quality.captions else {}
    if quality.captions < 0:
        yield Problem(
            f"quality.captions={quality.captions}", "can't be negative", "quality.captions=24"
        )
    if not (isinstance(setting.run.model, Model) and setting.run.model.captioned):
        limit = quality.min_caption_score
        asked |= {"min_caption_score": f"{limit:g}"} if limit is not None else {}
        for key, value in asked.items():
            yield Problem(
                f"quality.{key}={value}",
                "only pictures of the embedded model can be judged by their captions",
                f"leave out quality.{key}, or model=shapes",
            )
    elif quality.min_caption_score is not None and not quality.captions:
        prompts = [p for p in setting.run.generation.prompts if isinstance(p, str)]
        if not any(Scene.parse(prompt) for prompt in prompts):
            yield Problem(
                f"quality.min_caption_score={quality.min_caption_score:g}",
                "the prompt is none of the captions that this model was taught, so nothing can be judged",
                "quality.captions=24, which draws captions of its own",
            )


def _no_picture(name: str) -> str | None:
    """Why a file is no picture to compare with; None if it begins like one."""
    try:
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            return "there is no such picture"
        with path.open("rb") as file:
            start = file.read(8)
    except (OSError, RuntimeError, ValueError) as error:
        return f"can't be read: {getattr(error, 'strerror', None) or error}"
    begins_right = start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))
    return None if begins_right else "is neither a PNG nor a JPEG"
