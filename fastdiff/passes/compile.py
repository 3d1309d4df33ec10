"""`compile`: torch.compile with Inductor, on the whole denoiser, its repeated blocks, and the VAE's decode.

Compiling is lazy: flags have to hold at the first call. Those that travel with the module go into `options`; freezing
and the cache's tag are read from torch's global configuration, so they are set around each call and nowhere else.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastdiff.errors import Problem, nearest
from fastdiff.models.facts import Component
from fastdiff.passes.base import Context, Notice, Option, Pass, Setting, Stage
from fastdiff.passes.precision import upcasts_vae
from fastdiff.result import Effect, Observed, Pending

_GUIDE = "https://huggingface.co/docs/diffusers/optimization/fp16#torchcompile"
TARGETS = ("denoiser", "vae_decode")


def has_cpp_compiler() -> bool:
    """Whether a C++ compiler is on the PATH, as Inductor needs on a CPU; no program is started to find out."""
    asked = shlex.split(os.environ.get("CXX", ""))[:1]
    known = ("g++", "clang++", "c++", *(("cl",) if os.name == "nt" else ()))
    return any(shutil.which(program) for program in (*asked, *known))


@dataclass
class NoCompile(Option):
    """Eager PyTorch."""

    slot: ClassVar[str] = "compile"


@dataclass(frozen=True)
class CompiledGraphs(Pending):
    """Tells how many graphs the first call compiled."""

    key: str
    regions: int
    details: dict[str, Any]

    def effect(self, observed: Observed) -> Effect:
        breaks, again = observed.graph_breaks, observed.recompiles
        details = {
            **self.details,
            "regions": self.regions,
            "graph_breaks": breaks,
            "recompiles": again,
            "reasons": list(observed.break_reasons),
            "cache": observed.cache,
            "summary": f"{breaks} breaks" + (f", {again} recompiles" if again else ""),
        }
        return Effect(self.key, observed.graphs, "graphs", details=details)


@dataclass
class Compile(Option, Pass):
    """Base of the options.

    targets: what is compiled, of `denoiser` and `vae_decode`.
    fullgraph: a graph break is an error.
    freezing: bake the weights into the graph, prepacked; `auto` is true on a CPU that computes in the run's
        precision itself. Costs memory for the packed weights, and they can't change afterwards.
    cpp_wrapper: Inductor's generated call sequence in C++ instead of Python.
    conv_1x1_as_mm, coordinate_descent_tuning, coordinate_descent_check_all_directions, epilogue_fusion: Inductor's
        flags of these names; null leaves Inductor's own.
    force_fuse_int_mm_with_mul: the same, for int8 products (quant=int8) on CUDA.
    """

    slot: ClassVar[str] = "compile"
    stage: ClassVar[Stage] = Stage.COMPILE
    source: ClassVar[str | None] = _GUIDE
    mode: ClassVar[str] = "default"
    cuda_graphs: ClassVar[bool] = False

    targets: list[str] = field(default_factory=lambda: list(TARGETS))
    fullgraph: bool = True
    freezing: Any = "auto"
    cpp_wrapper: bool = False
    conv_1x1_as_mm: bool | None = None
    coordinate_descent_tuning: bool | None = None
    coordinate_descent_check_all_directions: bool | None = None
    epilogue_fusion: bool | None = None
    force_fuse_int_mm_with_mul: bool | None = None

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"torch.compile, mode {self.mode}"

    def components(self, setting: Setting) -> tuple[str, ...]:
        return tuple(
            part.name
            for name, part in _parts(setting).items()
            if part
            and name in self.targets
            and not (name == "vae_decode" and self._loses_vae(setting))
        )

    def _loses_vae(self, setting: Setting) -> bool:
        """Whether the VAE's weights move in every call although CUDA graphs or frozen weights need them to stay."""
        graphs = self.cuda_graphs and setting.device == "cuda"
        return (graphs or self.freezes(setting)) and upcasts_vae(setting)

    def explain(self, setting: Setting) -> str:
        frozen = "weights frozen" if self.freezes(setting) else "weights not frozen"
        whole = "no graph breaks" if self.fullgraph else "graph breaks allowed"
        return f"{self.does}, {whole}, {frozen}"

    def freezes(self, setting: Setting) -> bool:
        """Whether weights are frozen in this run.

        `auto` freezes on a CPU, but not in a precision that the processor has no arithmetic for: the prepacked
        bf16 convolutions of such a processor took 18 times as long as the unfrozen ones (one call each, 4.5 s to 0.24 s).
        """
        if self.freezing != "auto":
            return bool(self.freezing)
        precision = setting.run.choices["precision"]
        return setting.device == "cpu" and setting.environment.processor_computes_in(precision)

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        choice = setting.chosen("compile")
        for target in self.targets:
            if target not in TARGETS:
                near = nearest(target, TARGETS)
                yield Problem(
                    f"compile.targets=[{target}]",
                    f"there is no such target; there are {', '.join(TARGETS)}",
                    f"compile.targets=[{near or TARGETS[0]}]",
                )
        if not self.targets:
            yield Problem("compile.targets=[]", "nothing would be compiled", "compile=none")
        for target, part in _parts(setting).items():
            if target in self.targets and setting.facts and not part:
                rest = [other for other in self.targets if other != target]
                name = "VAE" if target == "vae_decode" else "denoiser that is known"
                yield Problem(
                    f"compile.targets=[{','.join(self.targets)}]",
                    f"{setting.facts.pipeline} has no {name}",
                    f"compile.targets=[{','.join(rest)}]" if rest else "compile=none",
                )
        if self.freezing not in ("auto", True, False):
            yield Problem(
                f"compile.freezing={self.freezing}",
                "is not true, false or auto",
                "compile.freezing=auto",
            )
        elif "vae_decode" in self.targets and self._loses_vae(setting):
            moves = "every call converts the VAE to fp32 (force_upcast)"
            if self.targets == ["vae_decode"]:
                yield Problem(
                    "compile.targets=[vae_decode]",
                    f"nothing would be compiled: {moves}, "
                    "which CUDA graphs and frozen weights don't survive",
                    "precision=bf16, or compile=default with compile.freezing=false",
                )
            else:
                yield Notice(
                    choice,
                    f"leaves the VAE's decode eager: {moves}, which CUDA graphs and frozen weights "
                    "don't survive; precision=bf16 compiles it",
                )
        if setting.device == "cpu" and not has_cpp_compiler():
            yield Problem(
                choice,
                "needs a C++ compiler (g++ or clang++), and none is on the PATH",
                "compile=none, or install one (Debian: apt-get install g++)",
            )
        if self.force_fuse_int_mm_with_mul and setting.device != "cuda":
            yield Notice(
                "compile.force_fuse_int_mm_with_mul=true",
                f"has no effect here: CUDA only; device={setting.device}",
            )
        if setting.device == "mps":
            yield Notice(choice, "Inductor's support for mps is young; compare with compile=none")
        if self.cuda_graphs and setting.device == "cpu":
            yield Notice(choice, "CUDA graphs don't exist on a CPU; the rest of the mode holds")

    def inductor_options(self) -> dict[str, Any]:
        """The mode's own options and the flags that were set, as `torch.compile(options=...)` takes them."""
        import torch

        flags = (
            "cpp_wrapper",
            "conv_1x1_as_mm",
            "coordinate_descent_tuning",
            "coordinate_descent_check_all_directions",
            "epilogue_fusion",
            "force_fuse_int_mm_with_mul",
        )
        options = dict(torch._inductor.list_mode_options(self.mode))
        options |= {flag: value for flag in flags if (value := getattr(self, flag)) is not None}
        return options

    def around_calls(self, setting: Setting) -> Callable[[], AbstractContextManager[Any]]:
        """What has to hold around each call of something compiled."""
        import torch
        import torch._dynamo.config
        import torch._inductor.config
        import torch.compiler.config

        freezing = self.freezes(setting)
        config: Any = torch.compiler.config
        attention = setting.chosen("attention")

        def enter() -> AbstractContextManager[Any]:
            stack = ExitStack()
            if freezing:
                stack.enter_context(torch._inductor.config.patch(freezing=True))
            # A forced SDPA kernel is compiled in, but the caches' own key knows nothing of it.
            tags = (config.cache_key_tag, attention)
            tag = ",".join(filter(None, tags))
            stack.enter_context(config.patch(cache_key_tag=tag))
            # Past its limit Dynamo would go on in eager mode with nothing but a warning.
            stack.enter_context(torch._dynamo.config.patch(fail_on_recompile_limit_hit=True))
            return stack

        return enter

    def compiled(self, function: Callable[..., Any], setting: Setting) -> Callable[..., Any]:
        """The function compiled, with the flags around its calls and its CUDA graphs' outputs copied."""
        import torch

        inner = torch.compile(function, fullgraph=self.fullgraph, options=self.inductor_options())
        enter = self.around_calls(setting)
        graphs = self.cuda_graphs and setting.device == "cuda"

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not graphs:
                with enter():
                    return inner(*args, **kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            with enter():
                return _copied(inner(*args, **kwargs))

        return call

    def apply(self, pipeline: Any, context: Context) -> Pending:
        setting, names = context.setting, self.components(context.setting)
        for name, part in context.parts(pipeline, names).items():
            if setting.denoiser and name == setting.denoiser.name:
                part.forward = self.compiled(part.forward, setting)
            else:
                part.decode = self.compiled(part.decode, setting)
        details = {"components": list(names), "freezing": self.freezes(setting)}
        return CompiledGraphs(self.key, len(names), details)


def _parts(setting: Setting) -> dict[str, Component | None]:
    """The component behind each target."""
    return {"denoiser": setting.denoiser, "vae_decode": setting.vae}


def _copied(output: Any) -> Any:
    """Tensors of an output, copied: the next replay of a CUDA graph overwrites its outputs in place."""
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, output)


