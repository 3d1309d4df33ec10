"""accelerate's `compile_regions`: the documents' other way to compile by region, and the models that it breaks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from fastdiff.errors import NoEffectError, Problem, RunError
from fastdiff.models.tables import names
from fastdiff.passes import base
from fastdiff.passes.compile.inductor import parts_of
from fastdiff.passes.compile.whole import Compile, CompiledGraphs
from fastdiff.passes.effects import Pending
from fastdiff.passes.wrapping import around_forward
from fastdiff.script import Script, call


@dataclass
class Regions(Compile):
    """accelerate's `compile_regions`: every block of a list of like blocks, and each part beside them, on its own.

    It returns another module around the same submodules, which takes the first one's place in the pipeline. What
    earlier passes did to submodules is therefore kept. Can't be frozen, as compile=regional.

    Torch's own layers beside the blocks (a first convolution, a last norm) share one piece of code to Dynamo, so all but
    the first of them are counted as recompiles, and a model with more than nine different ones is past Dynamo's limit.
    """

    key = "compile.regions"
    source = "https://huggingface.co/docs/diffusers/optimization/fp16#regional-compilation"

    targets: list[str] = field(default_factory=lambda: ["denoiser"])
    freezing: Any = False

    @property
    def does(self) -> str:  # type: ignore[override]
        return "accelerate's compile_regions, repeated blocks and the parts beside them"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        for target, part in parts_of(setting).items():
            if part is None or target not in self.targets:
                continue
            if part.class_name in _ASKS_WHETHER_PARTS_ARE_TRUE:
                other = "compile.targets=[vae_decode], or " if "vae_decode" in self.targets else ""
                yield Problem(
                    "compile=regions",
                    f"accelerate's compile_regions crashes on {part.class_name}, which asks "
                    "`if self.conv_norm_out:`: a compiled part answers that with its length, and a norm has none",
                    f"{other}compile=regional",
                    self.source,
                )
            elif part.class_name == "AutoencoderTiny":
                yield Problem(
                    "compile.targets=[vae_decode]",
                    "AutoencoderTiny has no list of like blocks, so compile_regions leaves its decode eager",
                    "compile=default",
                    self.source,
                )
            elif part.class_name not in _TRIED_BY_REGIONS:
                yield base.Notice(
                    "compile=regions",
                    f"compile_regions hasn't been tried on {part.class_name}; compare its pictures with compile=none",
                )
        yield from self.frozen_blocks(setting)

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        from accelerate.utils import compile_regions
        from torch._dynamo.eval_frame import OptimizedModule

        setting = context.setting
        enter = self.around_calls(setting)
        regions = {}
        for name, part in self.parts(pipeline, context).items():
            called = self.method(setting, name)
            if called in vars(part):
                raise RunError(
                    f"compile.regions: an earlier pass put something around the {called} of {name}, and "
                    "compile_regions would lose what it compiles there\n"
                    "  instead: compile=regional, or leave the other pass out"
                )
            whole = compile_regions(part, fullgraph=self.fullgraph, options=self.inductor_options())
            if isinstance(whole, OptimizedModule):
                raise NoEffectError(
                    f"compile.regions: {type(part).__name__} has no list of like blocks\n"
                    "  instead: compile=default"
                )
            setattr(pipeline, name, whole)
            if called == "forward":
                around_forward(whole, enter)
            else:
                whole.decode = _within(enter, whole.decode)
            regions[name] = sum(isinstance(m, OptimizedModule) for m in whole.modules())
        details = {"components": regions, "freezing": False}
        return CompiledGraphs(self.key, sum(regions.values()), details)

    def script(self, script: Script, setting: base.Setting) -> None:
        self.write_flags(script, setting)
        script.use("accelerate.utils", "compile_regions")
        how = self.written_how(script)
        parts = script.called(self.key, self.components(setting))
        script.then(*(call(f"{part} = compile_regions", part, *how) for part in parts))


_ASKS_WHETHER_PARTS_ARE_TRUE = names("asks_whether_its_parts_are_true")
"""diffusers' classes that ask for the truth of a submodule, which is its length where it is compiled."""

_TRIED_BY_REGIONS = names("tried_with_compile_regions")
"""Classes of which a tiny model computed the same before and after compile_regions, with fullgraph."""


def _within(
    enter: Callable[[], AbstractContextManager[Any]], function: Callable[..., Any]
) -> Callable[..., Any]:
    """The function, every call of it inside a fresh context from `enter`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with enter():
            return function(*args, **kwargs)

    return call
