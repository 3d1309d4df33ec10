#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, torch 2.13.0 (CPU).
# fuse_lora(lora_scale=0.5) multiplies the adapter's own strength by 0.5 and unfuse_lora() doesn't give it back: fused at
# a half, taken out and fused at a half again, the adapter is added at a quarter; taken out and left beside the weights,
# it acts at a quarter too. No warning.
# Surprising because unfuse_lora() "reverses the effect of fuse_lora()", and lora_scale reads like a strength, not like
# a factor on all that came before. What helps: set_adapters(name, 1.0) before every fuse_lora().
# Seen:
#   fuse_lora(lora_scale=0.5)        strength 0.500
#   unfuse_lora()                    strength 0.500 (1 before fusing)
#   fuse_lora(lora_scale=0.5) again  strength 0.250
#   unfuse_lora(), set_adapters(1.0) strength 1.000
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
layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
plain = layer.base_layer.weight.detach().clone()
full = layer.get_delta_weight("a").detach()
eye = torch.eye(plain.shape[1])


def strength(when):
    """Of what the layer really computes, as a part of the whole adapter."""
    added = layer(eye).detach().T - plain
    found = float((added * full).sum() / full.norm() ** 2)
    print(f"{when:32} strength {found:.3f}")
    return round(found, 3)


assert strength("before") == 1.0
unet.fuse_lora(lora_scale=0.5)
found = [strength("fuse_lora(lora_scale=0.5)")]
unet.unfuse_lora()
found += [strength("unfuse_lora()")]
unet.fuse_lora(lora_scale=0.5)
found += [strength("fuse_lora(lora_scale=0.5) again")]
unet.unfuse_lora()
unet.set_adapters("a", 1.0)
found += [strength("unfuse_lora(), set_adapters(1.0)")]
assert found == [0.5, 0.5, 0.25, 1.0], "the behaviour has changed"
PYTHON
