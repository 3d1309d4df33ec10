"""`compile`: Inductor on the whole denoiser, its repeated blocks, and the VAE's decode.

Compiling is lazy: flags have to hold at the first call. Those that travel with the module go into `options`; freezing
and the cache's tag are read from torch's global configuration and the cache's folder from the environment, so they are
set around each call and nowhere else.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fastdiff.cache_folder import VARIABLE, cache_folder, distrust, unwritable
from fastdiff.errors import MachineProblem, NoEffectError, Problem, RunError, nearest
from fastdiff.models.facts import Component
from fastdiff.models.sources import model_of
from fastdiff.passes.aot import Packages, packages_folder
from fastdiff.passes.base import Conflict, Context, Notice, Option, Pass, Setting, Stage
from fastdiff.passes.precision import upcasts_vae
from fastdiff.passes.wrapping import around_forward
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
            "summary": f"{breaks} breaks"
            + (f", {again} recompile{'s' * (again > 1)}" if again else ""),
        }
        return Effect(self.key, observed.graphs, "graphs", details=details)


@dataclass
class Inductor(Option, Pass):
    """Base of the options.

    targets: what is compiled, of `denoiser` and `vae_decode`.
    freezing: bake the weights into the graph, prepacked; `auto` is true on a CPU that computes in the run's
        precision itself. Costs memory for the packed weights, and they can't change afterwards.
    conv_1x1_as_mm, coordinate_descent_tuning, coordinate_descent_check_all_directions, epilogue_fusion: Inductor's
        flags of these names; null leaves Inductor's own.
    force_fuse_int_mm_with_mul: the same, for int8 products (quant=int8) on CUDA.
    use_mixed_mm: a flag of the documents that today's Inductor ignores, so it isn't passed on.
    cache_dir: a folder for what Inductor and Triton compile, so that a later run finds it; relative paths start
        where the command is typed, null is Inductor's own. What lies there is run: trust it as you trust code. The
        C++ compiler's precompiled headers stay in Inductor's own folder.
    """

    slot: ClassVar[str] = "compile"
    stage: ClassVar[Stage] = Stage.COMPILE
    source: ClassVar[str | None] = _GUIDE
    mode: ClassVar[str] = "default"
    cuda_graphs: ClassVar[bool] = False
    flags: ClassVar[tuple[str, ...]] = (
        "conv_1x1_as_mm",
        "coordinate_descent_tuning",
        "coordinate_descent_check_all_directions",
        "epilogue_fusion",
        "force_fuse_int_mm_with_mul",
    )

    targets: list[str] = field(default_factory=lambda: list(TARGETS))
    freezing: Any = "auto"
    conv_1x1_as_mm: bool | None = None
    coordinate_descent_tuning: bool | None = None
    coordinate_descent_check_all_directions: bool | None = None
    epilogue_fusion: bool | None = None
    force_fuse_int_mm_with_mul: bool | None = None
    use_mixed_mm: bool | None = None
    cache_dir: str | None = None

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
        return f"{self.does}, {'weights frozen' if self.freezes(setting) else 'weights not frozen'}"

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
        if self.needs_cpp_compiler(setting) and not has_cpp_compiler():
            yield MachineProblem(
                choice,
                "needs a C++ compiler (g++ or clang++), and none is on the PATH",
                "compile=none, or install one (Debian: apt-get install g++)",
            )
        if self.use_mixed_mm:
            yield Notice(
                "compile.use_mixed_mm=true",
                "is deprecated and ignored by today's Inductor, so it isn't passed on",
            )
        folder = self.cache_folder()
        reason = folder and unwritable(folder)
        if reason:
            yield Problem(
                f"compile.cache_dir={self.cache_dir}",
                reason,
                "compile.cache_dir=DIR, a folder of your own, or null for Inductor's",
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

    def needs_cpp_compiler(self, setting: Setting) -> bool:
        return setting.device == "cpu"

    def cache_folder(self) -> Path | None:
        return Path(self.cache_dir).expanduser().absolute() if self.cache_dir else None

    def inductor_options(self) -> dict[str, Any]:
        """The mode's own options and the flags that were set, as `torch.compile(options=...)` takes them."""
        import torch

        options = dict(torch._inductor.list_mode_options(self.mode))
        given = {flag: getattr(self, flag) for flag in self.flags}
        return options | {flag: value for flag, value in given.items() if value is not None}

    def around_calls(self, setting: Setting) -> Callable[[], AbstractContextManager[Any]]:
        """What has to hold around each call of something that is compiled when it is called."""
        import torch
        import torch._dynamo.config
        import torch._inductor.config
        import torch.compiler.config

        freezing = self.freezes(setting)
        config: Any = torch.compiler.config
        attention = setting.chosen("attention")
        folder = self.cache_folder()
        # Triton keeps its own under Inductor's; both ask for their variable whenever they compile.
        variables = {
            "TORCHINDUCTOR_CACHE_DIR": str(folder),
            "TRITON_CACHE_DIR": str(folder and folder / "triton"),
        }

        def enter() -> AbstractContextManager[Any]:
            stack = ExitStack()
            if folder:
                stack.enter_context(_environment(variables))
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

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"torch.compile, mode {self.mode}"

    def explain(self, setting: Setting) -> str:
        frozen = "weights frozen" if self.freezes(setting) else "weights not frozen"
        whole = "no graph breaks" if self.fullgraph else "graph breaks allowed"
        return f"{self.does}, {whole}, {frozen}"

    def compiled(self, function: Callable[..., Any], setting: Setting) -> Callable[..., Any]:
        """The function compiled, with the flags around its calls and its CUDA graphs' outputs copied."""
        import torch

        inner = torch.compile(
            function,
            fullgraph=self.fullgraph,
            dynamic=self.dynamic,
            options=self.inductor_options(),
        )
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


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within it, these environment variables are set."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
        regions = 0
        for part in context.parts(pipeline, self.components(context.setting)).values():
            part.compile_repeated_blocks(fullgraph=self.fullgraph, options=self.inductor_options())
            regions += sum(m._compiled_call_impl is not None for m in part.modules())
            around_forward(part, self.around_calls(context.setting))
        return CompiledGraphs(self.key, regions, {"freezing": False})


