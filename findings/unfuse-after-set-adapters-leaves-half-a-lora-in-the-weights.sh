#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, torch 2.13.0 (CPU).
# set_adapters(name, 0.5) on a fused adapter changes nothing that is drawn, but unfuse_lora() then takes away only half of
# what was added: half of the adapter stays in the base weights for good, and even disable_lora() or
# delete_adapters() draws with it. No warning, no error.
# Surprising because each call alone is right, and the strength a user looks at (get_active_adapters, scaling) says
# nothing of it. What helps: unfuse before set_adapters, or load the model anew.
# Seen:
#   fused                              strength 1.000
#   fused, then set_adapters(0.5)      strength 1.000
#   unfused, adapter at 0.5            strength 1.000 (0.5 of it in the base weights)
#   adapter deleted                    strength 0.500
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
plain = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.detach().clone()
layers = ["to_q", "to_k", "to_v", "to_out.0"]
unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=layers, init_lora_weights=False), "a")
attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
full = attention.to_q.get_delta_weight("a").detach()
eye = torch.eye(plain.shape[1])


def strength(when):
    added = attention.to_q(eye).detach().T - plain
    found = float((added * full).sum() / full.norm() ** 2)
    print(f"{when:34} strength {found:.3f}")
    return round(found, 3)


unet.fuse_lora()
found = [strength("fused")]
unet.set_adapters("a", 0.5)
found += [strength("fused, then set_adapters(0.5)")]
unet.unfuse_lora()
found += [strength("unfused, adapter at 0.5")]
unet.delete_adapters("a")
unet.unload_lora()
found += [strength("adapter deleted")]
assert found == [1.0, 1.0, 1.0, 0.5], "the behaviour has changed"
PYTHON
