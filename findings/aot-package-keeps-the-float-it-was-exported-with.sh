#!/usr/bin/env bash
# torch 2.13.0 (CPU). Needs a C++ compiler.
# Arguments that are no tensors (a LoRA's scale, a ControlNet's conditioning scale, a switch) become constants of an
# AOTInductor package. It still takes them by name, and leaves them out of account: another scale, even another branch,
# returns what the first one did.
# Surprising because the ExportedProgram of the same model refuses the same call ("Guard failed: scale == 2.0"); the
# package lost the guard on the way. What helps: give such numbers as tensors, or keep one package for each value.
# Seen:
#   scale=2.0 enabled=True  package [2.0, 2.0]  ExportedProgram [2.0, 2.0]
#   scale=3.0 enabled=True  package [2.0, 2.0]  ExportedProgram refuses (Guard failed: scale == 2.0)
#   scale=3.0 enabled=False package [2.0, 2.0]  ExportedProgram refuses (Guard failed: scale == 2.0)
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


class Adapter(torch.nn.Module):
    def forward(self, x, scale: float = 1.0, enabled: bool = True):
        return x * scale if enabled else x


ones = torch.ones(2)
program = torch.export.export(Adapter(), (ones,), {"scale": 2.0, "enabled": True})
exported = program.module()
packaged = torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(program))
for scale, enabled in ((2.0, True), (3.0, True), (3.0, False)):
    got = packaged(ones, scale=scale, enabled=enabled).tolist()
    try:
        said = str(exported(ones, scale=scale, enabled=enabled).tolist())
    except AssertionError as error:
        said = f"refuses ({str(error).splitlines()[0]})"
    print(f"scale={scale} enabled={enabled!s:5} package {got}  ExportedProgram {said}")
    assert got == [2.0, 2.0], "the behaviour has changed"
    assert said.startswith("refuses") == (scale != 2.0), "the behaviour has changed"
PYTHON
