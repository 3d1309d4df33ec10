#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, torch 2.13.0 (CPU).
# After one call with cross_attention_kwargs={"scale": 0.0}, say for a picture without the adapter, every later call
# draws with the whole adapter, whatever set_adapters() had set: 0 can't be divided away again, so diffusers writes 1
# instead of what was there (unscale_lora_layers). A scale of 0.01 gives the strength back.
# Surprising because the argument belongs to one call; the pictures after it change, and nothing says so.
# What helps: disable_lora() and enable_lora() around the picture, or set_adapters() again.
# Seen:
#   set_adapters(0.3)           strength 0.300
#   after a call at scale 0.01  strength 0.300
#   after a call at scale 0.0   strength 1.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
fi
"$python" - <<'PYTHON'
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=16, block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
).eval()
layers = ["to_q", "to_k", "to_v", "to_out.0"]
unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=layers, init_lora_weights=False), "a")
latents, prompt = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q


def draw(**given):
    with torch.no_grad():
        return unet(latents, torch.tensor(500), prompt, **given).sample


def strength(when):
    print(f"{when:27} strength {layer.scaling['a']:.3f}")
    return round(layer.scaling["a"], 3)


unet.set_adapters("a", 0.3)
before, found = draw(), [strength("set_adapters(0.3)")]
draw(cross_attention_kwargs={"scale": 0.01})
found += [strength("after a call at scale 0.01")]
assert torch.allclose(draw(), before, atol=1e-5)
draw(cross_attention_kwargs={"scale": 0.0})
found += [strength("after a call at scale 0.0")]
unchanged = torch.allclose(draw(), before, atol=1e-5)
assert found == [0.3, 0.3, 1.0] and not unchanged, "the behaviour has changed"
PYTHON
