"""AOTInductor packages: built at the first call with certain inputs, kept, and checked before they are loaded again.

What a pipeline will be called with is known at its first call only. So the compiled function is a dispatcher: each set
of shapes, formats and constants has a package of its own. It has to choose, because a package doesn't look: given
another shape, it computes on as if the shape were its own.

A package is native code. It is taken from fastdiff's own cache folder and from nowhere else, only if nobody but the
user can have written it, and only if its content and everything that it was built for are what its manifest says.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import fingerprint
from fastdiff.errors import RunError
from fastdiff.machine.cache_folder import cache_folder, distrust, doubtful
from fastdiff.machine.files import read_json, sha256_of, write_json
from fastdiff.models.content import plain_tensors
from fastdiff.passes.effects import Effect, Observed, Pending

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGE, MANIFEST = "package.pt2", "manifest.json"
MOST = 8
"""Packages for one function; as many as Dynamo recompiles before it gives up."""

_ATTENTION = re.compile(
    rb"CHECK\(aoti_torch_(?:cpu|cuda)__scaled_dot_product_(flash|efficient|cudnn)_attention"
)
_UNFINISHED = ".building-"
_A_DAY_S = 86_400


def packages_folder() -> Path:
    return cache_folder() / "aot"


@dataclass(frozen=True)
class Package:
    """One compiled graph that is loaded.

    target: what it computes; inputs: its tensors in words.
    built: whether this process built it; export_s, compile_s: how long that took, 0 otherwise.
    kernels: attention kernels that its code calls, with how often.
    notice: why a kept one wasn't taken, or why this one couldn't be kept.
    """

    target: str
    inputs: tuple[str, ...]
    built: bool
    export_s: float
    compile_s: float
    package_bytes: int
    kernels: Mapping[str, int]
    folder: str
    notice: str | None
    run: Callable[..., Any] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report; of the folder its name, which finds it in any cache."""
        plain = {name: value for name, value in self.__dict__.items() if name != "run"}
        return plain | {"folder": Path(self.folder).name}


@dataclass
class Packages(Pending):
    """The packages of a run, by what they are called with.

    made_for: what a package depends on beside weights and inputs, as plain data.
    options: Inductor's; around: what has to hold while a package is built.
    """

    key: str
    made_for: Mapping[str, Any]
    options: Mapping[str, Any]
    around: Callable[[], AbstractContextManager[Any]]
    loaded: list[Package] = field(default_factory=list)

    def serving(
        self, target: str, part: nn.Module, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """A function that answers as `function`, a method of the part, would: with what its packages compute.

        Calling it raises RunError if it is given what can't be exported, or too many different inputs.
        """
        import torch
        from torch.utils import _pytree

        known: list[tuple[Any, Package]] = []
        weights = functools.cache(lambda: weights_digest(part))

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            leaves, structure = _pytree.tree_flatten((args, kwargs))
            # A package is built for certain strides as well; one kind of them is enough.
            leaves = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in leaves]
            wanted = (structure, [_described(leaf) for leaf in leaves])
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            package = next((package for inputs, package in known if inputs == wanted), None)
            if package is None:
                _refuse(self.key, target, leaves, len(known))
                made_for = {
                    **self.made_for,
                    "target": target,
                    "class": type(part).__name__,
                    "weights": weights(),
                    "inputs": wanted[1],
                    "structure": str(structure),
                }
                graph = _graph(part, function, leaves, structure)
                package = self._package(made_for, graph, tensors)
                known.append((wanted, package))
                self.loaded.append(package)
            return package.run(*tensors)

        return call

    def _package(
        self, made_for: dict[str, Any], graph: nn.Module, tensors: list[torch.Tensor]
    ) -> Package:
        """The kept package, or a new one."""
        made_for = json.loads(json.dumps(made_for))
        folder = packages_folder() / fingerprint(made_for)
        _make_trusted()
        target = made_for["target"]
        run, notice = _kept(folder, made_for)
        if run is not None:
            size, kernels = (folder / PACKAGE).stat().st_size, attention_in(folder / PACKAGE)
            return Package(
                target, _in_words(tensors), False, 0.0, 0.0, size, kernels, str(folder), None, run
            )
        with self.around():
            built = _build(folder, made_for, graph, tensors, self.options)
        return replace(built, notice="; ".join(filter(None, (notice, built.notice))) or None)

    @property
    def reused(self) -> bool:
        return not all(package.built for package in self.loaded)

    def observed(self, observed: Observed) -> Observed:
        """With the packages, which Dynamo's counters don't see, nor the profiler the CPU kernels that they call."""
        built = [package for package in self.loaded if package.built]
        if not self.loaded:
            return observed
        inside = next((p.kernels for p in self.loaded if p.target == "denoiser"), {})
        return replace(
            observed,
            kernels=observed.kernels or inside,
            graphs=observed.graphs + len(self.loaded),
            cache="cold" if built or observed.cache == "cold" else "warm",
            compile_s=observed.compile_s + sum(p.export_s + p.compile_s for p in built),
        )

    def effect(self, observed: Observed) -> Effect:
        built = [package for package in self.loaded if package.built]
        seconds = sum(package.export_s + package.compile_s for package in built)
        words = [f"{len(built)} built in {seconds:.1f} s"] if built else []
        if len(built) < len(self.loaded):
            words.append(f"{len(self.loaded) - len(built)} reused")
        details = {
            "packages": [package.to_dict() for package in self.loaded],
            "cache": "cold" if built else "warm",
            "freezing": bool(self.options.get("freezing")),
            "summary": ", ".join(words),
        }
        return Effect(self.key, len(self.loaded), "packages", details=details)


