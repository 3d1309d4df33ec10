"""Number formats: what the weights really are, and what a run says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdiff.models.library import PIPELINE_CLASSES
from fastdiff.models.pictures import draw, float32_noise
from fastdiff.models.sources import SHAPES_DIR
from fastdiff.passes.precision import _UPCASTS, Tf32Flag
from fastdiff.planning.build import build

# Against fp32; the embedded model gave 49 dB in bf16 and 59 dB in fp16.
LEAST_PSNR_DB = {"fp32": float("inf"), "bf16": 25.0, "fp16": 30.0}


def weights_of(pipeline: Any) -> list[Any]:
    from torch import nn

    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return [weight for part in parts for weight in part.parameters()]


@pytest.mark.parametrize(
    ("option", "dtype"),
    [
        ("fp32", "float32"),
        ("bf16", "bfloat16"),
        pytest.param("fp16", "float16", marks=pytest.mark.slow),
    ],
)
def test_every_weight_has_the_chosen_format_and_the_picture_stays(
    option: str, dtype: str, shapes_run: Callable[..., Any], shapes_plain: Any, global_state: Any
) -> None:
    import torch

    before = global_state()
    ran = shapes_run(f"precision={option}")
    weights = weights_of(ran.pipeline)
    effect = ran.effects(kernels={"flash": 14})[f"precision.{option}"]

    assert {weight.dtype for weight in weights} == {getattr(torch, dtype)}
    assert (effect.changed, effect.unit) == (len(weights), f"weights in {dtype}")
    assert str(effect) == f"precision.{option} {len(weights)} weights in {dtype}"
    assert ran.psnr_db(shapes_plain) >= LEAST_PSNR_DB[option]
    assert global_state() == before


def test_every_precision_starts_from_the_same_latents(shapes_plan: Callable[..., Any]) -> None:
    import torch

    first: dict[str, Any] = {}
    for option in ("fp32", "bf16", "fp16"):
        plan = shapes_plan(f"precision={option}", "generation.steps=1")
        pipeline = build(plan).pipeline

        def note(_: Any, args: Any, kwargs: Any, option: str = option) -> None:
            first[option] = args[0] if args else kwargs["sample"]

        pipeline.unet.register_forward_pre_hook(note, with_kwargs=True)
        with float32_noise(pipeline):
            draw(pipeline, plan.setting.run.generation)

    assert first["bf16"].dtype is torch.bfloat16
    assert first["fp16"].dtype is torch.float16
    # Half a unit in the last place for the noise, and one for each product with a sigma.
    torch.testing.assert_close(first["bf16"].float(), first["fp32"], rtol=2**-6, atol=0)
    torch.testing.assert_close(first["fp16"].float(), first["fp32"], rtol=2**-9, atol=1e-6)


def test_fp32_noise_is_needed_and_leaves_diffusers_as_it_was(sd_folder: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion as module

    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    original = module.randn_tensor

    def drawn(dtype: Any) -> Any:
        generator = torch.Generator("cpu").manual_seed(0)
        return module.randn_tensor((1, 4, 5, 7), generator=generator, dtype=dtype)

    # torch's CPU generator takes another path where the number of elements is no multiple of 16.
    apart = (drawn(torch.bfloat16).float() - drawn(torch.float32)).abs().max()
    assert apart > 1  # other noise, not rounded noise
    with float32_noise(pipeline):
        assert module.randn_tensor is not original
        torch.testing.assert_close(
            drawn(torch.bfloat16), drawn(torch.float32).bfloat16(), rtol=0, atol=0
        )
    assert module.randn_tensor is original
    with pytest.raises(ZeroDivisionError), float32_noise(pipeline):
        raise ZeroDivisionError
    assert module.randn_tensor is original


def test_layers_that_a_model_keeps_in_fp32_are_said(
    flux_folder: Path, local_run: Callable[..., Any]
) -> None:
    """T5 keeps its feed-forward output (`wo`) in fp32; the tiny one has one block."""
    import torch

    ran = local_run(flux_folder, "precision=fp16")
    weights = weights_of(ran.pipeline)
    effect = ran.effects(kernels=ran.kernels())["precision.fp16"]

    kept = [
        name
        for name, weight in ran.pipeline.text_encoder_2.named_parameters()
        if weight.dtype is torch.float32
    ]
    assert [name.rsplit(".", 2)[1] for name in kept] == ["wo"]
    assert effect.changed == len(weights) - 1
    assert effect.details["of"] == len(weights)
    assert str(effect) == (
        f"precision.fp16 {len(weights) - 1} weights in float16, "
        "1 kept in another format by the model"
    )


@pytest.fixture
def upcasting_folder(tmp_path: Path) -> Path:
    """The embedded model with a VAE that asks for fp32, as SDXL's does."""
    folder = tmp_path / "upcasting"
    shutil.copytree(SHAPES_DIR, folder)
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"force_upcast": True}))
    return folder


