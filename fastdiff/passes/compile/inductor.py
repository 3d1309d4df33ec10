"""What every option of `compile` shares: its keys, what freezing means, and the flags around each call.

Compiling is lazy: flags have to hold at the first call. Those that travel with the module go into `options`; freezing
and the cache's tag are read from torch's global configuration and the cache's folder from the environment, so they are
set around each call and nowhere else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from fastdiff.config import CODE_PLACE
from fastdiff.errors import MachineProblem, Problem, RunError, nearest
from fastdiff.machine.cache_folder import unwritable
from fastdiff.machine.toolchain import requirement_of_torch
from fastdiff.models.facts import Component
from fastdiff.passes import base
from fastdiff.passes.precision import upcasts_vae
from fastdiff.script import Script, bracketed, literal

GUIDE = "https://huggingface.co/docs/diffusers/optimization/fp16#torchcompile"
TARGETS = ("denoiser", "vae_decode")
_INSIDE = ("fxgraph", "aotautograd", "triton", "fastdiff")
"""Folders in a cache's folder: Inductor's two indexes, Triton's own, and how long compiling took."""

_TRITONS_LEAST = (7, 0)
_TRITONS_GPUS = "https://github.com/triton-lang/triton#compatibility"
_TOOLKIT = "https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html"
_CPP, _INSTALL_CPP = (
    ("clang++", " (xcode-select --install)")
    if sys.platform == "darwin"
    else ("g++", " (Debian: apt-get install g++)")
)
_TOOLS = {
    "c": (
        "needs a C compiler, with which Triton builds its launcher: the one program that CC names, else gcc or clang; it "
        "is not on the PATH",
        "install one (Debian: apt-get install gcc) and unset CC",
    ),
    "c++": (
        f"needs a C++ compiler: the one program that CXX names, else {_CPP}; it is not on the PATH",
        f"install {_CPP}{_INSTALL_CPP} and unset CXX, or CXX=NAME of another one",
    ),
    "Python.h": (
        "needs Python's header files, and there is no Python.h",
        "install them (Debian: apt-get install python{python}-dev)",
    ),
    "cuda.h": (
        "needs a CUDA toolkit, against whose headers C++ is compiled: there is no include/cuda.h with "
        "cuda_runtime.h where CUDA_HOME says, beside nvcc, or in /usr/local/cuda",
        "install CUDA's toolkit {cuda} and set CUDA_HOME to its folder",
    ),
}
"""What compiling may need: why there is a problem without it, and how to get it.

python, cuda: the versions that it is for, two numbers of each.
"""


