"""AOTInductor as an option: what a package depends on. The packages themselves are `packages.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastdiff.config import PROVENANCE
from fastdiff.errors import MachineProblem
from fastdiff.machine.cache_folder import VARIABLE, cache_folder, distrust, unwritable
from fastdiff.models.sources import model_of
from fastdiff.passes import base
from fastdiff.passes.compile.inductor import Inductor
from fastdiff.passes.compile.packages import Packages, packages_folder
from fastdiff.passes.effects import Pending
from fastdiff.script import Script


@dataclass
class Aot(Inductor):
    """AOTInductor: a package of native code for each input size, kept in fastdiff's cache folder for later runs.

    The weights are constants of the package, frozen or not: they lie in memory twice, there and in the pipeline. There
    are no CUDA graphs.

    max_autotune: Inductor's flag of this name: each matrix product by the quickest of several kernels, tried out while
        the package is built, which takes about twice as long; null leaves Inductor's own.
    """

    key = "compile.aot"
    does = "AOTInductor packages, built at the first call or taken from the cache"
    source = "https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html"
    flags: ClassVar[tuple[str, ...]] = ("max_autotune", *Inductor.flags)
    conflicts = (
        base.Conflict(
            "attention=xformers",
            "can't be combined with attention=xformers: its kernels can't be exported",
            "attention=sdpa, or compile=default",
        ),
    )

    max_autotune: bool | None = None

    def needs_toolkit(self) -> tuple[str, str] | None:
        return "compile=aot", "compile=default"

    def code_folder(self) -> Path | None:
        return packages_folder()

    def tools(self, setting: base.Setting) -> tuple[str, ...]:
        """No Python in a package's code, so none of its headers off CUDA, unless kernels are tried out from Python."""
        if setting.device == "cuda":
            return super().tools(setting)
        return ("c++", "Python.h") if self.max_autotune else ("c++",)

    def check(self, setting: base.Setting) -> base.Findings:
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
            yield base.Notice(
                "compile=aot", "a package has no CUDA graphs; compile=max_autotune does"
            )

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        setting = context.setting
        options = self.inductor_options() | {"freezing": self.freezes(setting)}
        if setting.device == "cuda":
            # Otherwise they are allocated behind the back of torch's allocator, whose peaks a report tells.
            options["aot_inductor.weight_use_caching_allocator"] = True
        around = self.around_calls(setting)
        packages = Packages(self.key, _made_for(setting, options), options, around)
        for name, part in self.parts(pipeline, context).items():
            method = self.method(setting, name)
            target = "denoiser" if method == "forward" else "vae_decode"
            setattr(part, method, packages.serving(target, part, getattr(part, method)))
        return packages

    def script(self, script: Script, setting: base.Setting) -> None:
        self.write_flags(script, setting)
        script.use("functools")
        script.use("torch.utils._pytree", "tree_flatten", "tree_unflatten")
        configs = "".join(f", inductor_configs={name}" for name in self.written_options(script))
        script.define(_AHEAD_OF_TIME.replace(", CONFIGS", configs))
        methods = self.written_methods(script, setting)
        script.then(*(f"{name} = ahead_of_time({part}, {name})" for part, name in methods))


_AHEAD_OF_TIME = '''\
def ahead_of_time(module, method):
    """The method as AOTInductor compiles it, at the first call with such tensors (shapes, dtypes) and such constants."""
    packages = {}

    def exported(leaves, structure):
        class Call(torch.nn.Module):
            """Takes the tensors of a call alone; its other arguments are constants."""

            def __init__(self):
                super().__init__()
                self.module = module

            def forward(self, *tensors):
                given = iter(tensors)
                filled = [next(given) if isinstance(x, torch.Tensor) else x for x in leaves]
                args, kwargs = tree_unflatten(filled, structure)
                return method(*args, **kwargs)

        tensors = tuple(x for x in leaves if isinstance(x, torch.Tensor))
        return torch.export.export(Call().eval(), tensors, strict=False)

    @functools.wraps(method)
    def call(*args, **kwargs):
        leaves, structure = tree_flatten((args, kwargs))
        leaves = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in leaves]
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        kinds = [(x.shape, x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves]
        made_for = str((structure, kinds))  # a package keeps its constants, whatever it is given
        if made_for not in packages:
            program = exported(leaves, structure)
            file = torch._inductor.aoti_compile_and_package(program, CONFIGS)
            packages[made_for] = torch._inductor.aoti_load_package(file)
        return packages[made_for](*tensors)

    return call'''


def _made_for(setting: base.Setting, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a package depends on beside its weights and inputs: choices, model, machine, versions; plain data.

    The number of threads is among it, because Inductor writes it into the code.
    """
    import torch

    from fastdiff.machine.environment import FASTDIFF_VERSION

    machine, run = setting.environment, setting.run
    without = (
        "model",
        "bench",
        "quality",
        "generation",
        *PROVENANCE,
        "allow_no_effect",
        "profile",
        "compile",
    )
    return {
        "choices": {name: keys for name, keys in run.to_dict().items() if name not in without},
        "options": dict(options),
        "model": model_of(run).identity(),
        "machine": {
            "device": setting.device,
            # The one that runs use: how many others are visible doesn't matter to the code.
            "gpus": [[gpu.name, list(gpu.capability or ())] for gpu in machine.gpus[:1]],
            "cpu": machine.cpu,
            "cpu_flags": sorted(machine.cpu_flags),
            "os": machine.os,
            "threads": torch.get_num_threads(),
        },
        "versions": {
            **machine.versions,
            "python": machine.python,
            "cuda": machine.torch_cuda,
            "fastdiff": FASTDIFF_VERSION,
        },
    }
