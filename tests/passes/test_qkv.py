"""Joined projections: how many blocks were fused, that they are used, and where they can't be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdiff.errors import NoEffectError


def test_every_attention_block_of_denoiser_and_vae_is_fused(
    shapes_run: Callable[..., Any], shapes_plain: Any, global_state: Any
) -> None:
    """The UNet has 7 transformer blocks of two attentions each, the VAE two attentions: 16."""
    from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0

    before = global_state()
    ran = shapes_run("qkv=fused")
    kernels = ran.kernels()
    effect = ran.effects(kernels=kernels)["qkv.fused"]

    assert str(effect) == "qkv.fused 16 blocks"
    assert effect.details["components"] == {"unet": 14, "vae": 2}
    for part in (ran.pipeline.unet, ran.pipeline.vae):
        blocks = [module for module in part.modules() if isinstance(module, Attention)]
        assert all(block.fused_projections for block in blocks)
        assert {type(block.processor) for block in blocks} == {FusedAttnProcessor2_0}
    assert kernels == {"flash": 14}
    assert ran.psnr_db(shapes_plain) > 45
    assert global_state() == before


def test_the_joined_projections_are_called_and_the_old_ones_are_not(
    shapes_plan: Callable[..., Any],
) -> None:
    """Self-attention joins three projections, cross-attention two, one of each in every block."""
    from fastdiff.models.pictures import draw
    from fastdiff.planning.build import build

    plan = shapes_plan("qkv=fused", "generation.steps=1")
    pipeline = build(plan).pipeline
    called: list[str] = []
    for path, module in pipeline.unet.named_modules():
        name = path.rsplit(".", 1)[-1]
        if name in ("to_q", "to_k", "to_v", "to_kv", "to_qkv"):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    draw(pipeline, plan.setting.run.generation)

    counts = {name: called.count(name) for name in sorted(set(called))}
    assert counts == {"to_kv": 7, "to_q": 7, "to_qkv": 7}  # cross-attention keeps its own query


def test_a_vae_without_attention_is_left_out(
    sd_taesd_folder: Path, local_run: Callable[..., Any]
) -> None:
    ran = local_run(sd_taesd_folder, "qkv=fused")
    (step,) = [step for step in ran.plan.steps if step.pass_.key == "qkv.fused"]
    effect = ran.effects(kernels=ran.kernels())["qkv.fused"]

    assert step.components == ("unet",)
    assert effect.details["components"] == {"unet": 8}
    assert str(effect) == "qkv.fused 8 blocks"


def test_a_flux_transformer_fuses_its_own_kind_of_block(
    flux_folder: Path, local_run: Callable[..., Any]
) -> None:
    """One double and two single blocks, one attention in each; two in the VAE."""
    plain, ran = local_run(flux_folder), local_run(flux_folder, "qkv=fused")
    effect = ran.effects(kernels=ran.kernels())["qkv.fused"]

    assert effect.details["components"] == {"transformer": 3, "vae": 2}
    assert ran.psnr_db(plain) > 45


@pytest.fixture
def fusing_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a diffusers of another version might do, without an error."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    for model in (AutoencoderKL, UNet2DConditionModel):
        monkeypatch.setattr(model, "fuse_qkv_projections", lambda self: None)


@pytest.mark.usefixtures("fusing_does_nothing")
def test_a_pass_that_changed_nothing_is_an_error(shapes_run: Callable[..., Any]) -> None:
    with pytest.raises(NoEffectError) as refused:
        shapes_run("qkv=fused")
    assert str(refused.value) == (
        "qkv.fused changed 0 blocks: it ran and did nothing on this model\n"
        "  instead: leave it out, or allow_no_effect=true to measure all the same"
    )


@pytest.mark.usefixtures("fusing_does_nothing")
def test_a_pass_that_changed_nothing_can_be_allowed_and_is_still_said(
    shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    ran = shapes_run("qkv=fused", "allow_no_effect=true")
    effect = ran.effects(kernels={"flash": 14})["qkv.fused"]
    assert str(effect) == "qkv.fused 0 blocks"
    assert ran.psnr_db(shapes_plain) > 100
