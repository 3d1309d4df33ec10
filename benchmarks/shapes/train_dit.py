"""Trains the embedded transformer, `model=shapes_dit`: FluxPipeline's own classes on the world of `model=shapes`.

    python benchmarks/shapes/train_dit.py --out outputs/shapes_dit

The stages run in order, and each starts from what the ones before it wrote, so `--stage` repeats one alone. The VAE is
that of `model=shapes`.

    flow     FluxTransformer2DModel, a CLIP and a T5 text encoder, together, on the latents of drawn scenes
    distil   a transformer that says in one call what the one of `flow` says in two with guidance
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor, nn
from train import (
    MAX_TOKENS,
    Diary,
    build_text_encoder,
    build_tokenizer,
    cosine,
    latent_pool,
    mixed_precision,
)
from transformers import CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from fastdiff.models.shapes.scenes import PALETTE, SHAPES
from fastdiff.models.sources import SHAPES_DIR

TOKENS = 24
"""Tokens of a caption as T5 reads it: the longest has 13. The pipeline is called with this max_sequence_length."""
BATCH = 48
GUIDANCE = 3.0
"""Of the teacher: what `distil` puts into the weights."""


def build_t5_tokenizer() -> T5TokenizerFast:
    """One token for every word of the captions."""
    words = [*PALETTE, *SHAPES, "a", "an", "left", "of", "on", "background"]
    letters = [chr(code) for code in range(97, 123)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in words] + [(letter, -8.0) for letter in letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=TOKENS)


def build_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def build_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,  # 4 latent channels, packed by twos in both directions
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


@dataclass
class Parts:
    """What is trained, and what its text is read with."""

    clip_tokenizer: CLIPTokenizer
    t5_tokenizer: T5TokenizerFast
    modules: nn.ModuleList
    """The transformer, the CLIP encoder, the T5 encoder."""

    @classmethod
    def new(cls) -> Parts:
        clip_tokenizer, t5_tokenizer = build_tokenizer(), build_t5_tokenizer()
        clip = build_text_encoder(clip_tokenizer, projection=False)
        modules = nn.ModuleList([build_transformer(), clip, build_t5(t5_tokenizer)])
        return cls(clip_tokenizer, t5_tokenizer, modules)

    @classmethod
    def read(cls, out: Path) -> Parts:
        modules = [
            FluxTransformer2DModel.from_pretrained(out / "transformer").float(),
            CLIPTextModel.from_pretrained(out / "text_encoder").float(),
            T5EncoderModel.from_pretrained(out / "text_encoder_2").float(),
        ]
        return cls(
            CLIPTokenizer.from_pretrained(out / "tokenizer"),
            T5TokenizerFast.from_pretrained(out / "tokenizer_2"),
            nn.ModuleList(modules),
        )

    def ids(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids as FluxPipeline makes them: [n, 77] for CLIP, [n, TOKENS] for T5."""
        shape = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        clip = self.clip_tokenizer(captions, max_length=MAX_TOKENS, **shape).input_ids
        return clip, self.t5_tokenizer(captions, max_length=TOKENS, **shape).input_ids

    def save(self, out: Path, vae: AutoencoderKL) -> None:
        """Write fp16 weights as a pipeline's folder."""
        half: Any = copy.deepcopy(self.modules).half()
        half[0].register_to_config(_name_or_path="")
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=copy.deepcopy(vae).half(),
            text_encoder=half[1],
            tokenizer=self.clip_tokenizer,
            text_encoder_2=half[2],
            tokenizer_2=self.t5_tokenizer,
            transformer=half[0],
        ).save_pretrained(out)


def packed(latents: Tensor) -> Tensor:
    """[n, 4, 16, 16] to [n, 64, 16], as FluxPipeline packs them."""
    n, c, h, w = latents.shape
    patches = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, h * w // 4, c * 4)


def places(side: int = 8) -> Tensor:
    """[side * side, 3]: where each packed latent lies."""
    rows = torch.arange(side).repeat_interleave(side)
    return torch.stack([torch.zeros(side * side), rows, torch.arange(side).repeat(side)], dim=1)


