"""`quant`: linear layers with int8 or fp8 weights, by torchao.

Which layers are quantized is data: the keys below, in the option's YAML. What was quantized is counted afterwards on
the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from fastdiff.errors import Problem
from fastdiff.passes.base import (
    Context,
    Fidelity,
    Notice,
    Option,
    Pass,
    Requirement,
    Setting,
    Stage,
)
from fastdiff.passes.precision import upcasts_vae
from fastdiff.result import Effect
from fastdiff.scripting import Script, ScriptError, bracketed, call, literal, predicate

if TYPE_CHECKING:
    from torch import nn

_TUTORIAL = "https://huggingface.co/docs/diffusers/tutorials/fast_diffusion"
_TORCHAO = Requirement(module="torchao", instead="quant=none")

_DEAD_AFTER_FUSION = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}


class Granularity(Enum):
    """How many scales fp8 keeps: one a tensor, or one a row."""

    per_tensor = "per_tensor"
    per_row = "per_row"


@dataclass
class NoQuant(Option):
    """Weights as they are."""

    slot: ClassVar[str] = "quant"


@dataclass
class Quant(Option, Pass):
    """Base of the options.

    min_in_features: linear layers with fewer inputs stay as they are.
    skip_shapes: [in, out] of linear layers that stay as they are.
    skip_on_cuda: parts of names of layers that stay as they are on CUDA, where int8 products need more than 16 rows
        and layers that see one row a picture (time and size embeddings) would raise under compile.
    """

    slot: ClassVar[str] = "quant"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    requires: ClassVar[tuple[Requirement, ...]] = (_TORCHAO,)
    source: ClassVar[str | None] = _TUTORIAL

    min_in_features: int = 17
    skip_shapes: list[list[int]] = field(default_factory=list)
    skip_on_cuda: list[str] = field(default_factory=list)

    def components(self, setting: Setting) -> tuple[str, ...]:
        """Denoiser and VAE, but no VAE that each call converts to fp32: quantized weights can't follow."""
        left_out = setting.vae.name if setting.vae and upcasts_vae(setting) else None
        return tuple(name for name in setting.names() if name != left_out)

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        if self.min_in_features < 1:
            yield Problem(
                f"quant.min_in_features={self.min_in_features}",
                "must be at least 1",
                "quant.min_in_features=1",
            )
        for shape in self.skip_shapes:
            if len(shape) != 2:
                shown = f"[{','.join(map(str, shape))}]"
                yield Problem(
                    f"quant.skip_shapes=[{shown}]",
                    "is not a pair of a layer's inputs and outputs",
                    "quant.skip_shapes=[[640,320]], or []",
                )
        if upcasts_vae(setting):
            yield Notice(
                setting.chosen("quant"),
                "leaves the VAE as it is: every call converts it to fp32 (force_upcast), and "
                "quantized weights can't be; precision=bf16 includes it",
            )

    def torchao_config(self) -> Any:
        """What torchao's `quantize_` is told. `set_inductor_config=False`: it would change global flags."""
        raise TypeError(f"{type(self).__name__} has no torchao_config()")

    def written_config(self, script: Script) -> str:
        """The line of a plain script that calls the same `config`. Raises ScriptError."""
        raise ScriptError(
            self.key,
            f"{type(self).__name__} has no written_config(), which would say how",
            "quant=none, or another option of quant",
        )

    def chooses(self, module: nn.Module, name: str, device: str) -> bool:
        """Whether a module is a linear layer that this option quantizes."""
        from torch import nn

        if not isinstance(module, nn.Linear) or module.in_features < self.min_in_features:
            return False
        if [module.in_features, module.out_features] in [list(pair) for pair in self.skip_shapes]:
            return False
        return device != "cuda" or not any(part in name for part in self.skip_on_cuda)

    def prepare_component(self, part: nn.Module) -> int:
        """Change a component before its linear layers are quantized; returns how many layers changed."""
        return 0

    def apply(self, pipeline: Any, context: Context) -> Effect:
        from torchao.quantization import quantize_

        counts: dict[str, int] = {}
        left_out = swapped = 0
        for name, part in context.parts(pipeline, self.components(context.setting)).items():
            swapped += self.prepare_component(part)
            dead = dead_projections(part)
            chosen = {
                path
                for path, module in part.named_modules()
                if self.chooses(module, path, context.device)
            }
            left_out += len(chosen & dead)
            chosen -= dead
            before = _weight_types(part)
            quantize_(part, self.torchao_config(), filter_fn=_among(chosen))
            after = _weight_types(part)
            counts[name] = sum(after[path] is not before[path] for path in after)
        details: dict[str, Any] = {
            "components": counts,
            "dead_projections_left_out": left_out,
            "convolutions_swapped": swapped,
        }
        return Effect(self.key, sum(counts.values()), "linears", details=details)

    def script(self, script: Script, setting: Setting) -> None:
        """Projections that fusing replaced are quantized as well there: nothing uses them any more."""
        script.use("torch")
        script.use("torchao.quantization", "quantize_")
        parts = script.called(self.key, self.components(setting))
        part = parts[0] if len(parts) == 1 else "part"
        body = [
            *self.written_preparation(script, part),
            f"quantize_({part}, config, filter_fn=is_quantized)",
        ]
        if len(parts) > 1:
            body = [f"for part in ({', '.join(parts)}):", *(f"    {line}" for line in body)]
        script.define(*self._written_filter(setting.device))
        script.then(self.written_config(script), *body)

    def written_preparation(self, script: Script, part: str) -> list[str]:
        """What `prepare_component` does to a part, as the script calls it."""
        return []

    def _written_filter(self, device: str) -> Iterator[str]:
        conditions = [
            "isinstance(module, torch.nn.Linear)",
            f"module.in_features >= {self.min_in_features}",
        ]
        if self.skip_shapes:
            shapes = dict.fromkeys(literal(tuple(pair)) for pair in self.skip_shapes)
            what = "# Inputs and outputs of linear layers that stay as they are."
            yield f"{what}\n{bracketed('SKIPPED_SHAPES = {', shapes, '}')}"
            conditions.append("(module.in_features, module.out_features) not in SKIPPED_SHAPES")
        if self.skip_on_cuda and device == "cuda":
            yield bracketed("SKIPPED_NAMES = [", map(literal, self.skip_on_cuda), "]")
            conditions.append("not any(part in name for part in SKIPPED_NAMES)")
        yield predicate("is_quantized", conditions)


