"""Published architectures, as far as they differ from their classes' defaults. No weights, and nothing is imported.

They let a plan answer before a download, and `model.weights=random` build a model that was never downloaded. Sizes are
counted by tests/models/test_architectures.py on the very modules; the tables (architectures.json) hold for diffusers 0.42 and
transformers 5. SDXL's odd widths: 2048 = 768 + 1280, both text encoders' hidden sizes, and 2816 = 6 * 256 + 1280. BK-SDM-Small's
UNet is SD 1's without what distillation shed: the middle block, and one of two layers in every other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.tables import Table


@dataclass(frozen=True)
class Blueprint:
    """One component: where its class is, the arguments of its constructor, how many numbers its weights hold."""

    library: str
    class_name: str
    parameters: int
    config: Mapping[str, object] = field(default_factory=dict)

    def component(self, name: str) -> Component:
        """What planning knows of it; its files, and so their bytes, are nobody's yet."""
        return Component(
            name, self.library, self.class_name, None, self.parameters, dict(self.config)
        )


@dataclass(frozen=True)
class Architecture:
    """A whole pipeline.

    components: with weights; the scheduler is among them, with none. tokenizers: kind by component name, `clip` or `t5`.
    arguments: further ones of the pipeline's constructor. source: where the configurations were read.
    """

    pipeline: str
    components: Mapping[str, Blueprint]
    tokenizers: Mapping[str, str]
    source: str
    arguments: Mapping[str, object] = field(default_factory=dict)

    def facts(self) -> ModelFacts:
        parts = {name: part.component(name) for name, part in self.components.items()}
        return ModelFacts(self.pipeline, parts)


def _blueprint(row: Sequence[Any]) -> Blueprint:
    library, class_name, parameters, config = row
    return Blueprint(library, class_name, parameters, config)


def _architecture(row: Mapping[str, Any]) -> Architecture:
    parts = {name: _blueprint(part) for name, part in row["components"].items()}
    return Architecture(**{**row, "components": parts})


ARCHITECTURES: Mapping[str, Architecture] = Table("architectures", "architectures", _architecture)
"""By the name that a model's YAML gives in `architecture`. SD 1.4 and 1.5 are the same one."""

ORIGINAL: Mapping[str, Architecture] = Table("architectures", "original", ARCHITECTURES.__getitem__)
"""By pipeline: whose layers an original checkpoint has, in one file, if it is none of their distilled kin."""

TINY_AUTOENCODERS: Mapping[str, Blueprint] = Table("architectures", "tiny_autoencoders", _blueprint)
"""By their repositories on the hub. taesd has the class's own defaults; taesdxl's file was not to be found and is taken to
be the same. taef1 is inferred from its published use with Flux' 16 channels; no file of it was read.
"""
