"""The schema of a run: one option per slot, what to generate, and on which device.

A slot is a Hydra config group. Every option of a slot is a YAML in `conf/<slot>/` whose schema is a dataclass derived
from `Slot`; the options that change the pipeline stand in `fastdiff/passes/`, the models in `fastdiff/models/`, and the
two that only say how to measure (`bench`, `quality`) stand here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

_SHIPPED = Path(__file__).parent / "conf"
CONF_DIR = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parent.parent / "conf"
"""Where the option files are: inside an installed wheel, or at the top of a checkout."""


@dataclass
class Slot:
    """Base of every option; its fields are the keys that `<slot>.<key>=value` sets."""

    slot: ClassVar[str] = ""


LARGEST_INT = 2**31 - 1
LARGEST_SEED = 2**63 - 1
LARGEST_FLOAT = 3.4e38

# What a field's metadata may say of its key; `choices/keys.py` reads it.

LITERAL = {"literal": True}
"""Of a key whose value is taken as it stands, commas, quotes and dollars included."""
PLACE = {"place": "path"}
"""Of one that names a file or a folder."""
PLACE_OR_NAME = {"place": "path or name"}
"""Of one that names a folder, or a repository on the hub."""
CODE_PLACE = {"place": "code"}
"""Of one that names a folder whose content is run."""


def limits(most: float, why: str, **others: Any) -> dict[str, Any]:
    """Of a number: its most, and why no more; one without takes what 32 bits hold.

    others: least, above: bounds below, where no check of the run's says them better. example: a value that makes sense.
    """
    return {"most": (most, why), **others}


SEED = limits(LARGEST_SEED, "the largest that a generator takes")
_WARMUP = limits(100_000, "nothing gets faster after so many")
_SIDE = limits(16_384, "no model draws such a picture", example="512")


@dataclass
class Bench(Slot):
    """How often the whole call is repeated.

    warmup: calls after the first one that are kept apart from the timed ones; 0 is none at all.
    runs: timed calls, at least 1.
    most_warmup: how far the warm-up may go on while calls still get faster; below `warmup` it goes no further than that.
    """

    slot: ClassVar[str] = "bench"
    warmup: int = field(default=1, metadata=_WARMUP)
    runs: int = field(default=5, metadata=limits(100_000, "more say nothing more of a median"))
    most_warmup: int = field(default=10, metadata=_WARMUP)


@dataclass
class Quality(Slot):
    """Base of the options that say what the picture is compared with."""

    slot: ClassVar[str] = "quality"


@dataclass
class Reference(Quality):
    """Compare with a reference: `auto` makes it (fp32, SDPA, nothing else), a path names a picture.

    exact: hold passes that only reorder arithmetic to PyTorch's rule, in fp64, and end with `invalid_output` if they break it.
    lpips: also measure LPIPS, which needs torchvision and the weights of its AlexNet.
    captions: so many held-out captions are drawn and judged, of the embedded model only; 0 judges the run's own prompt.
    The others are budgets; null sets none, and a run that misses one ends with the status `invalid_output`:
    min_psnr_db: in dB, more is nearer. min_ssim, min_ms_ssim: at most 1. max_lpips: 0 is the same picture.
    max_abs_difference: of pixels, in [0, 1]; max_abs_difference_latents: of the last step's latents.
    min_caption_score: of the pictures judged, the part with the right colours at the right places.
    """

    ms_ssim_side: ClassVar[int] = 176
    """Pixels a side that torchmetrics' MS-SSIM needs: at a 16th of the size its window of 11 must fit."""
    lpips_side: ClassVar[int] = 31
    """Pixels a side that LPIPS needs: below it AlexNet's second pooling has nothing to pool."""

    reference: str = field(default="auto", metadata=PLACE)
    exact: bool = True
    lpips: bool = False
    captions: int = field(default=0, metadata=limits(10_000, "more say nothing more of a score"))
    min_psnr_db: float | None = field(default=None, metadata={"example": "30"})
    min_ssim: float | None = None
    min_ms_ssim: float | None = None
    max_lpips: float | None = None
    max_abs_difference: float | None = None
    max_abs_difference_latents: float | None = None
    min_caption_score: float | None = None

    def budgets(self) -> dict[str, float]:
        """The budgets that are set, by key."""
        keys = [f.name for f in fields(self) if f.name.startswith(("min_", "max_"))]
        return {key: limit for key in keys if (limit := getattr(self, key)) is not None}


@dataclass
class NoQuality(Quality):
    """Compare with nothing."""


