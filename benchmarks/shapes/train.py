"""Trains the embedded model from nothing: draws its pictures, fits every part, writes a diffusers folder.

    python benchmarks/shapes/train.py --out outputs/shapes

Not yet timed in one piece. While two CPU cores also did other work, vae took 8 minutes, unet 61, polish 31, student 32,
student_polish 62 (these three on one core, the last one on a third of it) and tiny 6. The stages run in order, and each
starts from what the ones before it wrote, so `--stage` repeats one alone.

    vae      AutoencoderKL: pictures to 4x16x16 latents and back
    unet     UNet2DConditionModel and two CLIP text encoders, together, on the latents of drawn scenes
    polish   the same once more on other scenes, from what `unet` left, at half the rate
    student  a smaller UNet distilled from the one of `polish`, the text encoders kept
    student_polish  the same once more on other scenes, from what `student` left
    tiny     AutoencoderTiny for the same latents, scaled as the denoiser sees them
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fastdiff.models.shapes.scenes import PALETTE, SHAPES, SIZE, Scene, draw, training_scenes

MAX_TOKENS = 77
STUDENT = ("student", "student_polish")
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Length:
    """How long each stage trains, in optimizer steps, and how many scenes the denoiser sees."""

    vae_steps: int = 2100
    unet_steps: int = 3700
    polish_steps: int = 1800
    student_steps: int = 2500
    student_polish_steps: int = 3000
    tiny_steps: int = 1500
    scenes: int = 16000

    def scaled(self, factor: float) -> Length:
        def part(steps: int) -> int:
            return max(2, round(steps * factor))

        return Length(
            part(self.vae_steps),
            part(self.unet_steps),
            part(self.polish_steps),
            part(self.student_steps),
            part(self.student_polish_steps),
            part(self.tiny_steps),
            max(64, part(self.scenes)),
        )


# Parts ------------------------------------------------------------------------------------------


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that has every byte and one token for every word of the captions."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = itertools.count(256)
    alphabet = [chr(b if b in printable else next(spare)) for b in range(256)]
    vocabulary = [*alphabet, *(c + "</w>" for c in alphabet)]
    merges: list[tuple[str, str]] = []
    words = [*PALETTE, *SHAPES, "a", "an", "left", "of", "on", "background"]
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for left, right in merges:
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == (left, right):
                    pieces[at : at + 2] = [left + right]
                at += 1
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.append(pieces[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer, *, projection: bool) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind: Any = CLIPTextModelWithProjection if projection else CLIPTextModel
    encoder: nn.Module = kind(config)
    return encoder


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        force_upcast=False,
    )


def build_tiny_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=4,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_unet(*, student: bool = False) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 96) if student else (48, 96, 144),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        # As in bk-sdm: the student does without the middle block.
        mid_block_type=None if student else "UNetMidBlock2DCrossAttn",
        layers_per_block=1,
        attention_head_dim=(2, 4, 6),  # diffusers' name; in this class it means the number of heads
        transformer_layers_per_block=1,
        use_linear_projection=True,
        cross_attention_dim=128,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=32 * 6 + 64,
        norm_num_groups=16,
    )


def mixed_precision() -> AbstractContextManager[None]:
    """bf16 autocast where the processor multiplies bf16 itself; elsewhere that is three times slower."""
    if "avx512_bf16" in cpu_flags() or "amx_bf16" in cpu_flags():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def cpu_flags() -> frozenset[str]:
    """Linux's names for what the processor can do; empty where it doesn't say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    return frozenset(next((li for li in text.splitlines() if li.startswith("flags")), "").split())


# Training ---------------------------------------------------------------------------------------


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int = 100) -> Callable[[], None]:
    """A schedule that rises for `warmup` steps and falls as a cosine; call it after each step."""

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup)
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return scheduler.step


def pictures(scenes: Iterable[Scene], rng: random.Random) -> Tensor:
    """[n, 3, SIZE, SIZE] float32 in [-1, 1]."""
    arrays = numpy.stack([numpy.asarray(draw(scene, rng)) for scene in scenes])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1.0