@dataclass
class Dynamic(Compile):
    """One graph for every picture size and batch, its sizes variables: slower than graphs of their own.

    Without `use_duck_shape` off, a size that equals another one at the first call would be taken for the same variable:
    a square picture first, and the next one that isn't compiles again. A dimension of 1 (a VAE's batch of one picture)
    is a constant all the same.
    """

    key: ClassVar[str] = "compile.dynamic"
    dynamic: ClassVar[bool | None] = True
    source: ClassVar[str | None] = (
        "https://huggingface.co/docs/diffusers/optimization/fp16#dynamic-shape-compilation"
    )

    targets: list[str] = field(default_factory=lambda: ["denoiser"])

    @property
    def does(self) -> str:  # type: ignore[override]
        return "torch.compile, sizes as variables"

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        yield from super().check(setting)
        if "vae_decode" in self.targets:
            yield Notice(
                setting.chosen("compile"),
                "the VAE decodes a batch of one picture by a graph of its own, and on a CPU small and large pictures "
                "take different convolutions: expect it to be compiled up to three times",
            )

    def around_calls(self, setting: Setting) -> Callable[[], AbstractContextManager[Any]]:
        import torch.fx.experimental._config as shapes

        config: Any = shapes
        inner = super().around_calls(setting)

        def enter() -> AbstractContextManager[Any]:
            stack = ExitStack()
            stack.enter_context(inner())
            stack.enter_context(config.patch(use_duck_shape=False))
            return stack

        return enter


@dataclass
class Regions(Compile):
    """accelerate's `compile_regions`: every block of a list of like blocks, and each part beside them, on its own.

    It returns another module around the same submodules, which takes the first one's place in the pipeline. What
    earlier passes did to submodules is therefore kept. Can't be frozen, as compile=regional.

    Torch's own layers beside the blocks (a first convolution, a last norm) share one piece of code to Dynamo, so all but
    the first of them are counted as recompiles, and a model with more than nine different ones is past Dynamo's limit.
    """

    key: ClassVar[str] = "compile.regions"
    source: ClassVar[str | None] = (
        "https://huggingface.co/docs/diffusers/optimization/fp16#regional-compilation"
    )

    targets: list[str] = field(default_factory=lambda: ["denoiser"])
    freezing: Any = False

    @property
    def does(self) -> str:  # type: ignore[override]
        return "accelerate's compile_regions, repeated blocks and the parts beside them"

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        yield from super().check(setting)
        for target, part in _parts(setting).items():
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
                yield Notice(
                    "compile=regions",
                    f"compile_regions hasn't been tried on {part.class_name}; compare its pictures with compile=none",
                )
        if self.freezes(setting):
            yield Problem(
                "compile.freezing=true",
                "can't be combined with compile=regions: frozen weights make every block its own graph",
                "compile.freezing=false, or compile=default",
            )

    def apply(self, pipeline: Any, context: Context) -> Pending:
        from accelerate.utils import compile_regions
        from torch._dynamo.eval_frame import OptimizedModule

        setting = context.setting
        enter = self.around_calls(setting)
        regions = {}
        for name, part in context.parts(pipeline, self.components(setting)).items():
            denoises = setting.denoiser is not None and name == setting.denoiser.name
            called = "forward" if denoises else "decode"
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
            if denoises:
                around_forward(whole, enter)
            else:
                whole.decode = _within(enter, whole.decode)
            regions[name] = sum(isinstance(m, OptimizedModule) for m in whole.modules())
        details = {"components": regions, "freezing": False}
        return CompiledGraphs(self.key, sum(regions.values()), details)