@dataclass
class Inductor(base.Option, base.Pass):
    """Base of the options.

    targets: what is compiled, of `denoiser` and `vae_decode`.
    freezing: bake the weights into the graph, prepacked; `auto` is true on a CPU that computes in the run's
        precision itself. Costs memory for the packed weights, and they can't change afterwards.
    conv_1x1_as_mm, coordinate_descent_tuning, coordinate_descent_check_all_directions, epilogue_fusion: Inductor's
        flags of these names; null leaves Inductor's own.
    cache_dir: a folder for what Inductor and Triton compile, so that a later run finds it; relative paths start
        where the command is typed, null is Inductor's own. What lies there is run: trust it as you trust code. The
        C++ compiler's precompiled headers stay in Inductor's own folder.
    """

    slot = "compile"
    stage = base.Stage.COMPILE
    fidelity = base.Fidelity.EXACT
    bakes_arithmetic = True
    compiles = True
    source = GUIDE
    mode: ClassVar[str] = "default"
    cuda_graphs: ClassVar[bool] = False
    flags: ClassVar[tuple[str, ...]] = (
        "conv_1x1_as_mm",
        "coordinate_descent_tuning",
        "coordinate_descent_check_all_directions",
        "epilogue_fusion",
    )

    targets: list[str] = field(default_factory=lambda: list(TARGETS))
    freezing: Any = "auto"
    conv_1x1_as_mm: bool | None = None
    coordinate_descent_tuning: bool | None = None
    coordinate_descent_check_all_directions: bool | None = None
    epilogue_fusion: bool | None = None
    cache_dir: str | None = field(default=None, metadata=CODE_PLACE)

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return tuple(
            part.name
            for name, part in parts_of(setting).items()
            if part
            and name in self.targets
            and not (name == "vae_decode" and self._loses_vae(setting))
        )

    def _loses_vae(self, setting: base.Setting) -> bool:
        """Whether the VAE's weights move in every call although CUDA graphs or frozen weights need them to stay."""
        graphs = self.cuda_graphs and setting.device == "cuda"
        return (graphs or self.freezes(setting)) and upcasts_vae(setting)

    def explain(self, setting: base.Setting) -> str:
        return f"{self.does}, {'weights frozen' if self.freezes(setting) else 'weights not frozen'}"

    def freezes(self, setting: base.Setting) -> bool:
        """Whether weights are frozen in this run.

        `auto` freezes on a CPU, but not in a precision that the processor has no arithmetic for: the prepacked
        bf16 convolutions of such a processor took 18 times as long as the unfrozen ones (one call each, 4.5 s to 0.24 s).
        """
        if self.freezing != "auto":
            return bool(self.freezing)
        precision = setting.run.choices["precision"]
        return setting.device == "cpu" and setting.environment.processor_computes_in(precision)

    def frozen(self, setting: base.Setting) -> tuple[str, ...]:
        return self.components(setting) if self.freezes(setting) else ()

    def check(self, setting: base.Setting) -> base.Findings:
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
        for target, part in parts_of(setting).items():
            if target in self.targets and setting.facts and not part:
                rest = [other for other in self.targets if other != target]
                name = "VAE" if target == "vae_decode" else "denoiser that is known"
                instead = f"compile.targets=[{','.join(rest)}]" if rest else "compile=none"
                yield self.wrong("targets", f"{setting.facts.pipeline} has no {name}", instead)
        if self.freezing not in ("auto", True, False):
            given, neither = f"compile.freezing={self.freezing}", "is not true, false or auto"
            yield Problem(given, neither, "compile.freezing=auto")
        elif "vae_decode" in self.targets and self._loses_vae(setting):
            moves = "every call converts the VAE to fp32 (force_upcast)"
            if self.targets == ["vae_decode"]:
                # On another device there are no graphs, or auto freezes nothing.
                kind = Problem if self.freezing is True else MachineProblem
                yield kind(
                    "compile.targets=[vae_decode]",
                    f"nothing would be compiled: {moves}, "
                    "which CUDA graphs and frozen weights don't survive",
                    "precision=bf16, or compile=default with compile.freezing=false",
                )
            else:
                yield base.Notice(
                    choice,
                    f"leaves the VAE's decode eager: {moves}, which CUDA graphs and frozen weights "
                    "don't survive; precision=bf16 compiles it",
                )
        yield from self._lacking(setting)
        if reason := self._cache_unusable():
            instead = "compile.cache_dir=DIR, a folder of your own, or null for Inductor's"
            yield self.wrong("cache_dir", reason, instead, kind=MachineProblem)
        if setting.device == "mps":
            text = "Inductor's support for mps is young; compare with compile=none"
            yield base.Notice(choice, text)
        if self.cuda_graphs and setting.device == "cpu":
            text = "CUDA graphs don't exist on a CPU; the rest of the mode holds"
            yield base.Notice(choice, text)

    def frozen_blocks(self, setting: base.Setting) -> Iterator[Problem]:
        """That blocks which share one graph can't be frozen. What `auto` means, the processor decides."""
        if self.freezes(setting):
            kind = MachineProblem if self.freezing == "auto" else Problem
            reason = f"can't be combined with {setting.chosen('compile')}: frozen weights make every block its own graph"
            yield self.wrong(
                "freezing", reason, "compile.freezing=false, or compile=default", kind=kind
            )

    def method(self, setting: base.Setting, name: str) -> str:
        """The method of a component that is compiled."""
        return "forward" if name == setting.denoiser_name else "decode"

    def needs_toolkit(self) -> tuple[str, str] | None:
        """The choice for which C++ is compiled against CUDA's own headers, and one without; None if nothing is."""
        return None

    def tools(self, setting: base.Setting) -> tuple[str, ...]:
        """What of a machine's tools Inductor, or Triton under it, needs to compile for the run's device."""
        return {"cpu": ("c++", "Python.h"), "cuda": ("c", "Python.h")}.get(setting.device, ())

    def _lacking(self, setting: base.Setting) -> Iterator[MachineProblem]:
        """What compiling needs and this machine lacks."""
        choice, environment = setting.chosen("compile"), setting.environment
        if setting.device == "cuda" and not environment.has_cuda:
            return  # which device=cuda is refused for; what its machine has, that one knows
        for tool in self.tools(setting):
            if not environment.has_tool(tool):
                reason, install = _without(tool, setting)
                yield MachineProblem(choice, reason, f"compile=none, or {install}")
        if setting.device != "cuda":
            return
        capability = environment.capability
        if capability is not None and capability < _TRITONS_LEAST:
            reason = "Triton, which writes the kernels, needs compute capability 7.0 or newer"
            here = ".".join(map(str, capability))
            yield MachineProblem(choice, f"{reason}; here: {here}", "compile=none", _TRITONS_GPUS)
        elif not environment.has_module("triton"):
            yield MachineProblem(
                choice,
                "needs the package triton, which is not installed",
                f"pip install {requirement_of_torch('triton') or 'triton'}, or compile=none",
            )
        needing, without = self.needs_toolkit() or (None, None)
        for tool in ("c++", "cuda.h"):
            if needing and not environment.has_tool(tool):
                reason, install = _without(tool, setting)
                yield MachineProblem(needing, reason, f"{without}, or {install}", _TOOLKIT)

    def cache_folder(self) -> Path | None:
        return Path(os.path.expanduser(self.cache_dir)).absolute() if self.cache_dir else None

    def code_folder(self) -> Path | None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        return self.cache_folder() or Path(cache_dir())

    def _cache_unusable(self) -> str | None:
        """Why nothing could be kept in `cache_dir`, or in a folder in it that Inductor or Triton would use."""
        folder = self.cache_folder()
        if folder is None:
            return None
        if reason := unwritable(folder):
            return reason
        inside = ((name, unwritable(folder / name)) for name in _INSIDE)
        return next((f"its {name} {reason}" for name, reason in inside if reason), None)

    def inductor_options(self) -> dict[str, Any]:
        """The mode's own options and the flags that were set, as `torch.compile(options=...)` takes them."""
        import torch

        return dict(torch._inductor.list_mode_options(self.mode)) | self._given()

    def _given(self) -> dict[str, Any]:
        """The flags that were set."""
        given = {flag: getattr(self, flag) for flag in self.flags}
        return {flag: value for flag, value in given.items() if value is not None}

    def written_options(self, script: Script) -> list[str]:
        """A script's constant with what `inductor_options` says: its name, and nothing where no flag is changed."""
        own = {f.name: f.default for f in fields(self)}
        given = {flag: value for flag, value in self._given().items() if value != own[flag]}
        items = [f"{literal(flag)}: {literal(value)}" for flag, value in given.items()]
        if given and self.mode != "default":
            items = [f"**torch._inductor.list_mode_options({literal(self.mode)})", *items]
        if given:
            script.define(bracketed("INDUCTOR_OPTIONS = {", items, "}"))
        return ["INDUCTOR_OPTIONS"] if given else []

    def written_methods(self, script: Script, setting: base.Setting) -> list[tuple[str, str]]:
        """What is compiled, as a script calls it: each part and its method."""
        parts = script.called(self.key, self.components(setting))
        return [(p, f"{p}.{self.method(setting, p.removeprefix('pipe.'))}") for p in parts]

    def write_flags(self, script: Script, setting: base.Setting) -> None:
        """What `around_calls` sets, as far as a picture depends on it, for the script's whole process."""
        script.use("torch")
        if self.freezes(setting):
            script.flag("torch._inductor.config.freezing = True")
        attention = setting.run.choices["attention"]
        if attention.startswith("sdpa_"):
            script.flag(
                "# A forced kernel is compiled in, and the key of the compiler's cache knows nothing of it.",
                f"torch.compiler.config.cache_key_tag = {literal(attention)}",
            )

    def around_calls(self, setting: base.Setting) -> Callable[[], AbstractContextManager[Any]]:
        """What has to hold around each call of something that is compiled when it is called."""
        import torch
        import torch._dynamo.config
        import torch._inductor.config
        import torch.compiler.config

        freezing = self.freezes(setting)
        config: Any = torch.compiler.config
        attention = setting.chosen("attention")
        folder = self.cache_folder()
        kept_in = self.code_folder()
        assert kept_in
        filled = (kept_in / "fxgraph").is_dir()
        # Triton keeps its own under Inductor's; both ask for their variable whenever they compile.
        variables = {
            "TORCHINDUCTOR_CACHE_DIR": str(folder),
            "TRITON_CACHE_DIR": str(folder and folder / "triton"),
        }

        def enter() -> AbstractContextManager[Any]:
            stack = ExitStack()
            if filled:
                stack.enter_context(_doubting(self.key, kept_in))
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


def _without(tool: str, setting: base.Setting) -> tuple[str, str]:
    """Why there is a problem without a tool, and how to get it on this machine."""
    reason, install = _TOOLS[tool]
    python = ".".join(setting.environment.python.split(".")[:2])
    return reason, install.format(python=python, cuda=setting.environment.torch_cuda)


def parts_of(setting: base.Setting) -> dict[str, Component | None]:
    """The component behind each target."""
    return {"denoiser": setting.denoiser, "vae_decode": setting.vae}


@contextmanager
def _doubting(key: str, folder: Path) -> Iterator[None]:
    """Within it, a compiler that fails is reported with the cache that it took from.

    Inductor compiles again where an entry of its index can't be read, but fails with any error at all where the code
    that an entry names was cut short: its messages speak of C++ then, not of the cache.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        yield
    except BackendCompilerFailed as error:
        raise RunError(
            f"{key}: compiling failed, and {folder} held compiled code already, which may be damaged\n"
            f"  instead: remove that folder, or compile.cache_dir=DIR, an empty one\n{error}"
        ) from error


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
