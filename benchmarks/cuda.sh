#!/usr/bin/env bash
# The documents' three ladders at their own sizes and steps on one CUDA GPU, with random weights: nothing is downloaded.
#
#   benchmarks/cuda.sh                 # all three
#   benchmarks/cuda.sh sdxl_tutorial   # one
#
# Begins no measurement after LIMIT_S seconds (default 240, so that a call ends inside ten minutes even if its last
# measurement compiles for five) and then exits with 75: the same line again goes on where it stopped. ROUNDS is the
# number of processes for each rung (default 3), PYTHON the interpreter, OUT the working folder. Tables and reports
# are copied to benchmarks/results/cuda/; the pictures of random weights are noise and stay in OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${OUT:-outputs/cuda}
limit=${LIMIT_S:-240}
rounds=${ROUNDS:-3}
started=$SECONDS
code=0
for ladder in "${@:-sd15_guide distilled_guide sdxl_tutorial}"; do
  for name in $ladder; do
    left=$((limit - (SECONDS - started)))
    if ((left <= 0)); then
      code=75
      break 2
    fi
    "$python" -m fastdiff ladder "$name" model.weights=random device=cuda \
      "ladder.dir=$out/$name" "ladder.rounds=$rounds" "ladder.limit_s=$left"
    ended=$?
    benchmarks/keep.sh "$out/$name" "benchmarks/results/cuda/$name"
    ((ended == 130)) && exit 130
    if ((ended == 75)); then
      code=75
      break 2
    fi
    ((ended != 0)) && code=$ended
  done
done
exit "$code"