class Diary:
    """Prints a stage's loss now and then, with the time it has taken."""

    def __init__(self, stage: str, steps: int) -> None:
        self.stage, self.steps, self.started = stage, steps, time.monotonic()
        self.mean: float | None = None

    def note(self, step: int, loss: Tensor) -> None:
        value = float(loss.detach())
        self.mean = value if self.mean is None else 0.98 * self.mean + 0.02 * value
        if step % 100 == 0 or step == self.steps - 1:
            seconds = time.monotonic() - self.started
            print(f"{self.stage} {step}/{self.steps} {self.mean:.4f} {seconds:.0f}s", flush=True)


def train_vae(out: Path, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    scenes = training_scenes(seed)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    advance = cosine(optimizer, steps)
    diary = Diary("vae", steps)
    for step in range(steps):
        batch = pictures(itertools.islice(scenes, 16), rng)
        with mixed_precision():
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        decoded = decoded.float()
        loss = F.l1_loss(decoded, batch) + F.mse_loss(decoded, batch)
        loss = loss + 1e-4 * posterior.kl().float().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        advance()
        diary.note(step, loss)
    with torch.no_grad():
        latents = vae.encode(pictures(itertools.islice(scenes, 256), rng)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 4))
    vae.save_pretrained(out / "vae")