def _among(paths: set[str]) -> Callable[[Any, str], bool]:
    return lambda module, path: path in paths


def _weight_types(part: nn.Module) -> dict[str, type]:
    from torch import nn

    return {p: type(m.weight) for p, m in part.named_modules() if isinstance(m, nn.Linear)}


def dead_projections(part: nn.Module) -> set[str]:
    """Paths of the projections that fusing replaced but kept: no forward uses them any more."""
    dead = set()
    for path, module in part.named_modules():
        if getattr(module, "fused_projections", False):
            for joined, replaced in _DEAD_AFTER_FUSION.items():
                if hasattr(module, joined):
                    dead |= {f"{path}.{name}" if path else name for name in replaced}
    return dead


@dataclass
class Int8(Quant):
    """Int8 weights and activations, each activation row's scale taken while it runs.

    swap_conv: turn 1x1 convolutions (stride 1, no padding, no groups) into linear layers first.
    swap_channels: only convolutions that have one of these numbers of input or output channels.
    """

    key: ClassVar[str] = "quant.int8"
    does: ClassVar[str] = "dynamic int8 weights and activations in chosen linear layers"

    swap_conv: bool = True
    swap_channels: list[int] = field(default_factory=list)

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        yield from super().check(setting)
        if setting.run.choices["compile"] == "none":
            yield Notice(
                "quant=int8",
                "without compile int8 is usually slower than no quantization, on a GPU by far; "
                "compile=regional is the cheapest",
            )

    def torchao_config(self) -> Any:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)

    def swaps(self, module: nn.Module) -> bool:
        """Whether a module is a convolution that is a linear layer in all but name."""
        from torch import nn

        return (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and module.stride == (1, 1)
            and module.padding in ((0, 0), 0)
            and module.groups == 1
            and bool({module.in_channels, module.out_channels} & set(self.swap_channels))
        )

    def prepare_component(self, part: nn.Module) -> int:
        if not self.swap_conv:
            return 0
        from torchao.quantization import swap_conv2d_1x1_to_linear

        count = sum(self.swaps(module) for module in part.modules())
        if count:
            swap_conv2d_1x1_to_linear(part, lambda module, path: self.swaps(module))
        return count

    def written_config(self, script: Script) -> str:
        return _written(script, "Int8DynamicActivationInt8WeightConfig")

    def written_preparation(self, script: Script, part: str) -> list[str]:
        if not (self.swap_conv and self.swap_channels):
            return []
        conditions = (
            "isinstance(module, torch.nn.Conv2d)",
            "module.kernel_size == (1, 1)",
            "module.stride == (1, 1)",
            "module.padding in ((0, 0), 0)",
            "module.groups == 1",
            _any_of(self.swap_channels, "(module.in_channels, module.out_channels)"),
        )
        script.define(predicate("is_swapped", conditions))
        script.use("torchao.quantization", "swap_conv2d_1x1_to_linear")
        return [f"swap_conv2d_1x1_to_linear({part}, is_swapped)"]


