"""`qkv`: separate query, key and value projections, or one joined matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from fastdiff.errors import Problem
from fastdiff.passes.base import Context, Fidelity, Notice, Option, Pass, Setting, Stage
from fastdiff.passes.effects import Effect
from fastdiff.script import Script


@dataclass
class Separate(Option):
    """Three projections, as published."""

    slot: ClassVar[str] = "qkv"


@dataclass
class Fused(Option, Pass):
    """One matrix product instead of three in self-attention, and of two in cross-attention.

    The old weights stay in memory beside the joined ones (SDXL's UNet grows by a quarter).
    """

    slot: ClassVar[str] = "qkv"
    key: ClassVar[str] = "qkv.fused"
    stage: ClassVar[Stage] = Stage.FUSE
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    does: ClassVar[str] = "join the attention blocks' query, key and value projections"
    source: ClassVar[str | None] = "https://huggingface.co/docs/diffusers/tutorials/fast_diffusion"

    def components(self, setting: Setting) -> tuple[str, ...]:
        """Every part whose class can: an AutoencoderTiny is left out, where diffusers itself raises."""
        parts = (setting.denoiser, setting.vae)
        return tuple(p.name for p in parts if p and p.fuses_qkv)

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        part = setting.denoiser
        if part and not (part.fuses_qkv):
            yield Problem(
                "qkv=fused",
                f"{part.class_name} can't fuse its projections",
                "qkv=separate",
                self.source,
            )

    def apply(self, pipeline: Any, context: Context) -> Effect:
        blocks = {}
        for name, part in context.parts(pipeline, self.components(context.setting)).items():
            part.fuse_qkv_projections()
            blocks[name] = sum(getattr(m, "fused_projections", False) for m in part.modules())
        return Effect(self.key, sum(blocks.values()), "blocks", details={"components": blocks})

    def script(self, script: Script, setting: Setting) -> None:
        parts = script.called(self.key, self.components(setting))
        script.then(*(f"{part}.fuse_qkv_projections()" for part in parts))


OPTIONS: dict[str, type[Option]] = {"separate": Separate, "fused": Fused}
