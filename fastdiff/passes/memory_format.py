"""`memory_format`: the order in which a convolution's weights lie in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from fastdiff.errors import Problem
from fastdiff.passes.base import Context, Fidelity, Notice, Option, Pass, Setting, Stage
from fastdiff.passes.effects import Effect
from fastdiff.script import Script


@dataclass
class Contiguous(Option):
    """Channels first, PyTorch's default."""

    slot: ClassVar[str] = "memory_format"


@dataclass
class ChannelsLast(Option, Pass):
    """Channels last (NHWC) for every 4-D weight of denoiser and VAE."""

    slot: ClassVar[str] = "memory_format"
    key: ClassVar[str] = "memory_format.channels_last"
    stage: ClassVar[Stage] = Stage.LAYOUT
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    does: ClassVar[str] = "store 4-D weights channels last"
    source: ClassVar[str | None] = "https://huggingface.co/docs/diffusers/tutorials/fast_diffusion"

    def components(self, setting: Setting) -> tuple[str, ...]:
        parts = (setting.denoiser, setting.vae)
        # A class outside the table is tried: the count afterwards says whether there was anything to do.
        return tuple(p.name for p in parts if p and (p.facts is None or p.facts.conv_weights == 4))

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
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

    def apply(self, pipeline: Any, context: Context) -> Effect:
        import torch

        weights = {}
        for name, part in context.parts(pipeline, self.components(context.setting)).items():
            part.to(memory_format=torch.channels_last)
            weights[name] = sum(
                weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
                for weight in part.parameters()
            )
        return Effect(self.key, sum(weights.values()), "weights", details={"components": weights})

    def script(self, script: Script, setting: Setting) -> None:
        script.use("torch")
        parts = script.called(self.key, self.components(setting))
        script.then(*(f"{part}.to(memory_format=torch.channels_last)" for part in parts))


OPTIONS: dict[str, type[Option]] = {"contiguous": Contiguous, "channels_last": ChannelsLast}