@dataclass
class Int8WeightOnly(Quant):
    """Int8 weights, arithmetic in the run's precision: saves memory, rarely time."""

    key: ClassVar[str] = "quant.int8_weight_only"
    does: ClassVar[str] = "int8 weights in chosen linear layers"

    def torchao_config(self) -> Any:
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(set_inductor_config=False)

    def written_config(self, script: Script) -> str:
        return _written(script, "Int8WeightOnlyConfig")


@dataclass
class Fp8(Quant):
    """fp8 (e4m3) weights and activations. granularity: one scale a tensor, or one a row (bf16 only)."""

    key: ClassVar[str] = "quant.fp8"
    does: ClassVar[str] = "dynamic fp8 weights and activations in chosen linear layers"
    requires: ClassVar[tuple[Requirement, ...]] = (
        Requirement(
            device="cuda",
            capability=(8, 9),
            instead="quant=int8",
            source="https://github.com/pytorch/ao/tree/main/torchao/quantization",
        ),
        _TORCHAO,
    )

    granularity: Granularity = Granularity.per_row

    def check(self, setting: Setting) -> Iterator[Problem | Notice]:
        yield from super().check(setting)
        per_row = self.granularity is Granularity.per_row
        if per_row and setting.run.choices["precision"] != "bf16":
            yield Problem(
                "quant=fp8",
                f"one scale a row works in bf16 only; {setting.chosen('precision')}",
                "precision=bf16, or quant.granularity=per_tensor",
            )
        if setting.run.choices["compile"] == "none":
            yield Notice("quant=fp8", "without compile fp8 is usually slower than no quantization")

    def torchao_config(self) -> Any:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            PerRow,
            PerTensor,
        )

        per_row = self.granularity is Granularity.per_row
        return Float8DynamicActivationFloat8WeightConfig(
            granularity=PerRow() if per_row else PerTensor(), set_inductor_config=False
        )

    def written_config(self, script: Script) -> str:
        kind = "PerRow" if self.granularity is Granularity.per_row else "PerTensor"
        script.use("torchao.quantization", kind)
        name = "Float8DynamicActivationFloat8WeightConfig"
        return _written(script, name, f"granularity={kind}()")


@dataclass
class Fp8WeightOnly(Quant):
    """fp8 (e4m3) weights, arithmetic in the run's precision: saves memory, rarely time."""

    key: ClassVar[str] = "quant.fp8_weight_only"
    does: ClassVar[str] = "fp8 weights in chosen linear layers"

    def torchao_config(self) -> Any:
        from torchao.quantization import Float8WeightOnlyConfig

        return Float8WeightOnlyConfig(set_inductor_config=False)

    def written_config(self, script: Script) -> str:
        return _written(script, "Float8WeightOnlyConfig")


def _any_of(wanted: Iterable[int], sides: str) -> str:
    """The condition that one of these numbers is among the sides."""
    first, *rest = map(literal, dict.fromkeys(wanted))
    return (
        f"not {{{', '.join([first, *rest])}}}.isdisjoint({sides})"
        if rest
        else f"{first} in {sides}"
    )


def _written(script: Script, name: str, *arguments: str) -> str:
    """The line that makes torchao's configuration of this name."""
    script.use("torchao.quantization", name)
    return call(f"config = {name}", *arguments, "set_inductor_config=False")


OPTIONS: dict[str, type[Option]] = {
    "none": NoQuant,
    "int8": Int8,
    "int8_weight_only": Int8WeightOnly,
    "fp8": Fp8,
    "fp8_weight_only": Fp8WeightOnly,
}
