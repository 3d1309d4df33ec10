#!/usr/bin/env bash
# DeepCache 0.1.1, diffusers 0.42.1, torch 2.13.0 (CPU).
# Image to image with DeepCache: the helper remembers at which step its very first call began, and counts every later
# call from there. A call with another strength begins elsewhere, its first step then counts as one to skip, and takes
# its deep features from the last picture that was drawn: another prompt's. The picture differs from the same call in a
# new process, and differs again by what was drawn before.
# Surprising because txt2img is safe (always step 0), prompt and seed are given, and nothing is said.
# What helps: cache.disable() and cache.enable() between calls.
# Seen (relative distance of the latents from those of the same call made first):
#   strength 0.8 after strength 0.8 with another prompt: 0.00000
#   strength 0.8 after strength 0.5 with another prompt: 0.41319
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 DeepCache==0.1.1
fi
"$python" - <<'PYTHON'
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel


def pipeline(kind=StableDiffusionImg2ImgPipeline):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    vae = AutoencoderKL(norm_num_groups=8, block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4).eval()
    made = kind(vae, None, None, unet, DDIMScheduler(clip_sample=False, steps_offset=1), None, None, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


generator = torch.Generator().manual_seed(7)
one, two, nothing = torch.randn(3, 1, 77, 32, generator=generator) * 3
picture = torch.rand(1, 3, 128, 128, generator=generator)


def draw(pipe, prompt, strength):
    return pipe(
        prompt_embeds=prompt, negative_prompt_embeds=nothing, image=picture, strength=strength,
        num_inference_steps=20, output_type="latent", generator=torch.Generator().manual_seed(0),
    ).images


def after(strength):
    """The second picture of a pipeline whose first had this strength; of a new one if it is None."""
    pipe = pipeline()
    cache = DeepCacheSDHelper(pipe)
    cache.set_params(cache_interval=4, cache_branch_id=0)
    cache.enable()
    if strength is not None:
        draw(pipe, two, strength)
    return draw(pipe, one, 0.8)


wanted, found = after(None), []
for strength in (0.8, 0.5):
    found += [float((after(strength) - wanted).norm() / wanted.norm())]
    print(f"strength 0.8 after strength {strength} with another prompt: {found[-1]:.5f}")
assert found[0] == 0 and found[1] > 1e-4, "the behaviour has changed"
PYTHON
