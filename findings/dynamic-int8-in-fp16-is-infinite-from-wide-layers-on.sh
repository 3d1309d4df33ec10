#!/usr/bin/env bash
# torchao 0.18.0, torch 2.13.0 (CPU).
# A linear layer with dynamic int8 weights and activations that computes in fp16 gives inf where the layer itself, and the
# same in bf16, give some hundreds: the product of the integers is scaled by the activation's scale and rounded to fp16
# before it is scaled by the weight's. With weights of one size that passes 65504 between 512 and 520 inputs.
# Surprising because every value that goes in, and every value that should come out, is far inside fp16's range, and
# because it depends on how wide a layer is: 512 inputs are fine, 520 are not. Eager code; no error, no warning.
# What helps: bf16.
# Seen:
#   inputs   fp16 layer   int8 in fp16   int8 in bf16
#      512        512.0          508.0          512.0
#      520        520.0            inf          520.0
#     1280       1280.0            inf         1280.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile torch==2.13.0 torchao==0.18.0 numpy==2.3.5
fi
"$python" - <<'PYTHON'
import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_


def output(inputs, dtype, quantized):
    layer = nn.Sequential(nn.Linear(inputs, 8, bias=False, dtype=dtype))
    layer[0].weight = nn.Parameter(torch.ones_like(layer[0].weight), requires_grad=False)
    if quantized:
        quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    with torch.no_grad():
        return layer(torch.ones(32, inputs, dtype=dtype))[0, 0].item()


print("inputs   fp16 layer   int8 in fp16   int8 in bf16")
found = {}
for inputs in (512, 520, 1280):
    found[inputs] = (
        output(inputs, torch.float16, False),
        output(inputs, torch.float16, True),
        output(inputs, torch.bfloat16, True),
    )
    print("{:6}{:13.1f}{:15.1f}{:15.1f}".format(inputs, *found[inputs]))
finite = abs(found[512][1] - 512) < 6
overflows = all(found[inputs][1] == float("inf") for inputs in (520, 1280))
right = all(abs(bf16 - inputs) < 0.02 * inputs for inputs, (_, _, bf16) in found.items())
assert finite and overflows and right, "the behaviour has changed"
PYTHON
