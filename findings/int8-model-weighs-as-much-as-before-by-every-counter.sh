#!/usr/bin/env bash
# torchao 0.18.0, diffusers 0.42.1, accelerate 1.15.0, torch 2.13.0 (CPU).
# After quantize_() to int8 a UNet's linear weights take a quarter of the memory, and every counter says nothing has
# changed: diffusers' get_memory_footprint(), accelerate's compute_module_sizes() (which infer_auto_device_map plans
# with), Tensor.nbytes and element_size(). Its dtype says float32 too.
# Surprising because the file that torch.save writes of the same weights is smaller by what was saved: whoever budgets
# memory by these counters plans for the full model. What helps: count the plain tensors inside (__tensor_flatten__).
# Seen:
#                  get_memory_footprint   compute_module_sizes   plain tensors
#   fp32                       17484048               17484048        17484048
#   int8                       17484048               17484048        14274448 (most of this small UNet is convolutions)
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
from accelerate.utils import compute_module_sizes
from diffusers import UNet2DConditionModel
from torchao.quantization import Int8WeightOnlyConfig, quantize_

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=16, block_out_channels=(64, 128), cross_attention_dim=32, attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
).eval()


def plain_bytes(tensor):
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names = tensor.__tensor_flatten__()[0]
    return sum(plain_bytes(getattr(tensor, name)) for name in names)


def counted(name):
    plain = sum(plain_bytes(p.data) for p in unet.parameters())
    found = (unet.get_memory_footprint(), compute_module_sizes(unet)[""], plain)
    print("{:12}{:23}{:23}{:16}".format(name, *found))
    return found


print("               get_memory_footprint   compute_module_sizes   plain tensors")
before = counted("fp32")
quantize_(unet, Int8WeightOnlyConfig())
weight = unet.time_embedding.linear_1.weight
assert plain_bytes(weight) < 0.3 * weight.nbytes and weight.dtype == torch.float32
after = counted("int8")
assert after[:2] == before[:2] and after[2] < 0.85 * before[2], "the behaviour has changed"
PYTHON
