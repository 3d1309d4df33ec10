"""How a pipeline comes to be, and what is known of it before it is loaded."""

from __future__ import annotations

from fastdiff.models.hub import Hub
from fastdiff.models.published import Published
from fastdiff.models.sources import Local, Model, Shapes, SingleFile

MODELS: dict[str, type[Model]] = {
    "shapes": Shapes,
    "hub": Hub,
    "published": Published,
    "local": Local,
    "single_file": SingleFile,
}
"""Schemas of the slot `model`, by the names that its YAML files refer to."""
