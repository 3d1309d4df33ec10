#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.13.0 (CPU).
# UniPCMultistepScheduler with lower_order_final=False gives NaN at the last step, at any number of steps, without an
# error: a black picture. So it does with predict_x0=False. Both divide by the last noise level, which is 0 by default
# (final_sigmas_type="zero"). DPMSolverMultistepScheduler takes lower_order_final=False and answers, and where it can't
# (algorithm_type="dpmsolver") it raises a ValueError that names the way out.
# Surprising because both are documented options of one class beside one another, and their sister class is careful.
# What helps: final_sigmas_type="sigma_min".
# Seen (standard deviation of samples, 0.5 is right):
#   DPMSolverMultistepScheduler lower_order_final=False                            0.461
#   UniPCMultistepScheduler                                                        0.462
#   UniPCMultistepScheduler     lower_order_final=False                            nan
#   UniPCMultistepScheduler     predict_x0=False                                   nan
#   UniPCMultistepScheduler     predict_x0=False, final_sigmas_type=sigma_min      0.472
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 scipy==1.17.1
fi
"$python" - <<'PYTHON'
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

# Data of standard deviation 0.5: the exact noise estimate is linear, and a sampler should give 0.5 back.
normal = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def deviation(kind, steps, **settings):
    scheduler = kind(**betas, **settings)
    scheduler.set_timesteps(steps)
    x = normal
    for timestep in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[timestep].double()
        estimate = x * (1 - alpha).sqrt() / (alpha * 0.25 + 1 - alpha)
        x = scheduler.step(estimate, timestep, x).prev_sample
    return float(x.std())


for kind, settings, broken in (
    (DPMSolverMultistepScheduler, {"lower_order_final": False}, False),
    (UniPCMultistepScheduler, {}, False),
    (UniPCMultistepScheduler, {"lower_order_final": False}, True),
    (UniPCMultistepScheduler, {"predict_x0": False}, True),
    (UniPCMultistepScheduler, {"predict_x0": False, "final_sigmas_type": "sigma_min"}, False),
):
    found = [deviation(kind, steps, **settings) for steps in (5, 20, 100)]
    said = ", ".join(f"{key}={value}" for key, value in settings.items())
    print(f"{kind.__name__:27} {said:50} {found[1]:.3f}")
    assert all((x != x) == broken for x in found), "the behaviour has changed"
try:
    DPMSolverMultistepScheduler(**betas, algorithm_type="dpmsolver").set_timesteps(20)
except ValueError as error:
    print("DPMSolverMultistepScheduler algorithm_type=dpmsolver:", error)
PYTHON
