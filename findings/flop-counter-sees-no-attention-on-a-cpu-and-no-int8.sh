#!/usr/bin/env bash
# torch 2.13.0 (CPU), torchao 0.18.0, diffusers 0.42.1.
# torch's FlopCounterMode counts 0 for scaled_dot_product_attention on a CPU (its flash kernel there isn't in the
# counter's table) and 0 for int8 linear layers: the same UNet "needs" fewer operations with SDPA than with attention
# as two matrix products, and fewer still in int8. torch.profiler(with_flops=True) leaves SDPA out as well, and
# transposed convolutions.
# Surprising because a figure comes out, and not a small part is missing: a rate in FLOP/s or an efficiency made of it
# falls when a model is optimized. What helps: count on the meta device, in fp32, before quantizing.
# Seen, in GFLOP:
#   attention alone, 2 products of 256 x 256 x 32, 4 heads: 0.000 of 0.034
#   UNet, products written out  1.047
#   UNet, SDPA                  0.933
#   UNet, SDPA on meta          1.047
#   UNet, SDPA, int8            0.701
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 torchao==0.18.0
fi
"$python" - <<'PYTHON'
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.utils.flop_counter import FlopCounterMode
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=16, block_out_channels=(64, 128), cross_attention_dim=32, attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
).eval()
given = torch.randn(1, 4, 16, 16), torch.tensor(500), torch.randn(1, 77, 32)


def gflop(function, *given):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*given)
    return round(counter.get_total_flops() / 1e9, 3)


q = torch.randn(1, 4, 256, 32)
alone = gflop(torch.nn.functional.scaled_dot_product_attention, q, q, q)
print(f"attention alone, 2 products of 256 x 256 x 32, 4 heads: {alone:.3f} of {4 * 4 * 256 * 256 * 32 / 1e9:.3f}")
unet.set_attn_processor(AttnProcessor())
found = [gflop(unet, *given)]
unet.set_attn_processor(AttnProcessor2_0())
found += [gflop(unet, *given)]
with torch.device("meta"):
    copy = UNet2DConditionModel.from_config(unet.config).eval()
found += [gflop(copy, *(tensor.to("meta") for tensor in given))]
quantize_(unet, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
found += [gflop(unet, *given)]
names = ("products written out", "SDPA", "SDPA on meta", "SDPA, int8")
for name, count in zip(names, found, strict=True):
    print(f"UNet, {name:20}  {count:.3f}")
assert alone == 0 and found[0] == found[2] > found[1] > found[3], "the behaviour has changed"
PYTHON
