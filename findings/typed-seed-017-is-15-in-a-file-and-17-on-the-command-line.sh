#!/usr/bin/env bash
# hydra-core 1.3.8, omegaconf 2.3.1.
# One typed key, one spelling, two values, no error: `seed: 017` in a YAML file is 15 (YAML 1.1 reads octal), `seed=017`
# on the command line is 17 (Hydra's grammar reads text, OmegaConf makes an int of it). `steps: 1:30` in a file is 90
# (base 60) where the command line refuses it; so does 16:9, and is 969.
# Surprising because the schema says int in both places, and a file with what was typed is how a run is written down:
# the picture of a zero-padded seed isn't reproduced by it.
# Seen:
#   017    file 15   command line 17
#   0012   file 10   command line 12
#   08     file 8    command line 8
#   1_000  file 1000 command line 1000
#   1:30   file 90   command line refused
#   16:9   file 969  command line refused
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile hydra-core==1.3.8 omegaconf==2.3.1
fi
"$python" - <<'PYTHON'
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore


@dataclass
class Schema:
    seed: int = 0


ConfigStore.instance().store(name="schema", node=Schema)
folder = tempfile.mkdtemp()


def value(text, overrides=()):
    try:
        return compose("run", list(overrides)).seed
    except Exception:  # ConfigCompositionException: not an int
        return "refused"


found = {}
for text in ("017", "0012", "08", "1_000", "1:30", "16:9"):
    Path(folder, "run.yaml").write_text(f"defaults: [schema, _self_]\nseed: {text}\n")
    with initialize_config_dir(folder, version_base="1.3"):
        found[text] = value(text), value(text, [f"seed={text}"])
    print(f"{text:6} file {found[text][0]!s:4} command line {found[text][1]}")
assert found["017"] == (15, 17) and found["0012"] == (10, 12), "the behaviour has changed"
assert found["1:30"] == (90, "refused") and found["16:9"] == (969, "refused"), "the behaviour has changed"
PYTHON