def velocity(
    transformer: nn.Module,
    encoders: nn.ModuleList,
    noisy: Tensor,
    times: Tensor,
    clip_ids: Tensor,
    t5_ids: Tensor,
) -> Tensor:
    """What the transformer says of noisy packed latents [n, 64, 16] at `times` [n] in (0, 1)."""
    clip, t5 = encoders
    given = {
        "pooled_projections": clip(clip_ids).pooler_output,
        "encoder_hidden_states": t5(t5_ids).last_hidden_state,
        "img_ids": places(),
        "txt_ids": torch.zeros(t5_ids.shape[1], 3),
    }
    said: Tensor = transformer(hidden_states=noisy, timestep=times, return_dict=False, **given)[0]
    return said.float()


def shipped_vae() -> AutoencoderKL:
    """The VAE of `model=shapes`, with the shift that FluxPipeline wants to be told."""
    vae = AutoencoderKL.from_pretrained(SHAPES_DIR / "vae").float().eval()
    vae.register_to_config(shift_factor=0.0, _name_or_path="")
    return vae


def train(out: Path, stage: str, steps: int, scenes: int, seed: int, rate: float) -> None:
    torch.manual_seed(seed)
    # On a CPU the flash kernel's backward in bf16 takes half of a step.
    torch.backends.cuda.enable_flash_sdp(False)
    vae = shipped_vae()
    latents, captions = latent_pool(vae, scenes, seed)
    pool = packed(latents)
    parts = Parts.new() if stage == "flow" else Parts.read(out)
    teacher = copy.deepcopy(parts.modules).requires_grad_(False) if stage == "distil" else None
    clip_ids, t5_ids = parts.ids(captions)
    no_clip, no_t5 = parts.ids([""])
    average = copy.deepcopy(parts.modules).requires_grad_(False)
    modules = parts.modules.train()
    if teacher is not None:
        modules[1:].requires_grad_(False)
    trained = [weight for weight in modules.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.99), fused=True)
    advance = cosine(optimizer, steps)
    diary = Diary(stage, steps)
    for step in range(steps):
        chosen = torch.randint(len(pool), (BATCH,))
        clean, noise = pool[chosen], torch.randn(BATCH, *pool.shape[1:])
        times = torch.sigmoid(torch.randn(BATCH))
        noisy = torch.lerp(clean, noise, times[:, None, None])
        clip, t5 = clip_ids[chosen], t5_ids[chosen]
        target = noise - clean
        if teacher is None:
            dropped = (torch.rand(BATCH) < 0.1)[:, None]
            clip, t5 = torch.where(dropped, no_clip, clip), torch.where(dropped, no_t5, t5)
        else:
            with torch.no_grad(), mixed_precision():
                both = [
                    torch.cat(pair)
                    for pair in ((no_clip.expand_as(clip), clip), (no_t5.expand_as(t5), t5))
                ]
                twice = noisy.repeat(2, 1, 1), times.repeat(2)
                without, told = velocity(teacher[0], teacher[1:], *twice, *both).chunk(2)
                target = torch.lerp(without, told, GUIDANCE)
        with mixed_precision():
            said = velocity(modules[0], modules[1:], noisy, times, clip, t5)
        loss = F.mse_loss(said, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        advance()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), modules.parameters(), strict=True):
                slow.lerp_(fast, 1.0 - decay)
        diary.note(step, loss)
        if step % 500 == 499 or step == steps - 1:
            Parts(parts.clip_tokenizer, parts.t5_tokenizer, average).save(out, vae)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that the pipeline goes to")
    parser.add_argument("--stage", choices=("flow", "distil"), action="append", help="only this")
    parser.add_argument("--seed", type=int, default=40)
    parser.add_argument("--length", type=float, default=1.0, help="0.01 tries the program out")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    scenes = max(64, round(16000 * asked.length))
    for number, (stage, steps, rate) in enumerate((("flow", 4500, 1e-3), ("distil", 1200, 3e-4))):
        if stage in (asked.stage or ("flow", "distil")):
            length = max(2, round(steps * asked.length))
            train(asked.out, stage, length, scenes, asked.seed + number, rate)


if __name__ == "__main__":
    main()
