"""`precision`: the number format of weights and arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fastdiff.errors import MachineProblem
from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.script import Script

_GUIDE = "https://huggingface.co/docs/diffusers/optimization/fp16"
_TF32_NEEDS = base.Requirement(
    device="cuda", capability=(8, 0), instead="precision=bf16, or precision=fp32", source=_GUIDE
)

_UPCASTS = re.compile(r"StableDiffusionXL|SDXL|Kolors|AuraFlow|StableDiffusionUpscale")
"""Pipelines that heed a VAE's `force_upcast`: in fp16 they decode in fp32. The others ignore it."""


def upcasts_vae(setting: base.Setting) -> bool:
    """Whether every call of this run moves the VAE to fp32 before it decodes, because the VAE asks for it.

    Where a config doesn't say, AutoencoderKL's own default is to ask.
    """
    vae = setting.vae
    if not (vae and setting.facts and setting.run.choices["precision"] == "fp16"):
        return False
    if not vae.config or not _UPCASTS.search(setting.facts.pipeline):
        return False
    return bool(vae.config.get("force_upcast", vae.class_name == "AutoencoderKL"))


class Tf32Flag(base.Pass):
    """Lets CUDA's fp32 matrix products run in TensorFloat-32. Process-wide, so it is said.

    Only the legacy setter: once the newer `fp32_precision` has been set, reading this one raises.
    """

    key = "precision.tf32"
    stage = base.Stage.FLAGS
    fidelity = base.Fidelity.MODEL
    does = "allow TensorFloat-32 in CUDA matrix products, for the whole process"
    source = _GUIDE

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return ()

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = True
        return Effect(self.key, 1, "matmul.allow_tf32", flag=True)

    def script(self, script: Script, setting: base.Setting) -> None:
        script.use("torch")
        script.flag("torch.backends.cuda.matmul.allow_tf32 = True")


@dataclass
class Precision(base.Option, base.Pass):
    """Base of the options: every component is loaded in one dtype, named as torch names it."""

    slot = "precision"
    stage = base.Stage.LOAD
    fidelity = base.Fidelity.MODEL
    source = _GUIDE
    dtype: ClassVar[str] = "float32"

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"load every component in {self.dtype}"

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return setting.weighty()

    def prepare(self, loading: base.Loading) -> None:
        import torch

        loading.dtype = getattr(torch, self.dtype)

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        import torch

        wanted = getattr(torch, self.dtype)
        weights = {
            id(weight): weight
            for part in pipeline.components.values()
            if isinstance(part, torch.nn.Module)
            for inner in part.modules()
            for weight in inner._parameters.values()
            if weight is not None
        }
        changed = sum(weight.dtype == wanted for weight in weights.values())
        details: dict[str, Any] = {"of": len(weights)}
        but = []
        if changed < len(weights):  # transformers keeps some layers in fp32, T5's for one
            but.append(f"{len(weights) - changed} kept in another format by the model")
        vae = getattr(pipeline, "vae", None)
        if (
            wanted == torch.float16
            and vae is not None
            and getattr(vae.config, "force_upcast", False)
            and hasattr(pipeline, "upcast_vae")
        ):
            details["vae_decode_dtype"] = "float32"
            but.append("but the VAE decodes in float32 (force_upcast)")
        if but:
            details["summary"] = ", ".join(but)
        return Effect(self.key, changed, f"weights in {self.dtype}", details=details)

    def script(self, script: Script, setting: base.Setting) -> None:
        script.dtype = self.dtype


@dataclass
class Fp32(Precision):
    key = "precision.fp32"


@dataclass
class Tf32(Precision):
    key = "precision.fp32"
    requires = (_TF32_NEEDS,)

    def passes(self) -> tuple[base.Pass, ...]:
        return (Tf32Flag(), self)


@dataclass
class _Half(Precision):
    """tf32: also allow TensorFloat-32 for what stays in fp32."""

    tf32: bool = False

    def passes(self) -> tuple[base.Pass, ...]:
        return (Tf32Flag(), self) if self.tf32 else (self,)

    def check(self, setting: base.Setting) -> base.Findings:
        if self.tf32:
            problem = _TF32_NEEDS.unmet("precision.tf32=true", setting)
            if problem:
                yield replace(problem, instead="precision.tf32=false")


@dataclass
class Fp16(_Half):
    key = "precision.fp16"
    dtype: ClassVar[str] = "float16"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        if setting.device == "cpu":
            yield base.Notice(
                "precision=fp16", "a CPU computes fp16 slowly; bf16 or fp32 is usually faster"
            )
        if upcasts_vae(setting):
            yield base.Notice(
                "precision=fp16",
                "this model's VAE asks for fp32 (force_upcast), so every call decodes in fp32; "
                "precision=bf16 decodes in bf16",
            )


@dataclass
class Bf16(_Half):
    key = "precision.bf16"
    dtype: ClassVar[str] = "bfloat16"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        if setting.device == "cpu" and not setting.environment.processor_computes_in("bf16"):
            yield base.Notice(
                "precision=bf16",
                "this processor has no bf16 arithmetic (avx512_bf16, amx_bf16); fp32 may be faster here",
            )
        capability = setting.environment.capability
        if setting.device == "cuda" and capability and capability < (8, 0):
            yield MachineProblem(
                "precision=bf16",
                "this GPU has no bf16 arithmetic (compute capability below 8.0)",
                "precision=fp16",
                _GUIDE,
            )


OPTIONS: dict[str, type[base.Option]] = {"fp32": Fp32, "tf32": Tf32, "fp16": Fp16, "bf16": Bf16}
