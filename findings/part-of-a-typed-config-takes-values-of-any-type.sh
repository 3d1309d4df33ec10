#!/usr/bin/env bash
# omegaconf 2.3.1.
# `OmegaConf.masked_copy(config, keys)` of a structured config, also with all of its keys, is an untyped one: a list goes
# into a text, "many" into a number, None where nothing is optional, and `to_object` gives a dict instead of the dataclass.
# Two neighbours that look alike keep what they have: `copy.deepcopy`, and a node of the config that holds another one.
# Surprising because nothing fails where the copy is made, and what a schema would have refused reaches the program as data.
# Helps: copy.deepcopy of the whole, and read the keys that are wanted from it.
# Seen:
#   structured   steps=many refused   device=[1] refused   guidance=None refused   Schema
#   deepcopy     steps=many refused   device=[1] refused   guidance=None refused   Schema
#   node         steps=many refused   device=[1] refused   guidance=None refused   Schema
#   masked_copy  steps=many taken     device=[1] taken     guidance=None taken     dict
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-$folder/venv/bin/python}
if [ -z "${FINDINGS_PYTHON:-}" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q --no-compile omegaconf==2.3.1
fi
"$python" - <<'PYTHON'
import copy
from dataclasses import dataclass, field

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class Schema:
    steps: int = 25
    device: str = "auto"
    guidance: float = 5.0


@dataclass
class Run:
    generation: Schema = field(default_factory=Schema)


def kinds():
    typed = OmegaConf.structured(Schema)
    return {
        "structured": typed,
        "deepcopy": copy.deepcopy(typed),
        "node": OmegaConf.structured(Run).generation,
        "masked_copy": OmegaConf.masked_copy(typed, ["steps", "device", "guidance"]),
    }


def taken(name, key, value):
    try:
        OmegaConf.update(kinds()[name], key, value)
    except OmegaConfBaseException:
        return "refused"
    return "taken"


found = {}
for name, config in kinds().items():
    tries = [(key, value, taken(name, key, value)) for key, value in
             (("steps", "many"), ("device", [1]), ("guidance", None))]
    found[name] = [said for *_, said in tries], type(OmegaConf.to_object(config)).__name__
    words = "   ".join(f"{key}={value} {said:7}" for key, value, said in tries)
    print(f"{name:12} {words}   {found[name][1]}")
for name in ("structured", "deepcopy", "node"):
    assert found[name] == (["refused"] * 3, "Schema"), "the behaviour has changed"
assert found["masked_copy"] == (["taken"] * 3, "dict"), "the behaviour has changed"
PYTHON
