"""Attention: which kernels really run, on which parts, and that nothing outside the call changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdiff.errors import NoEffectError, RunError
from fastdiff.models.facts import Component
from fastdiff.models.sources import Shapes
from fastdiff.passes.attention import SdpaCudnn, SdpaEfficient, SeenKernels
from fastdiff.passes.base import Context
from fastdiff.passes.effects import Observed

BLOCKS = {"unet": 14, "vae": 2}
"""Attention modules of the embedded model. Its UNet has 1 transformer block in each of 2 down, 1 middle and 4 up
places, with self- and cross-attention; its VAE one self-attention in the encoder and one in the decoder."""

SD_BLOCKS = {"unet": 8, "vae": 2}
"""The same for the tiny SD pipeline: 1 down, 1 middle, 2 up places."""


def attention_modules(part: Any) -> int:
    from diffusers.models.attention_processor import Attention

    return sum(isinstance(module, Attention) for module in part.modules())


def test_the_modules_counted_by_hand_are_there(
    shapes_plain: Any, sd_folder: Path, local_run: Callable[..., Any]
) -> None:
    tiny = local_run(sd_folder).pipeline
    for pipeline, expected in ((shapes_plain.pipeline, BLOCKS), (tiny, SD_BLOCKS)):
        for name, count in expected.items():
            assert attention_modules(getattr(pipeline, name)) == count


@pytest.mark.parametrize(
    ("option", "kernel"), [("sdpa", "flash"), ("sdpa_flash", "flash"), ("sdpa_math", "math")]
)
def test_sdpa_runs_the_kernel_that_was_asked_for(
    option: str, kernel: str, shapes_run: Callable[..., Any], shapes_plain: Any, global_state: Any
) -> None:
    before = global_state()
    ran = shapes_run(f"attention={option}")
    kernels = ran.kernels()
    effect = ran.effects(kernels=kernels)[f"attention.{option}"]

    assert kernels == {kernel: BLOCKS["unet"]}
    assert str(effect) == f"attention.{option} 14 kernel calls a step, 14 {kernel}"
    assert effect.details["kernels"] == kernels
    assert ran.psnr_db(shapes_plain) > 45
    assert global_state() == before


def test_math_replaces_every_processor_of_denoiser_and_vae(
    shapes_run: Callable[..., Any], shapes_plain: Any, global_state: Any
) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    before = global_state()
    ran = shapes_run("attention=math")
    kernels = ran.kernels()
    effect = ran.effects(kernels=kernels)["attention.math"]

    for name, count in BLOCKS.items():
        processors = list(getattr(ran.pipeline, name).attn_processors.values())
        assert [type(processor) for processor in processors] == [AttnProcessor] * count
    assert kernels == {"baddbmm": BLOCKS["unet"]}  # the scores; no fused kernel is left
    assert str(effect) == "attention.math 16 processors, 14 baddbmm"
    assert ran.psnr_db(shapes_plain) > 45
    assert global_state() == before


def test_a_backend_is_forced_around_each_denoiser_call_and_nowhere_else(
    shapes_plan: Callable[..., Any],
) -> None:
    from torch.backends import cuda

    from fastdiff.models.pictures import draw
    from fastdiff.planning.build import build

    plan = shapes_plan("attention=sdpa_math", "generation.steps=2")
    pipeline = build(plan).pipeline
    flash_allowed: dict[str, list[bool]] = {"denoiser": [], "vae": []}
    for name, module in (
        ("denoiser", pipeline.unet.mid_block),
        ("vae", pipeline.vae.decoder),
    ):
        module.register_forward_pre_hook(
            lambda *_, name=name: flash_allowed[name].append(cuda.flash_sdp_enabled())
        )
    draw(pipeline, plan.setting.run.generation)

    assert flash_allowed == {"denoiser": [False, False], "vae": [True]}
    assert cuda.flash_sdp_enabled()


def test_a_backend_that_was_forced_is_given_back_when_the_denoiser_fails(
    shapes_plan: Callable[..., Any],
) -> None:
    from torch.backends import cuda

    from fastdiff.planning.build import build

    pipeline = build(shapes_plan("attention=sdpa_math")).pipeline
    with pytest.raises(TypeError):
        pipeline.unet(no_such_argument=1)
    assert cuda.flash_sdp_enabled()


def test_a_forced_kernel_that_did_not_run_is_an_error(shapes_run: Callable[..., Any]) -> None:
    """The plain processors know no SDPA, so no backend of it can be forced on them."""
    from diffusers.models.attention_processor import AttnProcessor

    ran = shapes_run("attention=sdpa_flash", "generation.steps=1")
    ran.pipeline.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(NoEffectError) as refused:
        ran.effects(kernels=ran.kernels())
    assert str(refused.value) == (
        "attention.sdpa_flash: asked for the flash kernel, but one denoiser call ran baddbmm; "
        "instead: attention=sdpa, which lets PyTorch choose"
    )


@pytest.mark.parametrize(
    ("wanted", "seen", "ran"),
    [
        ("cudnn", {"flash": 10, "math": 4}, "flash, math"),
        ("flash", {}, "no attention kernel that the profiler knows"),
        ("math", {"flash": 14}, "flash"),
    ],
)
def test_what_ran_instead_is_named(wanted: str, seen: dict[str, int], ran: str) -> None:
    with pytest.raises(NoEffectError) as refused:
        SeenKernels("attention.x", wanted).effect(Observed(kernels=seen))
    assert f"asked for the {wanted} kernel, but one denoiser call ran {ran};" in str(refused.value)


def test_the_plain_formula_may_be_written_out_by_the_compiler() -> None:
    compiled = Observed(kernels={}, graphs=1)
    for pending in (
        SeenKernels("attention.sdpa_math", "math"),
        SeenKernels("attention.sdpa", needed=False),
    ):
        effect = pending.effect(compiled)
        assert str(effect) == f"{pending.key} inlined by the compiler"
        assert not effect.empty


def test_without_a_compiler_a_chosen_formula_that_was_not_seen_had_no_effect() -> None:
    effect = SeenKernels("attention.sdpa_math", "math").effect(Observed())
    assert str(effect) == "attention.sdpa_math 0 attention kernels seen"
    assert effect.empty


def test_the_default_may_run_no_kernel_that_is_known_and_says_so() -> None:
    effect = SeenKernels("attention.sdpa", needed=False).effect(Observed())
    assert str(effect) == "attention.sdpa no attention kernel seen"
    assert not effect.empty


@pytest.mark.parametrize("wanted", [None, "flash", "math"])
def test_a_gpu_that_can_not_be_seen_is_no_missing_effect(wanted: str | None) -> None:
    """Where CUPTI may not trace, a replayed CUDA graph shows no kernels at all."""
    hidden = Observed(kernels_hidden=True, graphs=1)
    effect = SeenKernels("attention.x", wanted, needed=bool(wanted)).effect(hidden)
    assert str(effect) == (
        "attention.x could not be seen: the profiler recorded nothing of the GPU"
    )
    assert not effect.empty
    processors = SeenKernels("attention.math", processors=3).effect(hidden)
    assert str(processors) == (
        "attention.math 3 processors, could not be seen: the profiler recorded nothing of the GPU"
    )
    told = Observed(kernels={"efficient": 2}, kernels_hidden=True)
    with pytest.raises(NoEffectError):
        SeenKernels("attention.x", "flash").effect(told)


def test_processors_say_whether_a_kernel_was_seen() -> None:
    pending = SeenKernels("attention.math", processors=3)
    assert (
        str(pending.effect(Observed())) == "attention.math 3 processors, no attention kernel seen"
    )
    inlined = pending.effect(Observed(graphs=1))
    assert str(inlined) == "attention.math 3 processors, inlined by the compiler"


def test_math_leaves_a_vae_without_attention_out(
    sd_taesd_folder: Path, local_run: Callable[..., Any]
) -> None:
    ran = local_run(sd_taesd_folder, "attention=math")
    (step,) = [s for s in ran.plan.steps if s.pass_.key == "attention.math"]
    effect = ran.effects(kernels=ran.kernels())["attention.math"]

    assert step.components == ("unet",)
    assert str(effect) == "attention.math 8 processors, 8 baddbmm"


@pytest.mark.parametrize(("option", "kernel"), [("sdpa_flash", "flash"), ("sdpa_math", "math")])
def test_a_transformer_of_another_family_runs_the_forced_kernel(
    option: str, kernel: str, flux_folder: Path, local_run: Callable[..., Any]
) -> None:
    """One double block and two single ones call attention once each."""
    ran = local_run(flux_folder, f"attention={option}")
    kernels = ran.kernels()
    assert kernels == {kernel: 3}
    assert ran.effects(kernels=kernels)[f"attention.{option}"].changed == 3


def test_a_kernel_that_takes_none_of_the_models_inputs_is_told_with_a_way_out(
    shapes_plan: Callable[..., Any],
) -> None:
    """A CPU has no such kernel: it says the same of every input."""
    from fastdiff.models.pictures import draw
    from fastdiff.planning.build import build

    plan = shapes_plan()
    for option, kernel in ((SdpaCudnn(), "cudnn"), (SdpaEfficient(), "efficient")):
        pipeline = build(plan).pipeline
        option.apply(pipeline, Context(plan.setting))
        with pytest.raises(RunError) as refused:
            draw(pipeline, plan.setting.run.generation)
        assert str(refused.value) == (
            f"attention.sdpa_{kernel}: the {kernel} kernel can't compute this model's attention here, for its head "
            "dimensions, its number format or its masks\n"
            "  instead: attention=sdpa, which lets PyTorch choose"
        )


def test_other_errors_inside_a_forced_kernel_stay_as_they_are(
    shapes_plan: Callable[..., Any],
) -> None:
    from fastdiff.planning.build import build

    pipeline = build(shapes_plan("attention=sdpa_math")).pipeline
    with pytest.raises(TypeError, match="missing 3 required positional arguments"):
        pipeline.unet()


def head_dims_of(part: Any) -> set[int]:
    """Of its attention modules, as they were built."""
    modules = (m for m in part.modules() if hasattr(m, "to_q") and hasattr(m, "heads"))
    return {m.to_q.out_features // m.heads for m in modules}


@pytest.mark.parametrize("name", ["sd1", "bk_sdm_small", "sdxl", "flux_schnell"])
def test_head_dimensions_are_those_of_the_modules(name: str) -> None:
    from fastdiff.models.architectures import ARCHITECTURES
    from fastdiff.models.random_weights import empty_component

    blueprints = ARCHITECTURES[name].components
    (part,) = (part for part in ("unet", "transformer") if part in blueprints)
    blueprint, known = blueprints[part], ARCHITECTURES[name].facts().components[part]
    built = head_dims_of(empty_component(blueprint))
    assert known.head_dims in (built, frozenset())
    assert known.head_dims or part == "transformer"  # whose class has the dimension by default


def test_head_dimensions_of_the_embedded_model(shapes_plain: Any) -> None:
    known = Shapes().facts().denoiser
    assert known is not None
    assert known.head_dims == head_dims_of(shapes_plain.pipeline.unet) == {24}


def test_blocks_may_have_heads_of_their_own_number() -> None:
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 6),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        "layers_per_block": 1,
    }
    part = Component("unet", "diffusers", "UNet2DConditionModel", None, None, config)
    assert part.head_dims == head_dims_of(UNet2DConditionModel(**config)) == {16}
    unknown = Component("unet", "diffusers", "UNet2DConditionModel", None, None)
    assert unknown.head_dims == frozenset()


@pytest.mark.gpu
@pytest.mark.parametrize("option", ["sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math"])
def test_a_gpu_runs_the_forced_kernel(option: str) -> None:
    from conftest import Ran, plan_of

    ran = Ran(plan_of("device=cuda", "generation.steps=2", "precision=bf16", f"attention={option}"))
    kernels = ran.kernels()
    assert kernels == {option.removeprefix("sdpa_"): BLOCKS["unet"]}


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["default", "regional"])
def test_a_gpu_compiles_xformers(compiled: str) -> None:
    pytest.importorskip("xformers")
    from conftest import Ran, plan_of

    words = ("device=cuda", "generation.steps=4", "precision=bf16")
    ran = Ran(plan_of(*words, "attention=xformers", f"compile={compiled}"))
    assert ran.psnr_db(Ran(plan_of(*words))) > 20
