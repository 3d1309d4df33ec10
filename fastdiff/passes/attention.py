"""`attention`: which implementation computes softmax(QK^T)V."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from fastdiff.errors import MachineProblem, NoEffectError, Problem, RunError
from fastdiff.models.tables import names
from fastdiff.passes import base
from fastdiff.passes.effects import Effect, Observed, Pending
from fastdiff.passes.wrapping import around_forward
from fastdiff.script import Script

_SDPA = "https://pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html"
_RULES = "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp"
_TUTORIAL = "https://huggingface.co/docs/diffusers/tutorials/fast_diffusion"


_HIDDEN = "could not be seen: the profiler recorded nothing of the GPU"


@dataclass(frozen=True)
class SeenKernels(Pending):
    """Tells which kernels ran in one denoiser call.

    wanted: must be among them. The plain formula (`math`) may also be missing altogether where something was compiled,
        because a compiler writes it out as matrix products; another kernel in its place is an error all the same. Nor is
        it an error where the profiler can't see the GPU at all.
    needed: that no kernel was seen at all is an effect missing, not just worth saying.
    """

    key: str
    wanted: str | None = None
    processors: int | None = None
    needed: bool = True

    def effect(self, observed: Observed) -> Effect:
        seen = dict(observed.kernels)
        hidden = not seen and observed.kernels_hidden
        inlined = not seen and observed.graphs > 0
        if hidden and self.processors is None:
            return Effect(self.key, 0, _HIDDEN, flag=True, details={"kernels": {}})
        if self.wanted and self.wanted not in seen and (seen or self.wanted != "math"):
            ran = ", ".join(seen) or "no attention kernel that the profiler knows"
            raise NoEffectError(
                f"{self.key}: asked for the {self.wanted} kernel, but one denoiser call ran {ran}; "
                "instead: attention=sdpa, which lets PyTorch choose"
            )
        words = ", ".join(f"{count} {name}" for name, count in seen.items())
        unseen = "inlined by the compiler" if inlined else "no attention kernel seen"
        unseen = _HIDDEN if hidden else unseen
        details = {"kernels": seen, "summary": words or unseen}
        if self.processors is not None:
            return Effect(self.key, self.processors, "processors", details=details)
        if inlined or not (seen or self.needed):
            return Effect(self.key, 0, unseen, flag=True, details=details)
        if not seen:
            return Effect(self.key, 0, "attention kernels seen", details={"kernels": seen})
        return Effect(self.key, sum(seen.values()), "kernel calls a step", details=details)


@dataclass
class Attention(base.Option, base.Pass):
    """Base of the options; works on the denoiser alone unless it says more."""

    slot = "attention"
    stage = base.Stage.ATTENTION
    fidelity = base.Fidelity.EXACT

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return (setting.denoiser_name,)


@dataclass
class MathAttention(Attention):
    """The documents' baseline: attention as two matrix products and a softmax.

    `set_default_attn_processor()` would restore the class's default, which is SDPA where torch has it; so the plain
    processor is set by name, on the denoiser and on the VAE, and counted.
    """

    key = "attention.math"
    does = "plain attention processors (no fused kernel), as in the documents' baseline"
    source = _TUTORIAL
    conflicts = (
        base.Conflict(
            "qkv=fused",
            "can't be combined with qkv=fused: fusing replaces the attention processor",
            "qkv=separate, or attention=sdpa_math",
        ),
    )

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return tuple(
            part.name for part in (setting.denoiser, setting.vae) if part and part.plain_attention
        )

    def check(self, setting: base.Setting) -> base.Findings:
        part = setting.denoiser
        if part and not (part.facts and part.facts.default_attention):
            reason = f"{part.class_name} has no exchangeable default attention processors"
            yield Problem(self.choice, reason, "attention=sdpa_math")
        elif part and not part.plain_attention:
            reason = f"{part.class_name} needs attention processors of its own here, which the plain one can't replace"
            yield Problem(self.choice, reason, "attention=sdpa_math")

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        from diffusers.models.attention_processor import AttnProcessor

        count = 0
        for part in self.parts(pipeline, context).values():
            part.set_attn_processor(AttnProcessor())
            count += sum(type(p) is AttnProcessor for p in part.attn_processors.values())
        return SeenKernels(self.key, processors=count)

    def script(self, script: Script, setting: base.Setting) -> None:
        script.use("diffusers.models.attention_processor", "AttnProcessor")
        parts = script.called(self.key, self.components(setting))
        script.then(*(f"{part}.set_attn_processor(AttnProcessor())" for part in parts))


@dataclass
class Sdpa(Attention):
    """PyTorch's scaled_dot_product_attention with the kernel that PyTorch picks; diffusers' default."""

    key = "attention.sdpa"
    does = "scaled_dot_product_attention, the kernel chosen by PyTorch"
    source = _TUTORIAL

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        return SeenKernels(self.key, needed=False)  # a model's attention may be none that is known

    def script(self, script: Script, setting: base.Setting) -> None:
        """Nothing: it is diffusers' default."""


