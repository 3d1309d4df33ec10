#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.13.0 (CPU), scipy 1.17.1.
# use_beta_sigmas=True works in DPM-Solver++, DEIS, UniPC and SASolver up to 31 steps, and ends every call of 32 steps or
# more, so also at the usual 50, after the last denoiser call: IndexError or a bare AssertionError. From there on the
# first two noise levels round to the same timestep (998), the solver looks its first step up by that, begins at the
# second, and runs out of noise levels. EulerDiscreteScheduler keeps fractions and works.
# Surprising because more steps are never refused elsewhere, and the message says nothing of it. What helps:
# scheduler.set_begin_index(0) after set_timesteps().
# Seen (first three timesteps, and how 31 and 32 steps end):
#   DPMSolverMultistepScheduler 31: [998, 997, 995] 0.560  32: [998, 998, 995] IndexError  mended: 0.557
#   DEISMultistepScheduler      31: [998, 997, 995] 0.505  32: [998, 998, 995] IndexError  mended: 0.505
#   UniPCMultistepScheduler     31: [998, 997, 995] 0.560  32: [998, 998, 995] AssertionError  mended: 0.558
#   EulerDiscreteScheduler      50: [999.0, 998.53, 997.52]
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
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

# Data of standard deviation 0.5: the exact noise estimate is linear, and a sampler should give 0.5 back.
normal = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def deviation(kind, steps, begin=None, **settings):
    scheduler = kind(**betas, **settings)
    scheduler.set_timesteps(steps)
    if begin is not None:
        scheduler.set_begin_index(begin)
    x = normal
    for timestep in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[timestep].double()
        estimate = x * (1 - alpha).sqrt() / (alpha * 0.25 + 1 - alpha)
        x = scheduler.step(estimate, timestep, x).prev_sample
    return float(x.std())


def ending(kind, steps):
    scheduler = kind(**betas, use_beta_sigmas=True)
    scheduler.set_timesteps(steps)
    try:
        return scheduler.timesteps[:3].tolist(), f"{deviation(kind, steps, use_beta_sigmas=True):.3f}"
    except (IndexError, AssertionError) as error:
        return scheduler.timesteps[:3].tolist(), type(error).__name__


for kind in (DPMSolverMultistepScheduler, DEISMultistepScheduler, UniPCMultistepScheduler):
    works, fails = ending(kind, 31), ending(kind, 32)
    mended = deviation(kind, 32, begin=0, use_beta_sigmas=True)
    print(f"{kind.__name__:27} 31: {works[0]} {works[1]}  32: {fails[0]} {fails[1]}  mended: {mended:.3f}")
    assert works[1][0] == "0" and fails[1] in ("IndexError", "AssertionError"), "the behaviour has changed"
    assert all(ending(kind, steps)[1] == fails[1] for steps in (40, 50, 100)), "the behaviour has changed"
euler = EulerDiscreteScheduler(**betas, use_beta_sigmas=True)
euler.set_timesteps(50)
print("EulerDiscreteScheduler      50:", [round(t, 2) for t in euler.timesteps[:3].tolist()])
assert len(set(euler.timesteps.tolist())) == 50
PYTHON
