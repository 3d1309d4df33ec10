"""`memory`: speed given up for device memory.

Two of the options keep weights on the host and bring them over when they are needed; one keeps them in fewer bits. The
keys that divide the VAE's work go with each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from textwrap import indent
from typing import TYPE_CHECKING, Any

from fastdiff.errors import MachineProblem, Problem, RunError
from fastdiff.models.content import weight_bytes
from fastdiff.models.facts import Component
from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.passes.precision import Precision
from fastdiff.script import Script, ScriptError, call, keywords, literal

if TYPE_CHECKING:
    from torch import nn

_GUIDE = "https://huggingface.co/docs/diffusers/optimization/memory"

_TILES_OF_TAESD = 448
"""Pixels a side up to which AutoencoderTiny has one tile: its tiles have 512, and the next one begins an eighth earlier."""


@dataclass(frozen=True)
class VaeSplitting(base.Pass):
    """Flags on the VAE: it decodes a batch picture by picture, a large picture in tiles that overlap."""

    slicing: bool
    tiling: bool

    key = "memory.vae"
    stage = base.Stage.MEMORY
    source = _GUIDE

    @property
    def fidelity(self) -> base.Fidelity:  # type: ignore[override]
        """Tiles are normed and attended to one by one, and blended where they overlap; slices are whole pictures."""
        return base.Fidelity.LOSSY if self.tiling else base.Fidelity.EXACT

    @property
    def does(self) -> str:  # type: ignore[override]
        words = ["picture by picture"] * self.slicing + ["in overlapping tiles"] * self.tiling
        return f"decode {' and '.join(words)}"

    @property
    def _asked(self) -> list[str]:
        return ["slicing"] * self.slicing + ["tiling"] * self.tiling

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return (setting.vae_name,)

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        """Raises RunError if this VAE can't."""
        found, held = self.parts(pipeline, context), []
        for name in self._asked:
            try:
                (vae,) = found.values()
                getattr(vae, f"enable_{name}")()
            except (AttributeError, NotImplementedError, ValueError) as error:
                raise RunError(
                    f"memory.vae_{name}=true: {type(pipeline).__name__} has no VAE that can be told to\n"
                    f"  instead: memory.vae_{name}=false"
                ) from error
            held.append(bool(getattr(vae, f"use_{name}", False)))
        return Effect(self.key, sum(held), f"{' and '.join(self._asked)} on", flag=all(held))

    def script(self, script: Script, setting: base.Setting) -> None:
        (vae,) = script.called(self.key, self.components(setting))
        script.then(*(f"{vae}.enable_{name}()" for name in self._asked))


@dataclass
class Memory(base.Option):
    """Base of the options.

    vae_slicing: decode a batch picture by picture. vae_tiling: decode a large picture in overlapping tiles.
    """

    slot = "memory"

    vae_slicing: bool = False
    vae_tiling: bool = False

    def passes(self) -> tuple[base.Pass, ...]:
        if not (self.vae_slicing or self.vae_tiling):
            return super().passes()
        return (*super().passes(), VaeSplitting(self.vae_slicing, self.vae_tiling))

    def check(self, setting: base.Setting) -> base.Findings:
        asked = {"vae_slicing": self.vae_slicing, "vae_tiling": self.vae_tiling}
        for key in (key for key, wanted in asked.items() if wanted):
            choice, instead, vae = f"memory.{key}=true", f"memory.{key}=false", setting.vae
            if setting.facts and vae is None:
                yield Problem(choice, f"{setting.facts.pipeline} has no VAE", instead, _GUIDE)
            elif vae and vae.facts and not getattr(vae.facts, key.removeprefix("vae_")):
                reason = f"{vae.class_name} decodes in one piece whatever it is told"
                yield Problem(choice, reason, instead, _GUIDE)
            elif vae and key == "vae_tiling" and _enlarges_taesd(vae) != 8:
                reason = f"AutoencoderTiny makes tiles only where it enlarges 8 times; this one: {_enlarges_taesd(vae)}"
                yield Problem(choice, reason, instead, _GUIDE)
            elif key == "vae_slicing" and _pictures(setting) == 1:
                yield base.Notice(
                    choice, "changes nothing here: slices are a batch's pictures, and one is drawn"
                )
            elif key == "vae_tiling" and _is_one_tile(setting):
                yield base.Notice(choice, "changes nothing here: the whole picture is one tile")
            elif key == "vae_tiling" and _compiles(setting, "vae_decode"):
                yield base.Notice(
                    choice,
                    "makes compiling the VAE's decode long, because its graph holds every tile; "
                    "compile.targets=[denoiser] leaves it eager",
                )