@dataclass
class Generation:
    """What is drawn. A key left at null takes the model's own default.

    prompt: a text, or a list of texts that are drawn as one batch.
    negative_prompt: what the pictures shouldn't show, one text for all of them.
    steps: denoising steps, at least 1.
    guidance_scale: how closely the prompt is followed, at least 0; diffusers' pipelines take 1 for no guidance.
    height, width: pixels, a multiple of 8.
    images_per_prompt: pictures for each prompt, drawn as one batch.
    seed: of the CPU generator that draws the starting latents; 0 is a seed like any other.
    call: other arguments of the pipeline's call by name (`generation.call.clip_skip=1`): texts, numbers, true and false, and
        lists of them; null leaves one of the model's own out.
    """

    prompt: Any = field(default=None, metadata=LITERAL)
    negative_prompt: str | None = field(default=None, metadata=LITERAL)
    steps: int | None = field(
        default=None, metadata=limits(10_000, "no schedule has so many noise levels")
    )
    guidance_scale: float | None = None
    height: int | None = field(default=None, metadata=_SIDE)
    width: int | None = field(default=None, metadata=_SIDE)
    images_per_prompt: int = field(default=1, metadata=limits(1_000, "they are drawn as one batch"))
    seed: int = field(default=0, metadata=SEED)
    call: dict[str, Any] = field(
        default_factory=dict, metadata={"example": "{max_sequence_length:256}"}
    )

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list, whatever form they were given in."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or [])


@dataclass
class Experiment:
    """Which of the documents' experiments a run is, and what they published of it. Changes nothing in the run.

    rung: its place in its ladder, from 0; over: the rung that it builds on, where that isn't the one above.
    source: address of the document; workload: what was drawn there; hardware: what it was measured on.
    latency_s: seconds that the document gives for a whole call; speedup: against the ladder's first rung.
    """

    rung: int = 0
    over: int | None = None
    source: str | None = None
    workload: str | None = None
    hardware: str | None = None
    latency_s: float | None = None
    speedup: float | None = None


@dataclass
class UsedRecipe:
    """The recipe that a run's choices come from, where one was named.

    name, sha256: of the file. model, device: what it was made for.
    overrides: what it brought to this run, in Hydra's grammar. replaced: what of it was overridden, as slot and text.
    """

    name: str | None = None
    sha256: str | None = None
    model: str | None = None
    device: str | None = None
    overrides: list[str] = field(default_factory=list)
    replaced: list[list[str]] = field(default_factory=list)


@dataclass
class RunConfig:
    """One choice per slot. `choices` names them, and the experiment; the slots hold their keys."""

    model: Slot = MISSING
    precision: Slot = MISSING
    vae: Slot = MISSING
    scheduler: Slot = MISSING
    lora: Slot = MISSING
    attention: Slot = MISSING
    qkv: Slot = MISSING
    memory_format: Slot = MISSING
    quant: Slot = MISSING
    cache: Slot = MISSING
    memory: Slot = MISSING
    compile: Slot = MISSING
    allocator: Slot = MISSING
    bench: Slot = MISSING
    quality: Slot = MISSING
    generation: Generation = field(default_factory=Generation)
    experiment: Experiment = field(default_factory=Experiment)
    device: str = "auto"
    allow_no_effect: bool = False
    profile: bool = False
    choices: dict[str, str] = field(default_factory=dict)
    recipe: UsedRecipe = field(default_factory=UsedRecipe)

    def options(self) -> Iterator[tuple[str, str, Slot]]:
        """Slot, the name of its option, and the option, in the order of the fields."""
        for slot in SLOTS:
            yield slot, self.choices[slot], getattr(self, slot)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: every slot's keys with the option's name as `option`."""
        data: dict[str, Any] = {}
        for slot, option, values in self.options():
            keys = {key: plain(value) for key, value in asdict(values).items()}
            data[slot] = {"option": option, **keys}
        data["generation"] = asdict(self.generation)
        data["device"] = self.device
        data["allow_no_effect"] = self.allow_no_effect
        data["profile"] = self.profile
        data["experiment"] = {"name": self.choices.get("experiment", NO_EXPERIMENT)}
        data["experiment"] |= asdict(self.experiment)
        data["recipe"] = {"name": self.recipe.name, "sha256": self.recipe.sha256}
        return data


def plain(value: Any) -> Any:
    """Enumerations by name, as YAML spells them."""
    return value.name if isinstance(value, Enum) else value


SLOTS = tuple(f.name for f in fields(RunConfig) if f.type == "Slot")
"""Names of the slots, in the order in which a run is read."""

NO_EXPERIMENT = "none"
"""The name that stands for a run outside the documents."""

PROVENANCE = ("experiment", "recipe")
"""Keys of a written run that say where its choices come from, and change nothing in it."""

SCALARS = ("device", "allow_no_effect", "profile")
"""Keys of a run that belong to no slot."""


def fingerprint(data: object) -> str:
    """Sixteen hexadecimal digits that change when the data does. Keys may come in any order."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
