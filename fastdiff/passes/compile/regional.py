"""torch.compile on the blocks that the denoiser repeats: one graph used for all of them, compiled in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastdiff.errors import Problem
from fastdiff.passes import base
from fastdiff.passes.compile.inductor import GUIDE
from fastdiff.passes.compile.whole import Compile, CompiledGraphs
from fastdiff.passes.effects import Pending
from fastdiff.passes.wrapping import around_forward
from fastdiff.script import Script, call


@dataclass
class Regional(Compile):
    """Only the blocks that the model repeats, each graph used for all of them. Can't be frozen."""

    key = "compile.regional"

    targets: list[str] = field(default_factory=lambda: ["denoiser"])
    freezing: Any = False

    @property
    def does(self) -> str:  # type: ignore[override]
        return "torch.compile of the repeated blocks"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        part = setting.denoiser
        if part and not (part.facts and part.facts.repeated_blocks):
            yield Problem(
                "compile=regional",
                f"{part.class_name} declares no repeated blocks",
                "compile=default",
                GUIDE,
            )
        if "vae_decode" in self.targets:
            yield Problem(
                "compile.targets=[vae_decode]",
                "a VAE has no repeated blocks to compile by region",
                "compile.targets=[denoiser], or compile=default",
            )
        yield from self.frozen_blocks(setting)

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        regions = 0
        for part in self.parts(pipeline, context).values():
            part.compile_repeated_blocks(fullgraph=self.fullgraph, options=self.inductor_options())
            regions += sum(m._compiled_call_impl is not None for m in part.modules())
            around_forward(part, self.around_calls(context.setting))
        return CompiledGraphs(self.key, regions, {"freezing": False})

    def script(self, script: Script, setting: base.Setting) -> None:
        self.write_flags(script, setting)
        how = self.written_how(script)
        parts = script.called(self.key, self.components(setting))
        script.then(*(call(f"{part}.compile_repeated_blocks", *how) for part in parts))
