"""`quant`: linear layers with int8 or fp8 weights, by torchao.

Which layers are quantized is data: the keys below, in the option's YAML. What was quantized is counted afterwards on
the weights themselves.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from fastdiff.errors import FastdiffError, MachineProblem, Problem, RunError, named_line
from fastdiff.models.given import dead_projections
from fastdiff.models.rows import fewest_rows, stand_in, without_numbers, without_weights
from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.passes.precision import upcasts_vae
from fastdiff.script import Script, ScriptError, bracketed, call, literal, predicate

if TYPE_CHECKING:
    from torch import nn

_TUTORIAL = "https://huggingface.co/docs/diffusers/tutorials/fast_diffusion"
_TORCHAO = base.Requirement(module="torchao", instead="quant=none")


class Granularity(Enum):
    """How many scales fp8 keeps: one a tensor, or one a row."""

    per_tensor = "per_tensor"
    per_row = "per_row"


@dataclass(frozen=True)
class CudaProducts:
    """What CUDA's matrix products ask of a layer: so many rows at least, inputs and outputs in multiples."""

    rows: int
    multiple: int

    def take(self, module: nn.Linear, rows: int | None) -> bool:
        """rows: the fewest that the layer sees; None where no call reaches it."""
        sides = (module.in_features, module.out_features)
        return not any(side % self.multiple for side in sides) and (rows or self.rows) >= self.rows


@dataclass
class NoQuant(base.Option):
    """Weights as they are."""

    slot = "quant"


