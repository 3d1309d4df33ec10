"""`memory_format`: the order in which a convolution's weights lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastdiff.errors import Problem
from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.script import Script


@dataclass
class Contiguous(base.Option):
    """Channels first, PyTorch's default."""

    slot = "memory_format"


@dataclass
class ChannelsLast(base.Option, base.Pass):
    """Channels last (NHWC) for every 4-D weight of denoiser and VAE."""

    slot = "memory_format"
    key = "memory_format.channels_last"
    stage = base.Stage.LAYOUT
    fidelity = base.Fidelity.EXACT
    does = "store 4-D weights channels last"
    source = "https://huggingface.co/docs/diffusers/tutorials/fast_diffusion"

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        parts = (setting.denoiser, setting.vae)
        # A class outside the table is tried: the count afterwards says whether there was anything to do.
        return tuple(p.name for p in parts if p and (p.facts is None or p.facts.conv_weights == 4))

    def check(self, setting: base.Setting) -> base.Findings:
        part = setting.denoiser
        if part is None or part.facts is None or part.facts.conv_weights == 4:
            return
        why = "5-D weights (3-D convolutions)" if part.facts.conv_weights == 5 else "no 4-D weights"
        yield Problem(
            "memory_format=channels_last",
            f"{part.class_name} has {why}: there is nothing to lay out",
            "memory_format=contiguous",
            self.source,
        )

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        import torch

        def is_laid_out(weight: Any) -> bool:
            four = weight.ndim == 4
            return four and bool(weight.is_contiguous(memory_format=torch.channels_last))

        return self.counted(
            pipeline,
            context,
            lambda part: part.to(memory_format=torch.channels_last),
            lambda part: sum(map(is_laid_out, part.parameters())),
            "weights",
        )

    def script(self, script: Script, setting: base.Setting) -> None:
        script.use("torch")
        parts = script.called(self.key, self.components(setting))
        script.then(*(f"{part}.to(memory_format=torch.channels_last)" for part in parts))


OPTIONS: dict[str, type[base.Option]] = {"contiguous": Contiguous, "channels_last": ChannelsLast}
