#!/usr/bin/env bash
# The documents' ladders on the embedded model, and the SDXL tutorial's with the real SDXL architecture and random
# weights at 512x512 in two steps, on a CPU. Tables and reports go to benchmarks/results/cpu/.
#
#   benchmarks/ladders.sh          # the embedded model: about an hour on one core
#   benchmarks/ladders.sh sdxl     # the real architecture: 20 GB of memory, half an hour a round on one core
#
# In fp32 where the tutorial has bf16 (leave precision=fp32 out on a processor that computes in bf16), and without frozen
# weights, which would be a second copy of SDXL. ROUNDS is the number of processes for each rung, PYTHON the interpreter,
# OUT the working folder. The same line again goes on where it stopped.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${OUT:-outputs/cpu}
code=0

climb() { # name, ladder, overrides
  local name=$1
  shift
  "$python" -m fastdiff ladder "$@" device=cpu "ladder.dir=$out/$name"
  local ended=$?
  benchmarks/keep.sh "$out/$name" "benchmarks/results/cpu/$name"
  ((ended == 130)) && exit 130
  ((ended != 0)) && code=$ended
}

if [ "${1:-}" = sdxl ]; then
  climb sdxl_tutorial_on_sdxl sdxl_tutorial model=sdxl model.weights=random \
    precision=fp32 compile.freezing=false generation.height=512 generation.width=512 generation.steps=2 \
    bench=once "ladder.rounds=${ROUNDS:-3}"
else
  climb sd15_guide sd15_guide model=shapes "ladder.rounds=${ROUNDS:-3}"
  climb distilled_guide distilled_guide model=shapes precision=fp32 "ladder.rounds=${ROUNDS:-3}"
  climb sdxl_tutorial sdxl_tutorial model=shapes "ladder.rounds=${ROUNDS:-3}"
  # For processors that don't compute in bf16 or fp16.
  climb sdxl_tutorial_fp32 sdxl_tutorial model=shapes precision=fp32 "ladder.rounds=${ROUNDS:-3}"
  climb guide_fp32 guide model=shapes precision=fp32 bench=once "ladder.rounds=${ROUNDS:-1}"
fi
exit "$code"
