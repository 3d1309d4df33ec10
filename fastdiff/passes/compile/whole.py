"""torch.compile on the whole denoiser and the VAE's decode, in each of its modes; for one size or for all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any, ClassVar

from fastdiff.passes import base
from fastdiff.passes.compile.inductor import Inductor
from fastdiff.passes.effects import Effect, Observed, Pending
from fastdiff.script import Script, call, literal


@dataclass(frozen=True)
class CompiledGraphs(Pending):
    """Tells how many graphs the first call compiled.

    cuda_graphs: whether they are to be replayed as CUDA graphs, which Inductor leaves out where it can't;
    nothing_else: whether that is all that the mode changes, beside its default.
    """

    key: str
    regions: int
    details: dict[str, Any]
    cuda_graphs: bool = False
    nothing_else: bool = False

    def effect(self, observed: Observed) -> Effect:
        breaks, again = observed.graph_breaks, observed.recompiles
        replayed, skipped = observed.cuda_graphs, observed.cuda_graphs_skipped
        none = self.cuda_graphs and replayed == 0 and observed.graphs > 0
        words = f"{breaks} breaks" + (f", {again} recompile{'s' * (again > 1)}" if again else "")
        if none:
            words += ", no CUDA graphs"
        elif self.cuda_graphs and skipped:
            words += f", CUDA graphs left out {skipped} time{'s' * (skipped > 1)}"
        details = {
            **self.details,
            "regions": self.regions,
            "graph_breaks": breaks,
            "recompiles": again,
            "reasons": list(observed.break_reasons),
            "cache": observed.cache,
            "summary": words,
        }
        if self.cuda_graphs:
            reasons = list(observed.cuda_graphs_reasons)
            details |= {"cuda_graphs": replayed, "cuda_graphs_skipped": skipped}
            details |= {"cuda_graphs_reasons": reasons}
        if none and self.nothing_else:
            said = f" ({observed.cuda_graphs_reasons[0]})" if observed.cuda_graphs_reasons else ""
            why = f"Inductor left all of them out{said}, and the mode has nothing else"
            details |= {"why": why, "instead": "compile=default"}
            return Effect(self.key, 0, "CUDA graphs", details=details)
        return Effect(self.key, observed.graphs, "graphs", details=details)


@dataclass
class Compile(Inductor):
    """Base of the options that torch.compile carries out.

    fullgraph: a graph break is an error.
    cpp_wrapper: Inductor's generated call sequence in C++ instead of Python.
    """

    flags: ClassVar[tuple[str, ...]] = ("cpp_wrapper", *Inductor.flags)
    dynamic: ClassVar[bool | None] = None

    fullgraph: bool = True
    cpp_wrapper: bool = False

    def needs_toolkit(self) -> tuple[str, str] | None:
        flag = "compile.cpp_wrapper"
        return (f"{flag}=true", f"{flag}=false") if self.cpp_wrapper else None

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"torch.compile, mode {self.mode}"

    def explain(self, setting: base.Setting) -> str:
        frozen = "weights frozen" if self.freezes(setting) else "weights not frozen"
        whole = "no graph breaks" if self.fullgraph else "graph breaks allowed"
        return f"{self.does}, {whole}, {frozen}"

    def compiled(self, function: Callable[..., Any], setting: base.Setting) -> Callable[..., Any]:
        """The function compiled, with the flags around its calls and its CUDA graphs' outputs copied."""
        import torch

        inner = torch.compile(
            function,
            fullgraph=self.fullgraph,
            dynamic=self.dynamic,
            options=self.inductor_options(),
        )
        enter = self.around_calls(setting)
        graphs = self.replays(setting)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not graphs:
                with enter():
                    return inner(*args, **kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            with enter():
                return _copied(inner(*args, **kwargs))

        return call

    def replays(self, setting: base.Setting) -> bool:
        """Whether graphs are to be replayed as CUDA graphs in this run."""
        return self.cuda_graphs and setting.device == "cuda"

    def settles(self, setting: base.Setting) -> base.Settling:
        if not self.replays(setting):
            return super().settles(setting)
        return base.Settling(2, "CUDA graphs are recorded in the second call")

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        setting, names = context.setting, self.components(context.setting)
        for name, part in self.parts(pipeline, context).items():
            method = self.method(setting, name)
            setattr(part, method, self.compiled(getattr(part, method), setting))
        details = {"components": list(names), "freezing": self.freezes(setting)}
        return CompiledGraphs(
            self.key,
            len(names),
            details,
            cuda_graphs=self.replays(setting),
            nothing_else=self.mode == "reduce-overhead",
        )

    def script(self, script: Script, setting: base.Setting) -> None:
        self.write_flags(script, setting)
        how, compile_ = self.written_how(script), "torch.compile"
        if self.replays(setting):
            script.use("functools")
            script.use("torch.utils._pytree", "tree_map_only")
            compiled = call("compiled = torch.compile", "function", *how, width=96)
            script.define(_WITH_CUDA_GRAPHS.replace("COMPILED", indent(compiled, "    ")))
            compile_, how = "with_cuda_graphs", []
        methods = self.written_methods(script, setting)
        script.then(*(call(f"{name} = {compile_}", name, *how) for _, name in methods))

    def written_how(self, script: Script) -> list[str]:
        """The arguments of torch.compile, beside what is compiled."""
        how = [f"{key}=True" for key in ("fullgraph", "dynamic") if getattr(self, key)]
        options = [f"options={name}" for name in self.written_options(script)]
        mode = [] if self.mode == "default" else [f"mode={literal(self.mode)}"]
        return [*how, *(options or mode)]


_WITH_CUDA_GRAPHS = '''\
def with_cuda_graphs(function):
    """The function compiled; its outputs are copied, because the next replay overwrites them."""
COMPILED

    @functools.wraps(function)
    def replayed(*args, **kwargs):
        torch.compiler.cudagraph_mark_step_begin()
        return tree_map_only(torch.Tensor, torch.Tensor.clone, compiled(*args, **kwargs))

    return replayed'''


def _copied(output: Any) -> Any:
    """Tensors of an output, copied: the next replay of a CUDA graph overwrites its outputs in place."""
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, output)


