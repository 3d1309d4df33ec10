"""The keys that belong to no slot: what is drawn, on which device, and how strict a run is."""

from __future__ import annotations

from typing import get_type_hints

from omegaconf import OmegaConf

from fastdiff.choices.docstrings import key_texts
from fastdiff.config import CONF_DIR, SCALARS, Generation, RunConfig
from generating.docstrings import comments, type_words
from generating.markdown import anchor, definition, marked, sentence, text
from generating.options import as_typed


def render() -> str:
    """Every key of `generation` and those beside it, with types and defaults from the schema and `config.yaml`."""
    path = CONF_DIR / "config.yaml"
    values, said = OmegaConf.load(path), comments(path)
    hints, texts = get_type_hints(Generation), key_texts(Generation)
    found = [(f"generation.{name}", hints[name], texts.get(name, "")) for name in hints]
    run = get_type_hints(RunConfig)
    found += [(name, run[name], "") for name in SCALARS]
    lines = []
    for key, kind, about in found:
        told = [sentence(text(each)) for each in (about, said.get(key, "")) if each]
        default = f"Default: {as_typed(OmegaConf.select(values, key))}."
        lines += definition(
            marked(key, anchor("key", key), type_words(kind)), " ".join([*told, default])
        )
    return "\n".join(lines)
