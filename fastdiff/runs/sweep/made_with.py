"""What a cell was measured with, as far as it decides whether its figures may stand beside others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdiff.choices.options import origins
from fastdiff.config import RunConfig, fingerprint
from fastdiff.machine.environment import FASTDIFF_VERSION, this_machine
from fastdiff.models.content import content_hash
from fastdiff.models.sources import files_identity, model_of

MACHINE = ("processor", "gpu", "python")
"""What is said of the machine rather than of the software."""

_WORDS = {"processor": "the processor", "gpu": "the GPU", "weights": "the weights"}


def made_with(run: RunConfig, device: str) -> dict[str, str]:
    """Versions, the device and the weights, each in a word or a hash.

    Weights on the hub are known by their commit, files by their content. A plug-in's package counts where its option is chosen.
    """
    here = this_machine()
    found = dict(here.versions)
    found |= {"fastdiff": FASTDIFF_VERSION, "python": here.python}
    if device == "cuda" and here.gpus:
        found["gpu"] = " or ".join(sorted({gpu.name for gpu in here.gpus}))
    else:
        found["processor"] = f"{here.cpu}, {here.threads} threads"
    found["weights"] = weights_content(run)
    bringers = (each for each in origins(run.choices).values() if "distribution" in each)
    return found | {each["distribution"]: each["version"] for each in bringers}


def weights_content(run: RunConfig) -> str:
    """Hash of the model's content and of the files that other options name."""
    named: dict[str, Any] = {}
    for slot, _, option in run.options():
        path = getattr(option, "path", None)
        if slot != "model" and path:
            named[slot] = files_identity(Path(os.path.expanduser(path)), content_hash)
    return fingerprint([model_of(run).content(), named])


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What changed, in words: `torch 2.12.0, now 2.13.0`."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, "none"), now.get(name, "none")
        if old == new:
            continue
        label = _WORDS.get(name, name)
        found.append(f"{label} changed" if name == "weights" else f"{label} {old}, now {new}")
    return found