@dataclass
class Quant(base.Option, base.Pass):
    """Base of the options.

    min_in_features: linear layers with fewer inputs stay as they are.
    skip_shapes: [in, out] of linear layers that stay as they are.
    """

    slot = "quant"
    stage = base.Stage.QUANTIZE
    fidelity = base.Fidelity.LOSSY
    requires: ClassVar[tuple[base.Requirement, ...]] = (_TORCHAO,)
    source = _TUTORIAL
    on_cuda: ClassVar[CudaProducts | None] = None
    """What layers must be like there; None asks nothing."""
    torchao_class: ClassVar[str | None] = None
    """Name of torchao's configuration; None where `torchao_config` and `written_config` say it themselves."""

    min_in_features: int = 17
    skip_shapes: list[list[int]] = field(default_factory=list)

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        """Denoiser and VAE, but no VAE that each call converts to fp32: quantized weights can't follow."""
        left_out = setting.vae.name if setting.vae and upcasts_vae(setting) else None
        return tuple(name for name in setting.names() if name != left_out)

    def check(self, setting: base.Setting) -> base.Findings:
        if self.min_in_features < 1:
            yield self.wrong("min_in_features", "must be at least 1", "quant.min_in_features=1")
        for shape in self.skip_shapes:
            if len(shape) != 2:
                shown = f"[{','.join(map(str, shape))}]"
                reason = "is not a pair of a layer's inputs and outputs"
                instead = "quant.skip_shapes=[[640,320]], or []"
                yield Problem(f"quant.skip_shapes=[{shown}]", reason, instead)
        if upcasts_vae(setting):
            yield base.Notice(
                setting.chosen("quant"),
                "leaves the VAE as it is: every call converts it to fp32 (force_upcast), and "
                "quantized weights can't be; precision=bf16 includes it",
            )

    def torchao_config(self) -> Any:
        """What torchao's `quantize_` is told. `set_inductor_config=False`: it would change global flags."""
        from torchao import quantization

        if self.torchao_class is None:
            raise TypeError(f"{type(self).__name__} has no torchao_config()")
        given = {key: getattr(quantization, kind)() for key, kind in self.kinds.items()}
        return getattr(quantization, self.torchao_class)(**given, set_inductor_config=False)

    @property
    def kinds(self) -> Mapping[str, str]:
        """What else the configuration is given, by its argument: names of torchao's classes."""
        return {}

    def written_config(self, script: Script) -> str:
        """The line of a plain script that calls the same `config`. Raises ScriptError."""
        if self.torchao_class is None:
            why = f"{type(self).__name__} has no written_config(), which would say how"
            raise ScriptError(self.key, why, "quant=none, or another option of quant")
        script.use("torchao.quantization", self.torchao_class, *self.kinds.values())
        given = (f"{key}={kind}()" for key, kind in self.kinds.items())
        return call(f"config = {self.torchao_class}", *given, "set_inductor_config=False")

    def chooses(self, module: nn.Module) -> bool:
        """Whether a module is a linear layer that this option quantizes."""
        from torch import nn

        if not isinstance(module, nn.Linear) or module.in_features < self.min_in_features:
            return False
        shape = [module.in_features, module.out_features]
        return shape not in [list(pair) for pair in self.skip_shapes]

    def prepare_component(self, part: nn.Module) -> int:
        """Change a component before its linear layers are quantized; returns how many layers changed."""
        return 0

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        """Raises RunError if rows have to be counted and can't be."""
        counts: dict[str, int] = {}
        left_out = swapped = unfit = 0
        parts = self.parts(pipeline, context)
        rows = self._fewest_rows(pipeline, tuple(parts), context)
        for name, part in parts.items():
            swapped += self.prepare_component(part)
            dead = dead_projections(part)
            layers = {path: m for path, m in part.named_modules() if self.chooses(m)}
            left_out += len(layers.keys() & dead)
            layers = {path: layer for path, layer in layers.items() if path not in dead}
            fit = [layer for path, layer in layers.items() if self._fits(layer, path, rows[name])]
            unfit += len(layers) - len(fit)
            before = _weight_types(part)
            self._quantize(fit, context)
            after = _weight_types(part)
            counts[name] = sum(after[path] is not before[path] for path in after)
        details: dict[str, Any] = {
            "components": counts,
            "dead_projections_left_out": left_out,
            "unfit_for_cuda_left_out": unfit,
            "convolutions_swapped": swapped,
        }
        if unfit:
            details["summary"] = f"{unfit} left as they are, for their rows or sides"
        return Effect(self.key, sum(counts.values()), "linears", details=details)

    def _quantize(self, layers: Iterable[nn.Module], context: base.Context) -> None:
        """Layer by layer, on a GPU where there is one: what fits there only when it is quantized still does.

        Weights that an option brings to the device in its own way go back to the host.
        """
        from torchao.quantization import quantize_

        device = "cuda" if context.device == "cuda" else None
        for layer in layers:
            quantize_(layer, self.torchao_config(), filter_fn=lambda *_: True, device=device)
            if device and context.setting.placed_by_option:
                layer.to("cpu")

    def _fits(self, layer: nn.Module, path: str, rows: Mapping[str, int] | None) -> bool:
        """Whether the products of a chosen layer work on the device."""
        if self.on_cuda is None or rows is None:
            return True
        # A swapped convolution lies in what turns its pictures into rows, under this name.
        return self.on_cuda.take(layer, rows.get(path.removesuffix(".mod")))  # type: ignore[arg-type]

    def _fewest_rows(
        self, pipeline: Any, names: tuple[str, ...], context: base.Context
    ) -> dict[str, dict[str, int] | None]:
        """Rows that layers see in a call of this run, by component and path; None where nothing depends on them."""
        if self.on_cuda is None or context.device != "cuda":
            return dict.fromkeys(names)
        draw = context.draw
        assert draw is not None  # the engine says how this run calls its pipeline
        try:
            splits = _splits(context.setting)
            return dict(fewest_rows(pipeline, names, lambda: draw(pipeline), splits))
        except FastdiffError:
            raise
        except Exception as error:  # whatever a class without weights trips over
            raise RunError(
                f"{context.setting.chosen('quant')}: CUDA's int8 products need {self.on_cuda.rows} rows, and those of "
                f"{type(pipeline).__name__}'s layers can't be counted: {named_line(error)}\n"
                "  instead: quant=int8_weight_only, which needs none"
            ) from error

    def script(self, script: Script, setting: base.Setting) -> None:
        """Projections that fusing replaced are quantized as well there: nothing uses them any more."""
        script.use("torch")
        script.use("torchao.quantization", "quantize_")
        parts = script.called(self.key, self.components(setting))
        counted = self.on_cuda is not None and setting.device == "cuda"
        part = parts[0] if len(parts) == 1 else "part"
        body = self.written_preparation(script, part)
        body += _written_call(part, setting, ("rows",) if counted else ())
        if len(parts) > 1:
            body = [f"for part in ({', '.join(parts)}):", *(f"    {line}" for line in body)]
        script.define(*self._written_filter(counted))
        if counted:
            names = [part.removeprefix("pipe.") for part in parts]
            script.then(*_written_counting(script, tuple(names), setting))
            fewest = [f"fewest[{literal(name)}]" for name in names]
            if len(parts) > 1:
                pairs = (f"({part}, {rows})" for part, rows in zip(parts, fewest, strict=True))
                body[0] = f"{bracketed('for part, rows in (', pairs, ')')}:"
            else:
                body.insert(0, f"rows = {fewest[0]}")
        script.then(self.written_config(script), *body)

    def written_preparation(self, script: Script, part: str) -> list[str]:
        """What `prepare_component` does to a part, as the script calls it."""
        return []

    def _written_filter(self, counted: bool) -> Iterator[str]:
        conditions = [
            "isinstance(module, torch.nn.Linear)",
            f"module.in_features >= {self.min_in_features}",
        ]
        if self.skip_shapes:
            shapes = dict.fromkeys(literal(tuple(pair)) for pair in self.skip_shapes)
            what = "# Inputs and outputs of linear layers that stay as they are."
            yield f"{what}\n{bracketed('SKIPPED_SHAPES = {', shapes, '}')}"
            conditions.append("(module.in_features, module.out_features) not in SKIPPED_SHAPES")
        if counted and self.on_cuda:
            least, multiple = self.on_cuda.rows, self.on_cuda.multiple
            conditions += [
                f"module.in_features % {multiple} == module.out_features % {multiple} == 0",
                f'rows.get(name.removesuffix(".mod"), {least}) >= {least}',
            ]
        yield predicate("is_quantized", conditions, *(("rows",) if counted else ()))


