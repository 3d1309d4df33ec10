"""Published models by name: from the hub, or their architecture alone with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import PLACE_OR_NAME, SEED
from fastdiff.errors import ModelError, nearest
from fastdiff.models.architectures import ARCHITECTURES, Architecture
from fastdiff.models.facts import ModelFacts
from fastdiff.models.hub import Hub
from fastdiff.models.sources import Model, folder_or_name
from fastdiff.script import Script, ScriptError

if TYPE_CHECKING:
    import torch


class Weights(Enum):
    """Where a published model's weights come from."""

    hub = "hub"
    random = "random"


@dataclass
class Student:
    """The model that was distilled from another one: its place on the hub, its architecture, its own LCM adapter."""

    id: str = ""
    variant: str | None = None
    architecture: str | None = None
    lcm_lora: str | None = field(default=None, metadata=PLACE_OR_NAME)


@dataclass
class Published(Hub):
    """A model whose architecture fastdiff knows, so that `plan` answers before any download.

    weights: `hub` downloads them; `random` fills the architecture with seeded random numbers, to measure speed and
        memory where nothing can be downloaded. Its pictures show nothing.
    weights_seed: of those numbers.
    architecture: its name in fastdiff's table; null if it isn't there.
    fp16_vae: of vae=fp16_fix, org/name on the hub or a folder.
    student: the model that was distilled from this one, for model.role=student.
    """

    weights: Weights = Weights.hub
    weights_seed: int = field(default=0, metadata=SEED)
    architecture: str | None = None
    fp16_vae: str | None = field(default=None, metadata=PLACE_OR_NAME)
    student: Student = field(default_factory=Student)

    @property
    def title(self) -> str:
        name = self.id.rpartition("/")[2] or self.id
        return f"{name} with random weights" if self.is_random else self.id

    @property
    def is_random(self) -> bool:
        return self.weights is Weights.random

    @property
    def random_seed(self) -> int | None:
        return self.weights_seed if self.is_random else None

    @property
    def remote(self) -> bool:
        return not self.is_random

    def own_fp16_vae(self) -> Path | str | None:
        return folder_or_name(self.fp16_vae)

    def _known(self) -> Architecture | None:
        """Its architecture in the table. Raises ModelError if there is none of that name."""
        if self.architecture is None:
            return None
        if self.architecture not in ARCHITECTURES:
            near = nearest(self.architecture, ARCHITECTURES)
            hint = f"model.architecture={near}" if near else f"one of {', '.join(ARCHITECTURES)}"
            raise ModelError(
                f"model.architecture={self.architecture}: fastdiff knows no such architecture\n"
                f"  instead: {hint}"
            )
        return ARCHITECTURES[self.architecture]

    def _random(self) -> Architecture:
        """The architecture to be filled. Raises ModelError if it isn't known."""
        known = self._known()
        if known is None:
            raise ModelError(
                f"model.weights=random: the architecture of {self.id} is not in fastdiff's table\n"
                "  instead: model.weights=hub, or a model whose YAML names an architecture"
            )
        return known

    def facts(self) -> ModelFacts | None:
        if self.is_random:
            return self._random().facts()
        found = super().facts()
        known = self._known()
        return known.facts() if found is None and known is not None else found

    def identity(self) -> dict[str, Any]:
        if not self.is_random:
            return super().identity()
        from fastdiff.models.random_weights import RECIPE

        return {"architecture": self.architecture, "seed": self.weights_seed, "recipe": RECIPE}

    def load_notices(self) -> Iterator[str]:
        if self.is_random:
            yield (
                f"{self.id} gets random weights: times and memory are those of the real model, pictures are "
                "noise, and quality only says how far the numbers moved"
            )
        else:
            yield from super().load_notices()

    def fetch(self) -> None:
        if not self.is_random:
            super().fetch()

    def load(self, dtype: torch.dtype | None, parts: Mapping[str, Any]) -> Any:
        if not self.is_random:
            return super().load(dtype, parts)
        from fastdiff.models.random_weights import build_pipeline

        return build_pipeline(self._random(), self.weights_seed, dtype, parts)

    def script(self, script: Script) -> None:
        if self.is_random:
            raise ScriptError(
                "model.weights=random",
                "the numbers are drawn by fastdiff itself",
                "model.weights=hub, or model=local model.path=DIR",
            )
        super().script(script)

    def student_model(self) -> Model:
        if not self.student.id:
            return super().student_model()
        return replace(
            self,
            id=self.student.id,
            revision=None,
            variant=self.student.variant,
            architecture=self.student.architecture,
            lcm_lora=self.student.lcm_lora,
            student=Student(),
        )