@pytest.mark.parametrize(("option", "decodes_in"), [("fp16", "float32"), ("bf16", "bfloat16")])
def test_an_sdxl_vae_that_asks_for_fp32_gets_it_in_fp16_alone(
    option: str, decodes_in: str, upcasting_folder: Path, local_plan: Callable[..., Any]
) -> None:

    plan = local_plan(upcasting_folder, f"precision={option}", "generation.steps=1")
    built = build(plan)
    (effect,) = [e for e in built.outcomes if getattr(e, "name", "") == f"precision.{option}"]
    seen = []
    decoder = built.pipeline.vae.decoder
    decoder.register_forward_pre_hook(lambda _, args: seen.append(str(args[0].dtype)))
    draw(built.pipeline, plan.setting.run.generation)

    assert seen == [f"torch.{decodes_in}"]
    if option == "fp16":
        assert effect.details["vae_decode_dtype"] == "float32"
        assert effect.details["summary"] == "but the VAE decodes in float32 (force_upcast)"
        assert any("every call decodes in fp32" in notice.text for notice in plan.notices)
    else:
        assert "summary" not in effect.details


def test_a_pipeline_that_ignores_force_upcast_decodes_in_fp16_and_says_nothing_else(
    sd_folder: Path, local_plan: Callable[..., Any]
) -> None:
    """AutoencoderKL's default is force_upcast=True, and Stable Diffusion 1.x pays no heed to it."""

    plan = local_plan(sd_folder, "precision=fp16", "generation.steps=1")
    built = build(plan)
    (effect,) = [e for e in built.outcomes if getattr(e, "name", "") == "precision.fp16"]
    seen = []
    decoder = built.pipeline.vae.decoder
    decoder.register_forward_pre_hook(lambda _, args: seen.append(str(args[0].dtype)))
    draw(built.pipeline, plan.setting.run.generation)

    assert built.pipeline.vae.config.force_upcast
    assert seen == ["torch.float16"]
    assert "vae_decode_dtype" not in effect.details
    assert [notice.text for notice in plan.notices] == [
        "a CPU computes fp16 slowly; bf16 or fp32 is usually faster"
    ]


NEAR = ("Stable", "Aura", "Kolors", "Flux", "PixArt", "SD")


def test_the_rule_for_upcasting_pipelines_agrees_with_diffusers() -> None:
    import diffusers

    near = [name for name in PIPELINE_CLASSES if name.startswith(NEAR)]
    near = [name for name in near if "dummy" not in getattr(diffusers, name).__module__]
    upcasting = {name for name in near if hasattr(getattr(diffusers, name), "upcast_vae")}
    assert "StableDiffusionXLPipeline" in upcasting
    assert "StableDiffusionPipeline" in set(near) - upcasting
    assert {name for name in near if _UPCASTS.search(name)} == upcasting


def test_the_tf32_flag_is_set_for_the_process_and_said() -> None:
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        effect: Any = Tf32Flag().apply(None, None)  # type: ignore[arg-type]
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert effect.flag
    assert str(effect) == "precision.tf32 matmul.allow_tf32"
    assert not effect.empty


@pytest.mark.gpu
def test_tf32_on_a_gpu_multiplies_fp32_matrices_with_fewer_bits() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 512, 512, generator=generator).double().cuda()
    exact = a @ b
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        fine = (a.float() @ b.float() - exact).abs().max()
        Tf32Flag().apply(None, None)  # type: ignore[arg-type]
        coarse = (a.float() @ b.float() - exact).abs().max()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert coarse > 10 * fine
