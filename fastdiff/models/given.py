"""A pipeline that its user built: what is known of it, read from itself, and what was done to it already."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastdiff.config import fingerprint
from fastdiff.models.content import weight_bytes
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.inspection import learn
from fastdiff.models.reading import pipeline_config
from fastdiff.models.sources import Model

if TYPE_CHECKING:
    import torch
    from torch import nn


class Given(Model):
    """A live pipeline as a model. It is no option of the slot, because no file can name it.

    keeps_dtype: leave its weights in the formats that they have, whatever `precision` calls the run.
    device: where it is to compute, as the plan calls it.
    """

    def __init__(self, pipeline: Any, *, keeps_dtype: bool, device: str) -> None:
        super().__init__()
        # No fields of the dataclass: a run is copied and written down, and a pipeline isn't.
        self._pipeline, self._keeps_dtype, self._device = pipeline, keeps_dtype, device

    @property
    def title(self) -> str:
        return f"this {type(self._pipeline).__name__}"

    def facts(self) -> ModelFacts:
        learn(self._pipeline)
        return read_pipeline(self._pipeline)

    def identity(self) -> dict[str, Any]:
        """Its classes and configurations. Its weights have no file that could be named."""
        facts = self.facts()
        parts = {name: fingerprint(part.config) for name, part in facts.components.items()}
        return {"pipeline": facts.pipeline, "components": parts}

    def load(self, dtype: torch.dtype | None, parts: Mapping[str, Any]) -> Any:
        """The very pipeline, with these parts in the place of its own; it stays where it is unless it is to compute on the CPU."""
        pipeline = self._pipeline
        if self._device == "cpu" and any(d.type != "cpu" for d in devices_of(pipeline)):
            pipeline.to("cpu")
        if parts:
            pipeline.register_modules(**parts)
        if dtype is not None and not self._keeps_dtype:
            for name, module in modules_of(pipeline).items():
                if name not in parts:
                    _cast(module, dtype)
        return pipeline


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """Its components that have weights, by name."""
    from torch import nn

    parts = pipeline.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module)}


def read_pipeline(pipeline: Any) -> ModelFacts:
    """What a live pipeline is: the same that its files say once it is saved, but for the dtype of its weights."""
    from torch import nn

    components = {}
    for name, part in pipeline.components.items():
        part = getattr(part, "_orig_mod", part)  # what a compiled module was made from
        kind = type(part)
        library = kind.__module__.partition(".")[0]
        if isinstance(part, nn.Module):
            weights = list(part.parameters())
            sizes = sum(map(weight_bytes, weights)), sum(w.numel() for w in weights)
            components[name] = Component(name, library, kind.__name__, *sizes, _config(part))
        elif kind.__name__.endswith("Scheduler"):
            components[name] = Component(name, library, kind.__name__, 0, 0, _config(part))
    return ModelFacts(type(pipeline).__name__, components, pipeline_config(_config(pipeline)))


def _config(part: Any) -> dict[str, object]:
    """A component's configuration as a JSON file would hold it; {} if it has none."""
    config: Any = getattr(part, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return {}
    plain: dict[str, object] = json.loads(json.dumps(dict(config), default=str))
    return plain


def devices_of(pipeline: Any) -> set[torch.device]:
    """Where its weights are."""
    modules = modules_of(pipeline).values()
    return {weight.device for module in modules for weight in module.parameters()}


def precision_of(pipeline: Any) -> str | None:
    """The option of `precision` whose format its denoiser's weights have; None for any other format."""
    denoiser = read_pipeline(pipeline).denoiser
    modules = modules_of(pipeline)
    module = modules.get(denoiser.name) if denoiser else next(iter(modules.values()), None)
    weights = module.parameters() if module is not None else ()
    formats = {str(w.dtype) for w in weights if w.is_floating_point() and w.dtype.itemsize > 1}
    options = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}
    # Where some layers were kept in fp32, the format is the one of the others.
    return next((option for dtype, option in options.items() if dtype in formats), None)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Weights and buffers in another format, as from_pretrained would have loaded them."""
    import torch

    kept = _kept_in_float32(module, dtype)
    for path, part in module.named_modules():
        for key, tensor in chain(part._parameters.items(), part._buffers.items()):
            if tensor is None or not tensor.is_floating_point():
                continue
            names = {*path.split("."), key}
            tensor.data = tensor.data.to(torch.float32 if names & kept else dtype)


def _kept_in_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """Names of the layers that a model's class wants in fp32 whatever the others are in.

    transformers keeps those of one list in fp16 only, and has another list for fp16 and bf16.
    """
    import torch

    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    strict = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    from_transformers = type(module).__module__.startswith("transformers.")
    if from_transformers and dtype is not torch.float16:
        kept = set()
    return kept | strict


class Done(Enum):
    """What may have been done to a component before fastdiff sees it. The value says so after the component's name."""

    FUSED = "has joined projections"
    QUANTIZED = "has quantized weights"
    CAST = "casts its weights layer by layer"
    COMPILED = "is compiled"
    ADAPTED = "has an adapter that isn't fused into its weights"
    OFFLOADED = "is brought to its device while it computes"
    WRAPPED = "has something around its forward"


def done_to(module: nn.Module) -> set[Done]:
    """What a component shows of what was done to it. The order of weights in memory and attention processors show nothing."""
    found: set[Done] = set()
    for part in module.modules():
        found |= set(_signs(part))
    return found


def _signs(part: nn.Module) -> Iterator[Done]:
    import torch

    attributes = vars(part)
    hooks = getattr(attributes.get("_diffusers_hook"), "hooks", {})
    compiled = type(part).__name__ == "OptimizedModule"
    if getattr(part, "fused_projections", False):
        yield Done.FUSED
    for weight in part.parameters(recurse=False):
        is_small = weight.dtype.itemsize == 1 and "layerwise_casting" not in hooks
        if is_small or type(weight.data) is not torch.Tensor:
            yield Done.QUANTIZED
    if compiled or part._compiled_call_impl is not None:
        yield Done.COMPILED
    adapters = sys.modules.get("peft.tuners.tuners_utils")
    if adapters is not None and isinstance(part, adapters.BaseTunerLayer):
        yield Done.ADAPTED
    for name in hooks:
        if name == "layerwise_casting":
            yield Done.CAST
        else:
            yield Done.OFFLOADED if "offload" in name else Done.WRAPPED
    if "_hf_hook" in attributes:
        yield Done.OFFLOADED
    elif {"forward", "decode"} & attributes.keys() and not (hooks or compiled):
        yield Done.WRAPPED


_DEAD_AFTER_FUSION = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}


def dead_projections(part: nn.Module) -> set[str]:
    """Paths of the projections that fusing replaced but kept: no forward uses them any more."""
    dead = set()
    for path, module in part.named_modules():
        if getattr(module, "fused_projections", False):
            for joined, replaced in _DEAD_AFTER_FUSION.items():
                if hasattr(module, joined):
                    dead |= {f"{path}.{name}" if path else name for name in replaced}
    return dead