def _splits(setting: base.Setting) -> tuple[str, ...]:
    """How this run's VAE divides its work."""
    return tuple(n for n in ("slicing", "tiling") if getattr(setting.run.memory, f"vae_{n}", False))


def _written_call(part: str, setting: base.Setting, first: tuple[str, ...]) -> list[str]:
    """The lines of a script that quantize a part where a run does. first: what the filter takes before a layer."""
    where = 'device="cuda"'
    if setting.device == "cuda" and setting.placed_by_option:
        return [
            f"for name, module in list({part}.named_modules()):",
            f"    if is_quantized({', '.join((*first, 'module', 'name'))}):",
            f"        quantize_(module, config, {where})",
            '        module.to("cpu")',
        ]
    chosen = f"partial(is_quantized, {first[0]})" if first else "is_quantized"
    more = [where] if setting.device == "cuda" else []
    return [call("quantize_", part, "config", f"filter_fn={chosen}", *more)]


def _written_counting(script: Script, names: tuple[str, ...], setting: base.Setting) -> list[str]:
    """The lines of a script that count rows: the very functions that a run counts with, and their call."""
    script.use("typing", "Any")
    script.use("collections.abc", "Callable")
    script.use("copy")
    script.use("functools", "partial")
    script.use("torch.utils", "_pytree")
    for function in (without_weights, without_numbers, stand_in, fewest_rows):
        text = inspect.getsource(function)
        script.define(re.sub(r"^    (import|from) .*\n+", "", text, flags=re.MULTILINE).rstrip())
    drawing = call("lambda: pipe", *script.call)
    splits = _splits(setting)
    more = [f"splits={literal(splits)}"] if splits else []
    return [
        "# Int8 products on CUDA need more than 16 rows; a call without weights tells how many layers see.",
        call("fewest = fewest_rows", "pipe", literal(names), drawing, *more),
    ]


def _weight_types(part: nn.Module) -> dict[str, type]:
    from torch import nn

    return {p: type(m.weight) for p, m in part.named_modules() if isinstance(m, nn.Linear)}


