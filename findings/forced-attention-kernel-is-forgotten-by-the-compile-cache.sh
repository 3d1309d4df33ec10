#!/usr/bin/env bash
# torch 2.13.0 (CPU).
# The disk cache of torch.compile doesn't know which kernel sdpa_kernel() asked for: the kernel is chosen while a graph is
# traced, the choice is in no key, and the next process that compiles the same function gets the first one's kernel,
# whatever it asks for itself. No warning; the cache counts a hit.
# Surprising because sdpa_kernel() is the documented way to force a kernel, and it holds in the first process, in eager
# mode and with an empty cache: a comparison of two kernels compares one with itself, from the second run on.
# What helps: torch.compiler.config.cache_key_tag, another one for each kernel.
# Seen (asked for -> what a profiler saw, and hits in the cache):
#   math  -> two matrix products, 0 hits
#   flash -> two matrix products, 1 hit
#   flash -> flash, 0 hits          (a tag of its own)
#   math  -> two matrix products, 1 hit
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile torch==2.13.0 numpy
fi
export TORCHINDUCTOR_CACHE_DIR=$folder/cache
cat > "$folder/attend.py" <<'PYTHON'
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

asked, tag = sys.argv[1], sys.argv[2]
torch.compiler.config.cache_key_tag = tag
kernel = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}[asked]
query = torch.randn(2, 2, 64, 16)


@torch.compile
def attend(query):
    return torch.nn.functional.scaled_dot_product_attention(query, query, query).sum()


with torch.no_grad(), sdpa_kernel(kernel):
    attend(query)
    with torch.profiler.profile() as profile:
        attend(query)
seen = {event.key for event in profile.key_averages()}
ran = "flash" if any("flash_attention" in key for key in seen) else "two matrix products" if "aten::bmm" in seen else seen
print(f"{asked:5} -> {ran}, {torch._dynamo.utils.counters['aot_autograd']['autograd_cache_hit']} hits")
PYTHON
{
  "$python" "$folder/attend.py" math ""
  "$python" "$folder/attend.py" flash ""
  "$python" "$folder/attend.py" flash flash
  "$python" "$folder/attend.py" math ""
} 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
math  -> two matrix products, 0 hits
flash -> two matrix products, 1 hits
flash -> flash, 0 hits
math  -> two matrix products, 1 hits
SEEN
