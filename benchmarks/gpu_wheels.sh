#!/usr/bin/env bash
# Collects the wheels that benchmarks/gpu.sh may need on a CUDA machine without network: gpu_wheels.sh [DIR] [PYTHON_VERSION]
#
#   benchmarks/gpu_wheels.sh wheels 3.12      # here, where pip works; about 26 MB
#   WHEELS=wheels benchmarks/gpu.sh           # there
#
# That machine has Python, a CUDA build of torch, transformers and what those need (numpy, scipy, pillow, safetensors, huggingface_hub,
# pyyaml, packaging): these are large, or compiled for one Python. Everything else of fastdiff and of its tests is here, the versions
# those of pyproject.toml; gpu.sh takes only what is missing there. PYTHON is the interpreter whose pip is used.
set -euo pipefail

dir=${1:-wheels}
version=${2:-3.12}
python=${PYTHON:-python3}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
most=$((64 * 1024 * 1024))
mkdir -p "$dir"

names=(
  diffusers importlib_metadata lazy-importer zipp torchao accelerate peft hydra-core omegaconf torchmetrics lightning-utilities
  rich markdown-it-py mdurl pygments platformdirs jinja2 plotly narwhals psutil nvidia-ml-py
  pytest pluggy iniconfig pytest-xdist execnet hypothesis sortedcontainers # of the tests
)
# Each with the versions that pyproject.toml takes, if it is named there.
mapfile -t packages < <("$python" - "$checkout/pyproject.toml" "${names[@]}" <<'PYTHON'
import re
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
needs = [*project["dependencies"], *extras["lora"], *extras["dev"]]
wanted = {re.split(r"[^\w.-]", need)[0]: need for need in needs}
for name in sys.argv[2:]:
    print(wanted.get(name, name))
PYTHON
)
((${#packages[@]} == ${#names[@]}))

platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${name}_x86_64")
done
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
  "${platforms[@]}" -d "$dir" "${packages[@]}"
"$python" -m pip wheel -q --no-deps -w "$dir" antlr4-python3-runtime==4.9.3 # omegaconf's; published as source only

bytes=$(cat "$dir"/*.whl | wc -c)
printf '%s wheels, %s MB\n' "$(find "$dir" -name '*.whl' | wc -l)" $((bytes / 1000000))
if ((bytes > most)); then
  echo "gpu_wheels.sh: more than 64 MB; instead: an empty folder, in which no older versions lie" >&2
  exit 1
fi
