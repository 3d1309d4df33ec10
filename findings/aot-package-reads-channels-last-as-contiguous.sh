#!/usr/bin/env bash
# torch 2.13.0 (CPU). Needs a C++ compiler.
# An AOTInductor package computes on the memory of a tensor as it lay when the model was exported: given the same
# picture in channels_last it returns other numbers, and so does a bf16 package that is given fp16. Neither raises; the
# ExportedProgram that the package was made of returns the right ones.
# Surprising because torch.compile compiles anew there, eager PyTorch doesn't care, and a pipeline whose weights are in
# channels_last hands exactly such latents on. Shapes, dtypes and strides are looked at only with
# AOTI_RUNTIME_CHECK_INPUTS=1 in the environment. What helps: .contiguous() and .to(dtype) before the call.
# Seen:
#   contiguous    relative error 0.00
#   channels_last relative error 1.41
#   fp16 given to bf16 relative error 0.82
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
fi
"$python" - <<'PYTHON'
import torch

torch.manual_seed(0)
model = torch.nn.Conv2d(4, 4, 3, padding=1).eval().requires_grad_(False)
latents = torch.randn(1, 4, 8, 8)
half = latents.to(torch.bfloat16)


def package(model, example):
    program = torch.export.export(model, (example,))
    file = torch._inductor.aoti_compile_and_package(program)
    return program.module(), torch._inductor.aoti_load_package(file)


def error(got, wanted):
    return float((got.float() - wanted).norm() / wanted.norm())


wanted = model(latents)
exported, packaged = package(model, latents)
other_layout = latents.to(memory_format=torch.channels_last)
assert torch.equal(other_layout, latents) and error(exported(other_layout), wanted) < 1e-5
same, moved = error(packaged(latents), wanted), error(packaged(other_layout), wanted)
_, packaged = package(model.to(torch.bfloat16), half)
good, other = error(packaged(half), wanted), error(packaged(half.to(torch.float16)), wanted)
print(f"contiguous    relative error {same:.2f}")
print(f"channels_last relative error {moved:.2f}")
print(f"fp16 given to bf16 relative error {other:.2f}")
assert same < 1e-5 and good < 0.02 and moved > 0.5 and other > 0.5, "the behaviour has changed"
PYTHON
