"""Every optimization that fastdiff has: slot, option, class. Adding one is one line in its slot's file."""

from __future__ import annotations

from fastdiff.passes import (
    allocator,
    attention,
    cache,
    compile,
    lora,
    memory,
    memory_format,
    precision,
    qkv,
    quant,
    scheduler,
    vae,
)
from fastdiff.passes.base import Option

OPTIONS: dict[str, dict[str, type[Option]]] = {
    "precision": precision.OPTIONS,
    "vae": vae.OPTIONS,
    "scheduler": scheduler.OPTIONS,
    "lora": lora.OPTIONS,
    "attention": attention.OPTIONS,
    "qkv": qkv.OPTIONS,
    "memory_format": memory_format.OPTIONS,
    "quant": quant.OPTIONS,
    "cache": cache.OPTIONS,
    "memory": memory.OPTIONS,
    "compile": compile.OPTIONS,
    "allocator": allocator.OPTIONS,
}

BASES: dict[str, type[Option]] = {"precision": precision.Precision}
"""What options of a slot have in common beside Option, where other passes build on it."""
