#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.13.0 (CPU).
# OtherPipeline.from_pipe(pipe) without dtype= casts the components that both share to fp32: the pipeline it was made
# from draws in fp32 from now on, with twice the memory and another picture. The same components handed over by
# OtherPipeline(**pipe.components), or by AutoPipelineForImage2Image.from_pipe(pipe), stay in bf16.
# Surprising because from_pipe is there to reuse components "without additional memory", and because the two from_pipe
# differ. What helps: dtype=pipe.dtype.
# Seen:
#   components                           torch.bfloat16, 1 x the memory, moved by 0.0000
#   AutoPipelineForImage2Image.from_pipe torch.bfloat16, 1 x the memory, moved by 0.0000
#   from_pipe(dtype=)                    torch.bfloat16, 1 x the memory, moved by 0.0000
#   from_pipe                            torch.float32, 2 x the memory, moved by 0.0238
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
fi
"$python" - <<'PYTHON'
import torch
from diffusers import AutoencoderKL, AutoPipelineForImage2Image, DDIMScheduler, StableDiffusionImg2ImgPipeline
from diffusers import StableDiffusionPipeline, UNet2DConditionModel


def pipeline(kind=StableDiffusionPipeline):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    vae = AutoencoderKL(norm_num_groups=8, block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4).eval()
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    made = kind(vae, None, None, unet, scheduler, None, None, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


prompt, nothing = torch.randn(2, 1, 77, 32, generator=torch.Generator().manual_seed(7))
Other = StableDiffusionImg2ImgPipeline


def draw(pipe):
    return pipe(
        prompt_embeds=prompt, negative_prompt_embeds=nothing, num_inference_steps=4, height=128, width=128,
        output_type="latent", generator=torch.Generator().manual_seed(0),
    ).images.float()


for name, make in {
    "components": lambda pipe: Other(**pipe.components, requires_safety_checker=False),
    "AutoPipelineForImage2Image.from_pipe": AutoPipelineForImage2Image.from_pipe,
    "from_pipe(dtype=)": lambda pipe: Other.from_pipe(pipe, dtype=pipe.dtype),
    "from_pipe": Other.from_pipe,
}.items():
    pipe = pipeline().to(torch.bfloat16)
    first, memory = draw(pipe), pipe.unet.get_memory_footprint()
    make(pipe)
    dtype, more = pipe.unet.dtype, pipe.unet.get_memory_footprint() / memory
    moved = float((draw(pipe) - first).norm() / first.norm())
    print(f"{name:36} {dtype}, {more:.0f} x the memory, moved by {moved:.4f}")
    upcast = name == "from_pipe"
    assert (dtype == torch.float32) == upcast and (moved > 1e-3) == upcast, "the behaviour has changed"
PYTHON
