"""What a recipe file says.

A choice is an option's name, or a mapping with `option` and the keys that are changed in it. What may stand in it follows
from the options' own dataclasses, so that a new option or key needs nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from fastdiff.config import SLOTS, Generation, limits

FORMAT = 2

NOT_CHOSEN = ("model", "bench", "quality")
"""Slots that say for what, and how it was measured: no choices of a recipe."""

CHOOSABLE = tuple(slot for slot in SLOTS if slot not in NOT_CHOSEN)

Choice = str | dict[str, Any]
"""An option's name, or a mapping with `option` and its changed keys."""


class Device(Enum):
    """Kinds of devices."""

    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


@dataclass
class MadeFor:
    """What a recipe was made for.

    model: an option of the slot model, or a mapping with `option` and its keys. It is used where nobody names another one.
    device: the kind of device.
    """

    model: Choice
    device: Device


@dataclass
class MeasuredQuality:
    """Against the reference picture: psnr_db in dB; ssim, at most 1; max_abs_difference of pixels, in [0, 1]."""

    identical: bool | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    max_abs_difference: float | None = None


@dataclass
class MeasuredWork:
    """What was drawn in a call: denoising steps, guidance, pixels, pictures."""

    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    images: int | None = None


@dataclass
class MeasuredOn:
    """The machine and its software."""

    device_name: str | None = None
    threads: int | None = None
    os: str | None = None
    python: str | None = None
    torch: str | None = None
    diffusers: str | None = None
    transformers: str | None = None
    torchao: str | None = None
    fastdiff: str | None = None


@dataclass
class Measured:
    """What was measured. Times in seconds, of a whole call and of one step; memory in bytes.

    report_sha256: of the run's report.json.
    """

    latency_s: float = field(metadata={"least": 0})
    step_latency_s: float | None = field(default=None, metadata={"least": 0})
    compile_s: float | None = field(default=None, metadata={"least": 0})
    peak_memory_bytes: int | None = field(
        default=None, metadata=limits(10**15, "no machine has so much", least=0)
    )
    quality: MeasuredQuality | None = None
    work: MeasuredWork | None = None
    environment: MeasuredOn | None = None
    report_sha256: str | None = None


@dataclass
class RecipeFile:
    """A recipe.

    format: of the file. name: what people call it. description: why and when.
    choices: slot by slot, an option's name, or a mapping with `option` and the keys changed in it; other slots keep their defaults.
    generation: defaults of what is drawn, for whoever names nothing else. measured: what it did where it was made.
    """

    format: int
    name: str
    made_for: MadeFor
    choices: dict[str, Choice]
    description: str | None = None
    generation: Generation | None = None
    measured: Measured | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read. Its parts are plain data, and only what was found to be right is in them.

    place: the file; None for one that is in no file. sha256: of its bytes.
    """

    name: str
    place: Path | None
    sha256: str
    description: str | None = None
    model: dict[str, Any] | None = None
    device: str | None = None
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


def as_mapping(choice: Choice) -> dict[str, Any]:
    """A choice with its option named: `{"option": "int8", "min_in_features": 64}`."""
    return {"option": choice} if isinstance(choice, str) else dict(choice)
