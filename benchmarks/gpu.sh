#!/usr/bin/env bash
# Ten minutes that prove a GPU: everything of fastdiff that only a CUDA GPU can run, in order of risk.
#
#   benchmarks/gpu.sh                       # on a GPU; the same line again goes on with what is missing
#   benchmarks/gpu.sh --summary             # the table again, nothing is run
#   benchmarks/gpu.sh --again int8          # one step once more
#   benchmarks/gpu.sh --only 'ladder-*'     # steps by name, and those that are run only when named
#   benchmarks/gpu.sh --tiny                # all of it on a CPU: small sizes, and what needs CUDA has to be refused
#
# It works from a plain checkout, without network, weights or root. It needs Python 3.11 or newer with a CUDA build of torch,
# transformers and accelerate; what else is missing comes from WHEELS, a folder that benchmarks/gpu_wheels.sh filled.
# PYTHON is the interpreter, OUT the folder for results (outputs/gpu), SCRATCH the one for gigabytes. Exit code 0: all steps are
# as expected; 1: one isn't; 75: none isn't, but some are still to be run. OUT/gpu.json holds all results.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-$checkout/outputs/gpu}
scratch=${SCRATCH:-${TMPDIR:-/tmp}/fastdiff-gpu-$(id -u)}

# Code is run from it: nobody else may have made it.
mkdir -p -m 700 "$scratch"
if [[ ! -O $scratch || -L $scratch ]]; then
  echo "gpu.sh: $scratch belongs to somebody else; instead: SCRATCH=DIR" >&2
  exit 2
fi

# Of the wheels, those that this Python lacks, or has in a version that fastdiff doesn't take.
missing_wheels() {
  "$python" - "$checkout/pyproject.toml" "$WHEELS"/*.whl <<'PYTHON'
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

with open(sys.argv[1], "rb") as file:
    needs = [Requirement(text) for text in tomllib.load(file)["project"]["dependencies"]]
wanted = {canonicalize_name(need.name): need.specifier for need in needs}
for wheel in sys.argv[2:]:
    name = parse_wheel_filename(wheel.rpartition("/")[2])[0]
    try:
        here = version(name)
        fits = name not in wanted or here in wanted[name]
    except PackageNotFoundError:
        fits = False
    if not fits:
        print(wheel)
PYTHON
}

if [[ -n ${WHEELS:-} ]]; then
  mapfile -t wheels < <(missing_wheels)
  if ((${#wheels[@]})) && [[ ! -d $scratch/site ]]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site.new" "${wheels[@]}"
    mv "$scratch/site.new" "$scratch/site" # whole, or not there
  fi
fi
export PYTHONPATH="$checkout:$scratch/site"
if ! lacking=$("$python" -c 'from importlib.util import find_spec
names = "torch", "diffusers", "transformers", "torchao", "hydra", "omegaconf"
print(*(name for name in names if find_spec(name) is None))') || [[ -n $lacking ]]; then
  echo "gpu.sh: $python ${lacking:+lacks ${lacking// /, }}; instead: PYTHON=.venv/bin/python, or WHEELS=DIR (gpu_wheels.sh)" >&2
  exit 2
fi
exec "$python" "$checkout/benchmarks/gpu.py" --out "$out" --scratch "$scratch" "$@"