_NO_KERNEL = re.compile("No available kernel|No viable backend")
"""What SDPA says where none of the allowed kernels takes its inputs."""

_MASKED = names("attends_with_a_mask")
"""Denoisers whose attention has a mask in every call."""


@dataclass
class SdpaBackend(Attention):
    """Base of the options that allow one SDPA kernel alone, around each call of the denoiser."""

    stage = base.Stage.CALL
    source = _SDPA
    backend: ClassVar[str]  # torch's name
    kernel: ClassVar[str]  # the profiler's name, as bench/observing.py gives it

    @property
    def does(self) -> str:  # type: ignore[override]
        return f"allow only SDPA's {self.kernel} kernel around each denoiser call"

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = getattr(SDPBackend, self.backend)

        @contextmanager
        def only() -> Iterator[None]:
            try:
                with sdpa_kernel(backend):
                    yield
            except RuntimeError as error:
                if not _NO_KERNEL.search(str(error)):
                    raise
                raise RunError(
                    f"{self.key}: the {self.kernel} kernel can't compute this model's attention here, for its head "
                    "dimensions, its number format or its masks\n"
                    "  instead: attention=sdpa, which lets PyTorch choose"
                ) from error

        for part in self.parts(pipeline, context).values():
            around_forward(part, only)
        return SeenKernels(self.key, wanted=self.kernel)

    def script(self, script: Script, setting: base.Setting) -> None:
        script.use("torch.nn.attention", "SDPBackend", "sdpa_kernel")
        only = f"sdpa_kernel(SDPBackend.{self.backend})"  # a context that is a decorator too
        parts = script.called(self.key, self.components(setting))
        script.then(*(f"{part}.forward = {only}({part}.forward)" for part in parts))


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


_FLASH_ON_CUDA = base.Requirement(
    device="cuda",
    capability=(8, 0),
    instead="attention=sdpa_efficient, or attention=sdpa",
    source=_SDPA,
)


@dataclass
class SdpaFlash(SdpaBackend):
    key = "attention.sdpa_flash"
    backend: ClassVar[str] = "FLASH_ATTENTION"
    kernel: ClassVar[str] = "flash"

    def check(self, setting: base.Setting) -> base.Findings:
        if setting.device == "mps":
            reason = "mps has no kernel but the plain formula; device=mps"
            yield MachineProblem(self.choice, reason, "attention=sdpa", _SDPA)
        if setting.device != "cuda":
            return
        if old := _FLASH_ON_CUDA.unmet(self.choice, setting):
            yield old
        elif setting.run.choices["precision"] in ("fp32", "tf32"):
            reason = (
                f"CUDA's flash kernel computes in fp16 or bf16 only; {setting.chosen('precision')}"
            )
            instead = "precision=bf16, or attention=sdpa_efficient"
            yield Problem(self.choice, reason, instead, _SDPA)
        yield from self._shapes(setting)

    def _shapes(self, setting: base.Setting) -> Iterator[Problem]:
        """What CUDA's flash kernel doesn't take of a model's attention."""
        part, instead = setting.denoiser, "attention=sdpa_efficient, or attention=sdpa"
        if part and (long := sorted(dim for dim in part.head_dims if dim > 256)):
            reason = f"takes head dimensions up to 256, and {part.class_name} has {_listed(long)}"
            yield Problem(self.choice, f"CUDA's flash kernel {reason}", instead, _RULES)
        if part and part.class_name in _MASKED:
            reason = f"takes no mask, and {part.class_name}'s attention has one"
            yield Problem(self.choice, f"CUDA's flash kernel {reason}", instead, _RULES)


