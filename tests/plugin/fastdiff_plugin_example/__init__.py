"""An option of the slot `quant` in a package of its own: the least that a plug-in needs.

torch is imported where it is used, so that `plan` stays quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from fastdiff.errors import Problem
from fastdiff.passes.base import Context, Fidelity, Notice, Option, Pass, Setting, Stage
from fastdiff.passes.effects import Effect


@dataclass
class Rounded(Option, Pass):
    """Weights of the denoiser's linear layers rounded to a few bits, one scale a row.

    They keep their dtype, so nothing is saved: it shows what so few bits cost in quality.

    bits: of a weight, with its sign; from 2 to 16.
    """

    slot: ClassVar[str] = "quant"
    key: ClassVar[str] = "quant.example_rounded"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    does: ClassVar[str] = "round the weights of linear layers"

    bits: int = 4

    def components(self, setting: Setting) -> tuple[str, ...]:
        return (setting.denoiser.name if setting.denoiser else "denoiser",)

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        if not 2 <= self.bits <= 16:
            yield Problem(f"quant.bits={self.bits}", "must be from 2 to 16", "quant.bits=4")

    def apply(self, pipeline: Any, context: Context) -> Effect:
        import torch

        parts = context.parts(pipeline, self.components(context.setting)).values()
        linears = [m for part in parts for m in part.modules() if isinstance(m, torch.nn.Linear)]
        changed = 0
        for linear in linears:
            before = linear.weight.detach().clone()
            largest = before.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
            scale = largest / (2 ** (self.bits - 1) - 1)
            with torch.no_grad():
                linear.weight.copy_((before / scale).round() * scale)
            changed += not torch.equal(before, linear.weight)
        return Effect(self.key, changed, "linears")