def _enlarges_taesd(vae: Component) -> int:
    """How many times larger an AutoencoderTiny's picture is than its latents; 8 for all other classes."""
    blocks = vae.config.get("decoder_block_out_channels")
    if vae.class_name != "AutoencoderTiny" or not isinstance(blocks, list | tuple):
        return 8
    return int(2 ** (len(blocks) - 1))


def _pictures(setting: base.Setting) -> int:
    asked = setting.run.generation
    return len(asked.prompts) * asked.images_per_prompt


def _is_one_tile(setting: base.Setting) -> bool:
    """Whether the picture is known to be no larger than the VAE's tile."""
    asked, vae = setting.run.generation, setting.vae
    if not (vae and vae.config and asked.height and asked.width):
        return False
    largest = max(asked.height, asked.width)
    if vae.class_name == "AutoencoderTiny":
        return largest <= _TILES_OF_TAESD
    if vae.class_name != "AutoencoderKL":
        return False  # video's VAEs have tiles of their own
    tile = vae.config.get("sample_size", 32)  # the class's own default
    return isinstance(tile, int) and largest <= tile


def _compiles(setting: base.Setting, target: str) -> bool:
    """Whether `compile` is about a target; an option without targets is about the denoiser."""
    targets = getattr(setting.run.compile, "targets", ["denoiser"])
    return setting.run.choices["compile"] != "none" and target in targets


@dataclass
class NoMemory(Memory):
    """Everything stays on the device, in the run's precision."""


@dataclass
class Layerwise(Memory, base.Pass):
    """The denoiser's weights in fp8 (e4m3), cast to the run's precision while their layer computes.

    skip_modules_pattern: regular expressions; layers with such a name stay as they are. Empty takes diffusers' own:
        norms, position and patch embeddings.
    """

    key = "memory.layerwise"
    stage = base.Stage.MEMORY
    fidelity = base.Fidelity.LOSSY
    does = "keep the denoiser's layers in fp8, cast each one while it computes"
    source = f"{_GUIDE}#layerwise-casting"

    skip_modules_pattern: list[str] = field(default_factory=list)

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return (setting.denoiser_name,)

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        choice = "memory=layerwise"
        if setting.device == "mps":
            yield MachineProblem(choice, "mps has no fp8; device=mps", "memory=none", self.source)
        if _compiles(setting, "denoiser"):
            yield Problem(
                choice,
                f"can't be combined with {setting.chosen('compile')}: Dynamo can't trace a cast of weights, and "
                "graphs around each one are too many",
                "memory=none, or compile=none",
                self.source,
            )
        if setting.run.choices["quant"] != "none":
            yield base.Notice(
                choice,
                f"leaves the weights that {setting.chosen('quant')} rounds as they are; biases and all "
                "other layers are kept in fp8",
            )
        for pattern in self.skip_modules_pattern:
            try:
                re.compile(pattern)
            except re.error as error:
                yield Problem(
                    f"memory.skip_modules_pattern=[{pattern}]",
                    f"is no regular expression: {error}",
                    "memory.skip_modules_pattern=[norm], or []",
                )

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        import torch

        precision = context.setting.run.precision
        assert isinstance(precision, Precision)
        before = after = cast = count = 0
        for part in self.parts(pipeline, context).values():
            before += _bytes(part)
            part.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn,
                compute_dtype=getattr(torch, precision.dtype),
                skip_modules_pattern=tuple(self.skip_modules_pattern) or None,
            )
            after += _bytes(part)
            weights = list(part.parameters())
            cast += sum(weight.dtype == torch.float8_e4m3fn for weight in weights)
            count += len(weights)
        details = {
            "of": count,
            "bytes_before": before,
            "bytes_after": after,
            "summary": f"{before / 1e6:.1f} MB became {after / 1e6:.1f} MB",
        }
        return Effect(self.key, cast, "weights in float8_e4m3fn", details=details)

    def script(self, script: Script, setting: base.Setting) -> None:
        script.use("torch")
        dtypes = ("storage_dtype=torch.float8_e4m3fn", f"compute_dtype=torch.{script.dtype}")
        kept = [f"skip_modules_pattern={literal(tuple(self.skip_modules_pattern))}"]
        for part in script.called(self.key, self.components(setting)):
            how = f"{part}.enable_layerwise_casting"
            script.then(call(how, *dtypes, *(kept if self.skip_modules_pattern else ())))