@dataclass
class SdpaEfficient(SdpaBackend):
    key = "attention.sdpa_efficient"
    backend: ClassVar[str] = "EFFICIENT_ATTENTION"
    kernel: ClassVar[str] = "efficient"
    requires = (base.Requirement(device="cuda", instead="attention=sdpa", source=_SDPA),)

    def check(self, setting: base.Setting) -> base.Findings:
        """Tensor cores take rows of 16 bytes; in fp32 those of GPUs from Ampere on."""
        half = setting.run.choices["precision"] in ("fp16", "bf16")
        newer = (setting.environment.capability or (0, 0)) >= (8, 0)
        multiple, part = 8 if half else 4 if newer else 1, setting.denoiser
        odd = sorted(dim for dim in part.head_dims if dim % multiple) if part else []
        if part and odd:
            reason = (
                f"its kernel takes head dimensions that are multiples of {multiple} in "
                f"{setting.chosen('precision')}, and {part.class_name} has {_listed(odd)}"
            )
            yield Problem(self.choice, reason, "attention=sdpa", _RULES)


@dataclass
class SdpaCudnn(SdpaBackend):
    key = "attention.sdpa_cudnn"
    backend: ClassVar[str] = "CUDNN_ATTENTION"
    kernel: ClassVar[str] = "cudnn"
    requires = (
        base.Requirement(
            device="cuda",
            capability=(8, 0),
            instead="attention=sdpa",
            source=_SDPA,
        ),
    )

    def check(self, setting: base.Setting) -> base.Findings:
        if setting.run.choices["precision"] in ("fp32", "tf32"):
            reason = f"cuDNN's kernel computes in fp16 or bf16 only; {setting.chosen('precision')}"
            yield Problem(self.choice, reason, "precision=bf16", _SDPA)
        yield from self._head_dims(setting)

    def _head_dims(self, setting: base.Setting) -> base.Findings:
        """cuDNN's rule: multiples of 8 up to 128; up to 256 on Hopper and data-center Blackwell, if it is new enough."""
        part = setting.denoiser
        dims = part.head_dims if part else frozenset()
        choice, name = self.choice, part.class_name if part else ""
        if wrong := sorted(dim for dim in dims if dim > 256 or dim % 8):
            reason = f"takes head dimensions that are multiples of 8, up to 256, and {name} has {_listed(wrong)}"
            yield Problem(choice, f"cuDNN's kernel {reason}", "attention=sdpa", _RULES)
            return
        if not (long := sorted(dim for dim in dims if dim > 128)):
            return
        capability = setting.environment.capability or (0, 0)
        if capability == (9, 0) or capability[0] == 10:
            text = f"{name} has head dimensions of {_listed(long)}, and only cuDNN 9.22 or newer takes more than 128"
            yield base.Notice(choice, text)
        else:
            reason = f"cuDNN's kernel takes head dimensions up to 128 on this GPU, and {name} has {_listed(long)}"
            yield MachineProblem(choice, reason, "attention=sdpa_flash, or attention=sdpa", _RULES)


@dataclass
class SdpaMath(SdpaBackend):
    key = "attention.sdpa_math"
    backend: ClassVar[str] = "MATH"
    kernel: ClassVar[str] = "math"


@dataclass
class Xformers(Attention):
    """Meta's xFormers kernels; older than SDPA and needs its own package."""

    key = "attention.xformers"
    does = "xFormers' memory-efficient attention on denoiser and VAE"
    requires = (
        base.Requirement(device="cuda", instead="attention=sdpa"),
        base.Requirement(module="xformers", instead="attention=sdpa"),
    )
    conflicts = (
        base.Conflict(
            "qkv=fused",
            "can't be combined with qkv=fused: each replaces the attention processor",
            "qkv=separate, or attention=sdpa",
        ),
    )

    def check(self, setting: base.Setting) -> base.Findings:
        part = setting.denoiser
        if part and not (part.facts and part.facts.attention_processors):
            reason = f"{part.class_name} has no exchangeable attention processors"
            yield Problem(self.choice, reason, "attention=sdpa")

    def apply(self, pipeline: Any, context: base.Context) -> Pending:
        pipeline.enable_xformers_memory_efficient_attention()
        parts = self.parts(pipeline, context).values()
        names = [type(p).__name__ for part in parts for p in part.attn_processors.values()]
        return SeenKernels(self.key, processors=sum("XFormers" in name for name in names))

    def script(self, script: Script, setting: base.Setting) -> None:
        script.then("pipe.enable_xformers_memory_efficient_attention()")


OPTIONS: dict[str, type[base.Option]] = {
    "math": MathAttention,
    "sdpa": Sdpa,
    "sdpa_flash": SdpaFlash,
    "sdpa_efficient": SdpaEfficient,
    "sdpa_cudnn": SdpaCudnn,
    "sdpa_math": SdpaMath,
    "xformers": Xformers,
}