@dataclass
class Int8(Quant):
    """Int8 weights and activations, each activation row's scale taken while it runs.

    On CUDA, layers stay as they are that see 16 rows or fewer in a call of this run (embeddings, modulation), or whose
    inputs and outputs are no multiples of 8: its int8 products take none such.

    swap_conv: turn 1x1 convolutions (stride 1, no padding, no groups) into linear layers first.
    swap_channels: only convolutions that have one of these numbers of input or output channels.
    """

    key = "quant.int8"
    does = "dynamic int8 weights and activations in chosen linear layers"

    torchao_class: ClassVar[str | None] = "Int8DynamicActivationInt8WeightConfig"
    on_cuda: ClassVar[CudaProducts | None] = CudaProducts(rows=17, multiple=8)  # aten::_int_mm

    swap_conv: bool = True
    swap_channels: list[int] = field(default_factory=list)

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        if setting.run.choices["precision"] == "fp16":
            yield base.Notice(
                "quant=int8",
                "in fp16 a product may become infinite from 514 times the largest weight of its row on, because torchao "
                "rounds it before the weights' scale; precision=bf16 has room for it",
            )
        if setting.run.choices["compile"] == "none":
            yield base.Notice(
                "quant=int8",
                "without compile int8 is usually slower than no quantization, on a GPU by far; "
                "compile=regional is the cheapest",
            )

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

    key = "quant.int8_weight_only"
    does = "int8 weights in chosen linear layers"
    torchao_class: ClassVar[str | None] = "Int8WeightOnlyConfig"


@dataclass
class Fp8(Quant):
    """fp8 (e4m3) weights and activations. granularity: one scale a tensor, or one a row (bf16 only)."""

    key = "quant.fp8"
    does = "dynamic fp8 weights and activations in chosen linear layers"
    requires = (
        base.Requirement(
            device="cuda",
            capability=(8, 9),
            instead="quant=int8",
            source="https://github.com/pytorch/ao/tree/main/torchao/quantization",
        ),
        _TORCHAO,
    )

    torchao_class: ClassVar[str | None] = "Float8DynamicActivationFloat8WeightConfig"

    granularity: Granularity = Granularity.per_row

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        per_row = self.granularity is Granularity.per_row
        if per_row and setting.run.choices["precision"] != "bf16":
            reason = f"one scale a row works in bf16 only; {setting.chosen('precision')}"
            instead = "precision=bf16, or quant.granularity=per_tensor"
            yield Problem(self.choice, reason, instead)
        if setting.run.choices["compile"] == "none":
            text = "without compile fp8 is usually slower than no quantization"
            yield base.Notice(self.choice, text)

    @property
    def kinds(self) -> Mapping[str, str]:
        per_row = self.granularity is Granularity.per_row
        return {"granularity": "PerRow" if per_row else "PerTensor"}


@dataclass
class Fp8WeightOnly(Quant):
    """fp8 (e4m3) weights, arithmetic in the run's precision: saves memory, rarely time."""

    key = "quant.fp8_weight_only"
    does = "fp8 weights in chosen linear layers"
    torchao_class: ClassVar[str | None] = "Float8WeightOnlyConfig"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        choice, compiles = setting.chosen("quant"), setting.run.choices["compile"] != "none"
        if setting.device == "mps":
            reason = "mps has no fp8; device=mps"
            yield MachineProblem(choice, reason, "quant=int8_weight_only", _TUTORIAL)
        capability = setting.environment.capability
        old_gpu = setting.device == "cuda" and capability is not None and capability < (8, 9)
        if old_gpu and compiles and _older(setting.environment.versions.get("torch"), (2, 13)):
            yield MachineProblem(
                choice,
                f"can't be combined with {setting.chosen('compile')} here: Triton takes no fp8 of this kind below "
                "compute capability 8.9, and torch reads it as bytes from 2.13 on",
                "compile=none, quant=int8_weight_only, or torch 2.13",
                "https://github.com/pytorch/pytorch/issues/167082",
            )


def _older(version: str | None, than: tuple[int, int]) -> bool:
    """Whether a version is known and comes before another."""
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < than


def _any_of(wanted: Iterable[int], sides: str) -> str:
    """The condition that one of these numbers is among the sides."""
    first, *rest = map(literal, dict.fromkeys(wanted))
    return (
        f"not {{{', '.join([first, *rest])}}}.isdisjoint({sides})"
        if rest
        else f"{first} in {sides}"
    )


OPTIONS: dict[str, type[base.Option]] = {
    "none": NoQuant,
    "int8": Int8,
    "int8_weight_only": Int8WeightOnly,
    "fp8": Fp8,
    "fp8_weight_only": Fp8WeightOnly,
}