def _bytes(part: nn.Module) -> int:
    return sum(map(weight_bytes, part.parameters()))


@dataclass
class Offload(Memory, base.Pass):
    """Base of the options that keep weights in the host's memory."""

    stage = base.Stage.PLACE
    fidelity = base.Fidelity.EXACT
    places = True
    requires = (
        base.Requirement(device="cuda", instead="memory=none, or memory=layerwise", source=_GUIDE),
    )

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return setting.weighty()

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        if setting.run.choices["compile"] != "none":
            yield from self._with_compile(setting)
        if setting.run.choices["quant"] != "none":
            yield base.Notice(
                setting.chosen("memory"),
                f"moves the weights of {setting.chosen('quant')} like all others, as diffusers and torchao "
                "provide for; fastdiff's authors have not run the pair on a GPU",
            )

    def _with_compile(self, setting: base.Setting) -> Iterator[Problem]:
        """Why the compile option can't work on weights that come and go."""
        raise TypeError(f"{type(self).__name__} has no _with_compile()")


@dataclass
class ModelOffload(Offload):
    """Each component on the device only while it computes, whole; the denoiser for all of its steps."""

    key = "memory.model_offload"
    does = "keep components on the host, each on the device while it computes"
    source = f"{_GUIDE}#model-offloading"

    def _with_compile(self, setting: base.Setting) -> Iterator[Problem]:
        chosen, option = setting.chosen("compile"), setting.run.compile
        if chosen == "compile=regional":
            return  # its graphs are inside the denoiser, behind the hook
        reason = None
        if getattr(option, "cuda_graphs", False):
            reason = "CUDA graphs need weights that stay where they are"
        elif getattr(option, "freezing", False) is True:
            reason = "frozen weights never leave the device"
        elif not hasattr(option, "fullgraph") or chosen in ("compile=aot", "compile=regions"):
            reason = "what it compiles has lost the hook that brings the weights"
        elif option.fullgraph:
            reason = "the hook that brings the weights breaks the graph, and compile.fullgraph=true forbids it"
        if reason:
            yield Problem(
                "memory=model_offload",
                f"can't be combined with {chosen}: {reason}",
                "compile=regional, or memory=none",
                self.source,
            )

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        """Raises RunError if the pipeline doesn't say in which order its components work."""
        if pipeline.model_cpu_offload_seq is None:
            raise RunError(
                f"memory=model_offload: {type(pipeline).__name__} doesn't say in which order its components work\n"
                "  instead: memory=group_offload, or memory=none"
            )
        pipeline.enable_model_cpu_offload(device=context.device)
        _keep_hooks(pipeline)
        hooked = {name: hasattr(part, "_hf_hook") for name, part in _modules(pipeline)}
        moved = [name for name in hooked if hooked[name]]
        rest = [name for name in hooked if not hooked[name]]
        details = {"components": moved, "always_on_device": rest}
        return Effect(self.key, len(moved), "components on the device in turn", details=details)

    def script(self, script: Script, setting: base.Setting) -> None:
        script.then(f"pipe.enable_model_cpu_offload(device={literal(setting.device)})")


def _modules(pipeline: Any) -> list[tuple[str, nn.Module]]:
    import torch

    parts = pipeline.components.items()
    return [(name, part) for name, part in parts if isinstance(part, torch.nn.Module)]


def _keep_hooks(pipeline: Any) -> None:
    """After a call, bring every component back to the host and leave the hooks where they are.

    diffusers takes all hooks off and puts new ones on, and so would take off what later passes wrapped around a
    component's forward: a compiled function, a forced attention kernel.
    """
    reset_caches = pipeline.maybe_free_model_hooks  # with no hooks in its list it does only that

    def bring_back() -> None:
        hooks, pipeline._all_hooks = pipeline._all_hooks, []
        try:
            reset_caches()
        finally:
            pipeline._all_hooks = hooks
        for hook in hooks:
            hook.offload()

    pipeline.maybe_free_model_hooks = bring_back


class OffloadType(Enum):
    """What is moved at a time: blocks of layers, or single layers."""

    block_level = "block_level"
    leaf_level = "leaf_level"