_ASKS_WHETHER_PARTS_ARE_TRUE = (
    "UNet2DConditionModel",
    "UNet3DConditionModel",
    "UNetMotionModel",
)
"""diffusers' classes that ask for the truth of a submodule, which is its length where it is compiled."""

_TRIED_BY_REGIONS = frozenset(
    {
        "AuraFlowTransformer2DModel",
        "AutoencoderKL",
        "AutoencoderKLFlux2",
        "ChromaTransformer2DModel",
        "CogVideoXTransformer3DModel",
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "HunyuanDiT2DModel",
        "PixArtTransformer2DModel",
        "QwenImageTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "WanTransformer3DModel",
    }
)
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


@dataclass
class Aot(Inductor):
    """AOTInductor: a package of native code for each input size, kept in fastdiff's cache folder for later runs.

    The weights are constants of the package, frozen or not. There are no CUDA graphs.
    """

    key: ClassVar[str] = "compile.aot"
    does: ClassVar[str] = "AOTInductor packages, built at the first call or taken from the cache"
    source: ClassVar[str | None] = (
        "https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html"
    )
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict(
            "attention=xformers",
            "can't be combined with attention=xformers: its kernels can't be exported",
            "attention=sdpa, or compile=default",
        ),
    )

    def needs_cpp_compiler(self, setting: Setting) -> bool:
        return True

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        yield from super().check(setting)
        for folder in (cache_folder(), packages_folder()):
            doubt = distrust(folder)
            reason = f"{doubt}, and code would be loaded from there" if doubt else None
            reason = reason or unwritable(folder)
            if reason:
                way = f"chmod go-w {folder}, or " if doubt == "can be written by others" else ""
                yield MachineProblem(
                    "compile=aot",
                    f"keeps its packages in {folder}, which {reason}",
                    f"{way}{VARIABLE}=DIR, a folder of your own",
                )
                break
        if setting.device == "cuda":
            yield Notice("compile=aot", "a package has no CUDA graphs; compile=max_autotune does")

    def apply(self, pipeline: Any, context: Context) -> Pending:
        setting = context.setting
        options = self.inductor_options() | {"freezing": self.freezes(setting)}
        around = self.around_calls(setting)
        packages = Packages(self.key, _made_for(setting, options), options, around)
        for name, part in context.parts(pipeline, self.components(setting)).items():
            denoises = setting.denoiser is not None and name == setting.denoiser.name
            called = "forward" if denoises else "decode"
            target = "denoiser" if denoises else "vae_decode"
            setattr(part, called, packages.serving(target, part, getattr(part, called)))
        return packages


def _made_for(setting: Setting, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a package depends on beside its weights and inputs: choices, model, machine, versions; plain data.

    The number of threads is among it, because Inductor writes it into the code.
    """
    import torch

    from fastdiff import __version__

    machine, run = setting.environment, setting.run
    without = (
        "model",
        "bench",
        "quality",
        "generation",
        "experiment",
        "allow_no_effect",
        "compile",
    )
    return {
        "choices": {name: keys for name, keys in run.to_dict().items() if name not in without},
        "options": dict(options),
        "model": model_of(run).identity(),
        "machine": {
            "device": setting.device,
            "gpus": [[gpu.name, list(gpu.capability)] for gpu in machine.gpus],
            "cpu": machine.cpu,
            "cpu_flags": sorted(machine.cpu_flags),
            "os": machine.os,
            "threads": torch.get_num_threads(),
        },
        "versions": {
            **machine.versions,
            "python": machine.python,
            "cuda": machine.torch_cuda,
            "fastdiff": __version__,
        },
    }


OPTIONS: dict[str, type[Option]] = {
    "none": NoCompile,
    "default": Default,
    "reduce_overhead": ReduceOverhead,
    "max_autotune": MaxAutotune,
    "max_autotune_no_cudagraphs": MaxAutotuneNoCudagraphs,
    "regional": Regional,
    "dynamic": Dynamic,
    "regions": Regions,
    "aot": Aot,
}