@torch.no_grad()
def latent_pool(vae: AutoencoderKL, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Scaled latents [count, 4, 16, 16] of drawn scenes, and their captions."""
    rng = random.Random(seed)
    scenes = list(itertools.islice(training_scenes(seed), count))
    means = [
        vae.encode(pictures(scenes[at : at + 64], rng)).latent_dist.mean
        for at in range(0, count, 64)
    ]
    return torch.cat(means) * vae.config.scaling_factor, [scene.caption for scene in scenes]


def condition(encoders: tuple[nn.Module, nn.Module], ids: Tensor) -> tuple[Tensor, Tensor]:
    """What StableDiffusionXLPipeline makes of token ids [b, 77]: [b, 77, 128] and pooled [b, 64]."""
    first = encoders[0](ids, output_hidden_states=True)
    second = encoders[1](ids, output_hidden_states=True)
    hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return hidden, second.text_embeds


@dataclass
class Denoiser:
    """What one stage trains.

    parts: its trainable modules, the UNet first; rate: of the optimizer; teacher: the UNet whose predictions
    a student learns beside the noise itself, None for the others.
    """

    tokenizer: CLIPTokenizer
    encoders: tuple[nn.Module, nn.Module]
    unet: nn.Module
    parts: nn.ModuleList
    rate: float
    teacher: nn.Module | None = None

    @classmethod
    def start(cls, out: Path, stage: str) -> Denoiser:
        """New modules for `unet`, a new UNet for `student`, and what those two left for the stages that polish."""
        if stage == "unet":
            tokenizer = build_tokenizer()
            encoders = (
                build_text_encoder(tokenizer, projection=False),
                build_text_encoder(tokenizer, projection=True),
            )
            unet = build_unet()
            return cls(tokenizer, encoders, unet, nn.ModuleList([unet, *encoders]), 1.2e-3)
        tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
        encoders = (
            CLIPTextModel.from_pretrained(out / "text_encoder").float(),
            CLIPTextModelWithProjection.from_pretrained(out / "text_encoder_2").float(),
        )
        if stage in STUDENT:
            for encoder in encoders:
                encoder.requires_grad_(False)
            teacher = (
                UNet2DConditionModel.from_pretrained(out / "unet").float().requires_grad_(False)
            )
            if stage == "student":
                unet = build_unet(student=True)
            else:
                unet = UNet2DConditionModel.from_pretrained(out / "student").float().train()
            return cls(tokenizer, encoders, unet, nn.ModuleList([unet]), 1.2e-3, teacher)
        unet = UNet2DConditionModel.from_pretrained(out / "unet").float()
        parts = nn.ModuleList([unet, *encoders]).train()
        return cls(tokenizer, encoders, unet, parts, 6e-4)


def train_denoiser(out: Path, stage: str, steps: int, scenes: int, seed: int) -> None:
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    latents, captions = latent_pool(vae, scenes, seed)
    denoiser = Denoiser.start(out, stage)
    tokenizer, parts = denoiser.tokenizer, denoiser.parts
    ids = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    average = copy.deepcopy(parts).requires_grad_(False)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=denoiser.rate, weight_decay=0.01)
    advance = cosine(optimizer, steps)
    noise_schedule = DDPMScheduler(num_train_timesteps=1000, **NOISE)
    time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32)
    diary = Diary(stage, steps)
    for step in range(steps):
        chosen = torch.randint(len(latents), (48,))
        clean, noise = latents[chosen], torch.randn(48, *latents.shape[1:])
        timesteps = torch.randint(1000, (48,))
        noisy = noise_schedule.add_noise(clean, noise, timesteps)
        hidden, pooled = condition(denoiser.encoders, ids[chosen])
        # An empty prompt is all zeros to the pipeline (force_zeros_for_empty_prompt).
        kept = (torch.rand(48) >= 0.1).float()
        hidden, pooled = hidden * kept[:, None, None], pooled * kept[:, None]
        given = {
            "encoder_hidden_states": hidden,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids.expand(48, -1)},
        }
        with mixed_precision():
            predicted = denoiser.unet(noisy, timesteps, **given).sample.float()
        loss = F.mse_loss(predicted, noise)
        if denoiser.teacher is not None:
            with torch.no_grad(), mixed_precision():
                shown = denoiser.teacher(noisy, timesteps, **given).sample.float()
            loss = 0.5 * loss + 0.5 * F.mse_loss(predicted, shown)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        advance()
        decay = min(0.999, (step + 1) / (step + 10))
        for slow, fast in zip(average.parameters(), parts.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1.0 - decay)
        diary.note(step, loss)
        if step % 500 == 499 or step == steps - 1:
            _save_denoiser(out, average, tokenizer, vae, student=stage in STUDENT)


def _save_denoiser(
    out: Path,
    average: nn.ModuleList,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    *,
    student: bool,
) -> None:
    """Write fp16 weights: the whole pipeline, or the student's UNet beside it."""
    half: Any = copy.deepcopy(average).half()
    stored = copy.deepcopy(vae).half()
    for part in (half[0], stored):
        part.register_to_config(_name_or_path="")  # where it was trained is nobody's business
    if student:
        half[0].save_pretrained(out / "student")
        return
    scheduler = EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **NOISE)
    StableDiffusionXLPipeline(
        vae=stored,
        text_encoder=half[1],
        text_encoder_2=half[2],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=half[0],
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(out)


def train_tiny(out: Path, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    scenes = training_scenes(seed)
    vae = AutoencoderKL.from_pretrained(out / "vae").float().eval()
    tiny = build_tiny_vae()
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=2e-3)
    advance = cosine(optimizer, steps)
    diary = Diary("tiny", steps)
    for step in range(steps):
        batch = pictures(itertools.islice(scenes, 16), rng)
        with torch.no_grad():
            target = vae.encode(batch).latent_dist.mean * vae.config.scaling_factor
        # The denoiser's latents are never exact: some noise teaches the decoder to forgive.
        given = target + 0.05 * torch.randn_like(target)
        with mixed_precision():
            decoded = tiny.decode(given).sample
            encoded = tiny.encode(batch).latents
        decoded, encoded = decoded.float(), encoded.float()
        loss = F.l1_loss(decoded, batch) + F.mse_loss(decoded, batch)
        loss = loss + 0.1 * F.mse_loss(encoded, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tiny.parameters(), 1.0)
        optimizer.step()
        advance()
        diary.note(step, loss)
    tiny.half().save_pretrained(out / "vae_tiny")


def main() -> None:
    stages = ("vae", "unet", "polish", *STUDENT, "tiny")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that the pipeline goes to")
    parser.add_argument("--stage", choices=stages, action="append", help="only this; repeatable")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--length", type=float, default=1.0, help="0.01 tries the program out")
    asked = parser.parse_args()
    length = Length().scaled(asked.length)
    asked.out.mkdir(parents=True, exist_ok=True)
    wanted = asked.stage or list(stages)
    if "vae" in wanted:
        train_vae(asked.out, length.vae_steps, asked.seed)
    denoisers = {
        "unet": (length.unet_steps, 1),
        "polish": (length.polish_steps, 2),
        "student": (length.student_steps, 4),
        "student_polish": (length.student_polish_steps, 5),
    }
    for stage, (steps, number) in denoisers.items():
        if stage in wanted:
            train_denoiser(asked.out, stage, steps, length.scenes, asked.seed + number)
    if "tiny" in wanted:
        train_tiny(asked.out, length.tiny_steps, asked.seed + 3)


if __name__ == "__main__":
    main()
