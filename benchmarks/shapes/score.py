"""Scores a model of shapes: has it draw held-out captions, and judges what comes out.

    python benchmarks/shapes/score.py --model outputs/shapes --sheet sheet.png

Exits with 1 when fewer than 90 % of the pictures have the right colours at the right places.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fastdiff.models.shapes.judging import Score, Verdict, judge
from fastdiff.models.shapes.scenes import PALETTE, SIZE, Scene, exam_scenes
from fastdiff.models.sources import SHAPES_DIR

Generate = Callable[[list[str]], list[Image.Image]]
"""Makes one picture for each caption, in their order."""

BATCH = 20
"""Captions handed to a model at once."""

PASS = 0.9
"""Fraction of right pictures that a good model reaches."""

SHIPPED = SHAPES_DIR

# Scoring ----------------------------------------------------------------------------------------


def score(generate: Generate, scenes: list[Scene]) -> Score:
    """Have every scene's caption drawn, `BATCH` at a time, and count what came out right."""
    pictures = _drawn(generate, scenes)
    return Score.of(scenes, [judge(p, s) for p, s in zip(pictures, scenes, strict=True)])


def _drawn(generate: Generate, scenes: Sequence[Scene]) -> list[Image.Image]:
    """One picture for each scene."""
    captions = [scene.caption for scene in scenes]
    pictures: list[Image.Image] = []
    for at in range(0, len(captions), BATCH):
        batch = captions[at : at + BATCH]
        made = generate(batch)
        if len(made) != len(batch):
            raise ValueError(f"{len(batch)} captions gave {len(made)} pictures")
        pictures += made
    return pictures


# Program ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """How `diffusers_model` makes its pictures."""

    steps: int
    guidance: float
    seed: int
    dtype: str


def diffusers_model(model: Path, unet: Path | None, settings: _Settings) -> Generate:
    """A StableDiffusionXLPipeline folder on the CPU; `unet` is a folder to take the UNet from.

    The n-th picture it ever makes starts from the noise of seed + n, whatever the batches.
    """
    import diffusers
    import torch

    library: Any = diffusers  # its methods have no types

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[settings.dtype]
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    parts = {}
    if unet is not None:
        parts["unet"] = library.UNet2DConditionModel.from_pretrained(unet, **options)
    pipeline = library.StableDiffusionXLPipeline.from_pretrained(model, **parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    seeds = itertools.count(settings.seed)

    def generate(captions: list[str]) -> list[Image.Image]:
        noise = [torch.Generator("cpu").manual_seed(next(seeds)) for _ in captions]
        made: list[Image.Image] = pipeline(
            captions,
            height=SIZE,
            width=SIZE,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=noise,
        ).images
        return made

    return generate


def contact_sheet(
    pictures: Sequence[Image.Image], verdicts: Sequence[Verdict], columns: int = 12
) -> Image.Image:
    """All pictures in rows; framed red if wrong, orange if only a shape is, grey if all right."""
    step = SIZE + 8
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * step, rows * step), (128, 128, 128))
    for at, (picture, verdict) in enumerate(zip(pictures, verdicts, strict=True)):
        x, y = at % columns * step, at // columns * step
        if not verdict.all_right:
            frame = PALETTE["orange"] if verdict.right else PALETTE["red"]
            sheet.paste(frame, (x + 1, y + 1, x + step - 1, y + step - 1))
        sheet.paste(picture, (x + 4, y + 4))
    return sheet


def _table(total: Score) -> str:
    """The score in plain text."""
    rows = [
        ("held-out captions", total.pictures, total.right, total.shapes_right),
        (
            "of which unseen triples",
            total.unseen_pictures,
            total.unseen_right,
            total.unseen_shapes_right,
        ),
    ]
    lines = [f"{'':24}{'pictures':>9}{'right':>14}{'shapes right':>16}"]
    for name, pictures, right, shapes in rows:
        of = max(pictures, 1)
        counts = f"{right:>6} {right / of:>7.1%}{shapes:>8} {shapes / of:>7.1%}"
        lines.append(f"{name:24}{pictures:>9}{counts}")
    return "\n".join(lines)


def _faults(verdict: Verdict) -> str:
    """The names of what is wrong, with commas."""
    names = ("colours", "places", "shapes")
    return ", ".join(name for name in names if not getattr(verdict, name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a pipeline folder on held-out captions; the exit status."""
    parser = argparse.ArgumentParser(description="Scores a model of shapes on held-out captions.")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="a diffusers pipeline's folder")
    parser.add_argument("--unet-from", type=Path, help="folder of a UNet to use in its place")
    parser.add_argument("--captions", type=int, default=120)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=7, help="of the captions and the noise")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--sheet", type=Path, help="PNG file to write all pictures to")
    asked = parser.parse_args(arguments)
    for folder in filter(None, (asked.model, asked.unet_from)):
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
    settings = _Settings(asked.steps, asked.guidance, asked.seed, asked.dtype)
    scenes = exam_scenes(asked.captions, asked.seed)
    pictures = _drawn(diffusers_model(asked.model, asked.unet_from, settings), scenes)
    verdicts = [judge(p, s) for p, s in zip(pictures, scenes, strict=True)]
    total = Score.of(scenes, verdicts)
    print(_table(total))
    wrong = [(s, v) for s, v in zip(scenes, verdicts, strict=True) if not v.right]
    if wrong:
        print("\nwrong:")
    for scene, verdict in wrong:
        print(f"  {scene.caption} ({_faults(verdict)})")
    if asked.sheet is not None:
        contact_sheet(pictures, verdicts).save(asked.sheet)
    return 0 if total.fraction >= PASS else 1


if __name__ == "__main__":
    sys.exit(main())