def _in_words(tensors: list[torch.Tensor]) -> tuple[str, ...]:
    return tuple(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors)


def _described(leaf: Any) -> Any:
    """What a package depends on in one argument, as plain data: of a tensor no values, of a constant its own."""
    import torch

    if isinstance(leaf, torch.Tensor):
        return [list(leaf.shape), str(leaf.dtype), str(leaf.device)]
    value = leaf if isinstance(leaf, (bool, int, float, str)) else None
    return [type(leaf).__name__, value]


def _refuse(key: str, target: str, leaves: list[Any], packages: int) -> None:
    import torch

    for leaf in leaves:
        if not isinstance(leaf, (torch.Tensor, torch.Generator, bool, int, float, str, type(None))):
            raise RunError(
                f"{key}: {target} is called with an argument of type {type(leaf).__name__}, which can't be exported\n"
                "  instead: compile=default"
            )
    if packages >= MOST:
        raise RunError(
            f"{key}: {target} was called with more than {MOST} different shapes or constants, and each would be "
            "a package of its own\n"
            "  instead: compile=dynamic"
        )


def _graph(
    part: nn.Module, function: Callable[..., Any], leaves: list[Any], structure: Any
) -> nn.Module:
    """The function as a module that takes the tensors of a call alone; the other arguments are constants of it."""
    import torch
    from torch.utils import _pytree

    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, *tensors: torch.Tensor) -> Any:
            given = iter(tensors)
            filled = [next(given) if isinstance(x, torch.Tensor) else x for x in leaves]
            args, kwargs = _pytree.tree_unflatten(filled, structure)
            return function(*args, **kwargs)

    return Call().eval()


def weights_digest(part: nn.Module) -> str:
    """Hash of every weight's name, format, place in memory and content: they are constants of a package.

    Reads them all (a gigabyte takes about a second): a LoRA, another VAE or rounded weights leave no other trace
    that could be relied on.
    """
    import torch

    digest = hashlib.sha256()
    named = chain(part.named_parameters(), part.named_buffers())
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        for plain in plain_tensors(tensor.detach()):
            looks = f"{name} {type(tensor).__name__} {plain.dtype} {tuple(plain.shape)} {plain.stride()}"
            digest.update(looks.encode())
            content = plain.cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(content.numpy().data)
    return digest.hexdigest()


