"""channels_last: which weights lie that way afterwards, and where there is nothing to lay out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_every_4d_weight_of_denoiser_and_vae_lies_channels_last(
    shapes_run: Callable[..., Any], shapes_plain: Any, global_state: Any
) -> None:
    """36 convolutions in the UNet, 40 in the VAE, each with one 4-D weight."""
    import torch
    from torch import nn

    before = global_state()
    ran = shapes_run("memory_format=channels_last")
    effect = ran.effects(kernels=ran.kernels())["memory_format.channels_last"]

    convolutions = {
        name: [m for m in getattr(ran.pipeline, name).modules() if isinstance(m, nn.Conv2d)]
        for name in ("unet", "vae")
    }
    assert {name: len(found) for name, found in convolutions.items()} == {"unet": 36, "vae": 40}
    for module in [*convolutions["unet"], *convolutions["vae"]]:
        assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert str(effect) == "memory_format.channels_last 76 weights"
    assert effect.details["components"] == {"unet": 36, "vae": 40}
    assert ran.psnr_db(shapes_plain) > 45
    assert global_state() == before


def test_contiguous_changes_nothing(shapes_plain: Any) -> None:
    weight = shapes_plain.pipeline.unet.conv_in.weight
    assert weight.is_contiguous()
    assert "memory_format" not in {step.pass_.key.split(".")[0] for step in shapes_plain.plan.steps}


def test_a_vae_of_another_class_is_laid_out_too(
    sd_taesd_folder: Path, local_run: Callable[..., Any]
) -> None:
    from torch import nn

    ran = local_run(sd_taesd_folder, "memory_format=channels_last")
    effect = ran.effects(kernels=ran.kernels())["memory_format.channels_last"]
    expected = {
        name: sum(isinstance(m, nn.Conv2d) for m in getattr(ran.pipeline, name).modules())
        for name in ("unet", "vae")
    }
    assert expected["vae"] > 0
    assert effect.details["components"] == expected