@dataclass
class Default(Compile):
    key: ClassVar[str] = "compile.default"


@dataclass
class ReduceOverhead(Compile):
    key: ClassVar[str] = "compile.reduce_overhead"
    mode: ClassVar[str] = "reduce-overhead"
    cuda_graphs: ClassVar[bool] = True


@dataclass
class MaxAutotune(Compile):
    key: ClassVar[str] = "compile.max_autotune"
    mode: ClassVar[str] = "max-autotune"
    cuda_graphs: ClassVar[bool] = True


@dataclass
class MaxAutotuneNoCudagraphs(Compile):
    key: ClassVar[str] = "compile.max_autotune_no_cudagraphs"
    mode: ClassVar[str] = "max-autotune-no-cudagraphs"


@dataclass
class Regional(Compile):
    """Only the blocks that the model repeats, each graph used for all of them. Can't be frozen."""

    key: ClassVar[str] = "compile.regional"

    targets: list[str] = field(default_factory=lambda: ["denoiser"])
    freezing: Any = False

    @property
    def does(self) -> str:  # type: ignore[override]
        return "torch.compile of the repeated blocks"

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        yield from super().check(setting)
        part = setting.denoiser
        if part and not (part.facts and part.facts.repeated_blocks):
            yield Problem(
                "compile=regional",
                f"{part.class_name} declares no repeated blocks",
                "compile=default",
                _GUIDE,
            )
        if "vae_decode" in self.targets:
            yield Problem(
                "compile.targets=[vae_decode]",
                "a VAE has no repeated blocks to compile by region",
                "compile.targets=[denoiser], or compile=default",
            )
        if self.freezes(setting):
            yield Problem(
                "compile.freezing=true",
                "can't be combined with compile=regional: frozen weights make every block its own graph",
                "compile.freezing=false, or compile=default",
            )

    def apply(self, pipeline: Any, context: Context) -> Pending:
        from fastdiff.passes.wrapping import around_forward

        regions = 0
        for part in context.parts(pipeline, self.components(context.setting)).values():
            part.compile_repeated_blocks(fullgraph=self.fullgraph, options=self.inductor_options())
            regions += sum(m._compiled_call_impl is not None for m in part.modules())
            around_forward(part, self.around_calls(context.setting))
        return CompiledGraphs(self.key, regions, {"freezing": False})


OPTIONS: dict[str, type[Option]] = {
    "none": NoCompile,
    "default": Default,
    "reduce_overhead": ReduceOverhead,
    "max_autotune": MaxAutotune,
    "max_autotune_no_cudagraphs": MaxAutotuneNoCudagraphs,
    "regional": Regional,
}
