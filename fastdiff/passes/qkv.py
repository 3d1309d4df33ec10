"""`qkv`: separate query, key and value projections, or one joined matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastdiff.errors import Problem
from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.script import Script


@dataclass
class Separate(base.Option):
    """Three projections, as published."""

    slot = "qkv"


@dataclass
class Fused(base.Option, base.Pass):
    """One matrix product instead of three in self-attention, and of two in cross-attention.

    The old weights stay in memory beside the joined ones (SDXL's UNet grows by a quarter).
    """

    slot = "qkv"
    key = "qkv.fused"
    stage = base.Stage.FUSE
    fidelity = base.Fidelity.EXACT
    does = "join the attention blocks' query, key and value projections"
    source = "https://huggingface.co/docs/diffusers/tutorials/fast_diffusion"

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        """Every part whose class can: an AutoencoderTiny is left out, where diffusers itself raises."""
        parts = (setting.denoiser, setting.vae)
        return tuple(p.name for p in parts if p and p.fuses_qkv)

    def check(self, setting: base.Setting) -> base.Findings:
        part = setting.denoiser
        if part and not (part.fuses_qkv):
            yield Problem(
                "qkv=fused",
                f"{part.class_name} can't fuse its projections",
                "qkv=separate",
                self.source,
            )

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        return self.counted(
            pipeline,
            context,
            lambda part: part.fuse_qkv_projections(),
            lambda part: sum(getattr(m, "fused_projections", False) for m in part.modules()),
            "blocks",
        )

    def script(self, script: Script, setting: base.Setting) -> None:
        parts = script.called(self.key, self.components(setting))
        script.then(*(f"{part}.fuse_qkv_projections()" for part in parts))


OPTIONS: dict[str, type[base.Option]] = {"separate": Separate, "fused": Fused}