@dataclass
class GroupOffload(Offload):
    """Groups of layers on the device only while they compute: the least device memory, and the most traffic.

    The VAE always goes layer by layer: its decode is not its forward, where blocks' hooks are.

    offload_type: blocks, or single layers, which needs less memory and more transfers.
    num_blocks_per_group: blocks moved at a time. use_stream: bring the next group while one computes.
    """

    key = "memory.group_offload"
    does = "keep layers on the host, each group on the device while it computes"
    source = f"{_GUIDE}#group-offloading"

    offload_type: OffloadType = OffloadType.block_level
    num_blocks_per_group: int = 1
    use_stream: bool = False

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        part, blocks, one = (
            setting.denoiser,
            self.num_blocks_per_group,
            "memory.num_blocks_per_group=1",
        )
        if part and part.facts and not part.facts.group_offload:
            yield Problem(self.choice, _ungrouped(part), "memory=model_offload", self.source)
        if blocks < 1:
            yield self.wrong("num_blocks_per_group", "must be at least 1", one)
        elif blocks > 1 and self.use_stream and self.offload_type is OffloadType.block_level:
            reason = "a stream brings one block at a time; memory.use_stream=true"
            instead = f"{one}, or memory.use_stream=false"
            yield self.wrong("num_blocks_per_group", reason, instead, self.source)

    def _with_compile(self, setting: base.Setting) -> Iterator[Problem]:
        part, by_block = setting.denoiser, self.offload_type is OffloadType.block_level
        # A UNet's repeated blocks lie inside those that move; a transformer's are those that move.
        inside = part is None or part.class_name == "UNet2DConditionModel"
        if inside and setting.chosen("compile") == "compile=regional":
            if by_block:
                return
            instead = "memory.offload_type=block_level, or compile=none"
        else:
            instead = "memory=model_offload with compile=regional, or compile=none"
        yield Problem(
            "memory=group_offload",
            f"can't be combined with {setting.chosen('compile')}: Dynamo can't trace weights that move inside of what "
            "it compiles",
            instead,
            self.source,
        )

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        import torch
        from diffusers.hooks import apply_group_offloading

        vae = context.setting.vae_name
        device = torch.device(context.device)
        groups, whole = {}, []
        for name, part in _modules(pipeline):
            if not getattr(part, "_supports_group_offloading", True):
                part.to(device)
                whole.append(name)
                continue
            apply_group_offloading(
                part,
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level" if name == vae else self.offload_type.value,
                num_blocks_per_group=self.num_blocks_per_group,
                use_stream=self.use_stream
                and name != vae,  # it prefetches in the order of a forward
            )
            groups[name] = _groups(part)
        details = {"components": groups, "always_on_device": whole}
        count = sum(groups.values())
        return Effect(self.key, count, "groups of layers on the device in turn", details=details)

    def script(self, script: Script, setting: base.Setting) -> None:
        vae = setting.vae
        if vae and vae.facts and not vae.facts.group_offload:
            raise ScriptError(self.choice, _ungrouped(vae), "memory=model_offload")
        script.use("torch")
        script.use("diffusers.hooks", "apply_group_offloading")
        name = literal(vae.name if vae else "vae")
        by, stream = literal(self.offload_type.value), "False"
        loop = "for part in pipe.components.values():"
        if self.offload_type is OffloadType.block_level or self.use_stream:
            loop = "for name, part in pipe.components.items():"
            by = f'"leaf_level" if name == {name} else {by}'
            stream = f"name != {name}" if self.use_stream else stream
        arguments = (
            "part",
            f"onload_device=torch.device({literal(setting.device)})",
            f"offload_type={by}",
            *keywords({"num_blocks_per_group": self.num_blocks_per_group}),
            f"use_stream={stream}",
        )
        offload = call("apply_group_offloading", *arguments, width=92)
        whether = "    if isinstance(part, torch.nn.Module):"
        script.then(loop, whether, indent(offload, " " * 8))


def _ungrouped(part: Component) -> str:
    return f"diffusers doesn't offload {part.class_name} in groups"


def _groups(part: nn.Module) -> int:
    """Groups of layers that move together, counted by their hooks."""
    registries: Any = (getattr(module, "_diffusers_hook", None) for module in part.modules())
    hooks = [found.get_hook("group_offloading") for found in registries if found is not None]
    return len({id(hook.group) for hook in hooks if hook is not None})


OPTIONS: dict[str, type[base.Option]] = {
    "none": NoMemory,
    "model_offload": ModelOffload,
    "group_offload": GroupOffload,
    "layerwise": Layerwise,
}