@dataclass
class Default(Compile):
    key = "compile.default"


@dataclass
class ReduceOverhead(Compile):
    key = "compile.reduce_overhead"
    mode: ClassVar[str] = "reduce-overhead"
    cuda_graphs: ClassVar[bool] = True


@dataclass
class MaxAutotune(Compile):
    key = "compile.max_autotune"
    mode: ClassVar[str] = "max-autotune"
    cuda_graphs: ClassVar[bool] = True


@dataclass
class MaxAutotuneNoCudagraphs(Compile):
    key = "compile.max_autotune_no_cudagraphs"
    mode: ClassVar[str] = "max-autotune-no-cudagraphs"


@dataclass
class Dynamic(Compile):
    """One graph for every picture size and batch, its sizes variables: slower than graphs of their own.

    Without `use_duck_shape` off, a size that equals another one at the first call would be taken for the same variable:
    a square picture first, and the next one that isn't compiles again. A dimension of 1 (a VAE's batch of one picture)
    is a constant all the same.
    """

    key = "compile.dynamic"
    dynamic: ClassVar[bool | None] = True
    source = "https://huggingface.co/docs/diffusers/optimization/fp16#dynamic-shape-compilation"

    targets: list[str] = field(default_factory=lambda: ["denoiser"])

    @property
    def does(self) -> str:  # type: ignore[override]
        return "torch.compile, sizes as variables"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        if "vae_decode" in self.targets:
            yield base.Notice(
                setting.chosen("compile"),
                "the VAE decodes a batch of one picture by a graph of its own, and on a CPU small and large pictures "
                "take different convolutions: expect it to be compiled up to three times",
            )

    def around_calls(self, setting: base.Setting) -> Callable[[], AbstractContextManager[Any]]:
        import torch.fx.experimental._config as shapes

        config: Any = shapes
        inner = super().around_calls(setting)

        def enter() -> AbstractContextManager[Any]:
            stack = ExitStack()
            stack.enter_context(inner())
            stack.enter_context(config.patch(use_duck_shape=False))
            return stack

        return enter

    def write_flags(self, script: Script, setting: base.Setting) -> None:
        super().write_flags(script, setting)
        script.use("torch.fx.experimental._config")
        script.flag("torch.fx.experimental._config.use_duck_shape = False")