def _make_trusted() -> None:
    """Make the cache folder. Raises RunError if somebody else could have put a package there."""
    if found := doubtful(cache_folder(), packages_folder()):
        folder, reason = found
        raise RunError(
            f"compile.aot: {folder} {reason}, and code would be loaded from there\n"
            f"  instead: chmod go-w {folder}, or compile=default"
        )


def _kept(
    folder: Path, made_for: Mapping[str, Any]
) -> tuple[Callable[..., Any] | None, str | None]:
    """The kept package, loaded; or None and why it can't be taken, if there is one."""
    if not os.path.lexists(folder):
        return None, None
    for path in (folder, folder / PACKAGE, folder / MANIFEST):
        reason = distrust(path)
        if reason:
            return None, f"built again: the kept {path.name} {reason}"
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["made_for"] != made_for:
            return None, "built again: the kept package was made for something else"
        if manifest["sha256"] != sha256_of(folder / PACKAGE):
            return None, "built again: the kept package is not what was written"
        return _load(folder / PACKAGE), None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        return None, f"built again: the kept package can't be read ({type(error).__name__})"


def _load(path: Path) -> Callable[..., Any]:
    import torch._inductor

    run: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
    return run


def _build(
    folder: Path,
    made_for: Mapping[str, Any],
    graph: nn.Module,
    tensors: list[torch.Tensor],
    options: Mapping[str, Any],
) -> Package:
    """Export and compile beside the place where the package will be kept, load it, and put it there."""
    import torch
    import torch._inductor

    _sweep(folder.parent)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_UNFINISHED))
    try:
        with torch.no_grad():
            started = time.perf_counter()
            exported = torch.export.export(graph, tuple(tensors), strict=False)
            ready = time.perf_counter()
            torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(unfinished / PACKAGE),
                # Inductor writes into the dictionary of metadata, which would otherwise be the process's own.
                inductor_configs={**options, "aot_inductor.metadata": {}},
            )
            done = time.perf_counter()
        # Whatever umask is: what others could write would not be loaded again.
        (unfinished / PACKAGE).chmod(0o600)
        size, kernels = (unfinished / PACKAGE).stat().st_size, attention_in(unfinished / PACKAGE)
        digest = sha256_of(unfinished / PACKAGE)
        write_json(unfinished / MANIFEST, {"sha256": digest, "bytes": size, "made_for": made_for})
        run = _load(unfinished / PACKAGE)
        notice = _keep(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    target, words = made_for["target"], _in_words(tensors)
    return Package(
        target, words, True, ready - started, done - ready, size, kernels, str(folder), notice, run
    )


def attention_in(package: Path) -> dict[str, int]:
    """Attention kernels that a package calls, as its own source says it: straight-line code, each call once."""
    with zipfile.ZipFile(package) as archive:
        sources = [name for name in archive.namelist() if name.endswith(".wrapper.cpp")]
        found = Counter(k for name in sources for k in _ATTENTION.findall(archive.read(name)))
    return {kernel.decode(): count for kernel, count in found.most_common()}


def _keep(unfinished: Path, folder: Path) -> str | None:
    """Give a whole package its place; why it couldn't be had, if so. What lay there before goes."""
    try:
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_UNFINISHED))
            os.replace(folder, aside / "old")
            shutil.rmtree(aside, ignore_errors=True)
        os.replace(unfinished, folder)
    except OSError as error:  # another process was quicker, or the disk is full
        return f"not kept: {error.strerror}"
    return None


def _sweep(folder: Path) -> None:
    """Remove what processes that ended in the middle have left, a day later."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            if time.time() - left.lstat().st_mtime > _A_DAY_S:
                shutil.rmtree(left, ignore_errors=True)
