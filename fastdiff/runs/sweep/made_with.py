"""What a cell was measured with, as far as it decides whether its figures may stand beside others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from fastdiff.choices.options import origins
from fastdiff.config import RunConfig, fingerprint
from fastdiff.machine.environment import FASTDIFF_VERSION, this_machine
from fastdiff.models.content import content_hash
from fastdiff.models.sources import files_identity, model_of

MACHINE = ("processor", "gpu", "python")
"""What is said of the machine rather than of the software."""

_WORDS = {"processor": "the processor", "gpu": "the GPU", "weights": "the weights"}


def made_with(
    run: RunConfig, device: str, weights_of: Callable[[RunConfig], str] | None = None
) -> dict[str, str]:
    """Versions, the device and the weights, each in a word or a hash.

    Weights on the hub are known by their commit, files by their content. A plug-in's package counts where its option is chosen.
    weights_of: weights_content, or WeightsOnce where many runs are asked at one moment.
    """
    here = this_machine()
    found = dict(here.versions)
    found |= {"fastdiff": FASTDIFF_VERSION, "python": here.python}
    if device == "cuda" and here.gpus:
        found["gpu"] = " or ".join(sorted({gpu.name for gpu in here.gpus}))
    else:
        found["processor"] = f"{here.cpu}, {here.threads} threads"
    found["weights"] = (weights_of or weights_content)(run)
    bringers = (each for each in origins(run.choices).values() if "distribution" in each)
    return found | {each["distribution"]: each["version"] for each in bringers}


def weights_content(run: RunConfig) -> str:
    """Hash of the model's content and of the files that other options name."""
    named = {slot: files_identity(path, content_hash) for slot, path in _paths(run)}
    return fingerprint([model_of(run).content(), named])


def _paths(run: RunConfig) -> Iterator[tuple[str, Path]]:
    """The files that options beside the model name, by slot."""
    for slot, _, option in run.options():
        if slot != "model" and (path := getattr(option, "path", None)):
            yield slot, Path(os.path.expanduser(path))


class WeightsOnce:
    """`weights_content` that reads each model's files once, for the many cells of one moment."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, run: RunConfig) -> str:
        model = [run.choices["model"], asdict(run.model)]  # type: ignore[call-overload]
        key = fingerprint([model, {slot: str(path) for slot, path in _paths(run)}])
        if key not in self._known:
            self._known[key] = weights_content(run)
        return self._known[key]


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
