#!/usr/bin/env bash
# The documents' three ladders on the embedded model, and the SDXL tutorial's with the real SDXL architecture and random
# weights at 512x512 in two steps, on a CPU. Tables and reports go to benchmarks/results/cpu/.
#
#   benchmarks/ladders.sh          # the embedded model: about half an hour on two cores
#   benchmarks/ladders.sh sdxl     # the real architecture: 16 GB of memory, one to two hours
#
# ROUNDS is the number of processes for each rung, PYTHON the interpreter, OUT the working folder. The same line again
# goes on where it stopped.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${OUT:-outputs/cpu}

climb() { # name, ladder, overrides
  local name=$1
  shift
  "$python" -m fastdiff ladder "$@" device=cpu "ladder.dir=$out/$name"
  benchmarks/keep.sh "$out/$name" "benchmarks/results/cpu/$name"
}

if [ "${1:-}" = sdxl ]; then
  climb sdxl_tutorial_on_sdxl sdxl_tutorial model=sdxl model.weights=random \
    generation.height=512 generation.width=512 generation.steps=2 bench=once "ladder.rounds=${ROUNDS:-1}"
else
  climb sd15_guide sd15_guide model=shapes "ladder.rounds=${ROUNDS:-5}"
  climb distilled_guide distilled_guide model=shapes precision=fp32 "ladder.rounds=${ROUNDS:-5}"
  climb sdxl_tutorial sdxl_tutorial model=shapes "ladder.rounds=${ROUNDS:-5}"
fi
