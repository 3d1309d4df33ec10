"""What the classes of diffusers can do, by name: library.json, which inspection.py writes from the installed release.

Nothing here imports torch, diffusers or transformers: a plan is answered in milliseconds. A class that the file doesn't
know, of a later release or of its user's own, is looked at when somebody hands over a pipeline of it (`inspection.learn`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdiff.models.tables import Table, read


@dataclass(frozen=True)
class ModelClass:
    """What one model class can do; `inspection.model_facts` says what each field means."""

    repeated_blocks: tuple[str, ...] = ()
    step_cache: bool = False
    context_parallel: bool = False
    tensor_parallel: bool = False
    group_offload: bool = False
    default_attention: bool = False
    attention_processors: bool = False
    attention: int | None = None
    dispatched: int = 0
    processors: tuple[str, ...] = ()
    conv_weights: int = 0
    cached_blocks: tuple[str, ...] = ()
    tiling: bool = False
    slicing: bool = False
    fuses_qkv: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> ModelClass:
        return cls(**_tuples(row))


@dataclass(frozen=True)
class PipelineClass:
    """What one pipeline class is called with, and what it does; `inspection.pipeline_facts` says what each field means."""

    arguments: tuple[str, ...] = ()
    defaults: Mapping[str, Any] | None = None
    required: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    each_step: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    fuses_qkv: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> PipelineClass:
        return cls(**_tuples(row))

    @property
    def denoisers(self) -> tuple[str, ...]:
        """Components that predict noise or velocity in each step: neither what steers them nor what guides them."""
        return tuple(name for name in self.each_step if name not in _BESIDE)


_BESIDE = ("controlnet", "guider", "ocr_guider")


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


MODEL_CLASSES: Table[ModelClass] = Table("library", "models", ModelClass.of)
PIPELINE_CLASSES: Table[PipelineClass] = Table("library", "pipelines", PipelineClass.of)


def version() -> str:
    """The release of diffusers that the file was written from."""
    return str(read("library")["diffusers"])
