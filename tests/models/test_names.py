"""Names of weights worked out from configurations, against the modules and against diffusers' own converters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest
import torch
import transformers as _transformers
from diffusers.loaders import single_file_utils

from fastdiff.models.architectures import ARCHITECTURES, Blueprint
from fastdiff.models.names import expected_names, missing_names, original_names
from fastdiff.models.sources import SHAPES_DIR, SHAPES_STUDENT

diffusers: Any = _diffusers
transformers: Any = _transformers


def _module(class_name: str, config: Mapping[str, Any]) -> Any:
    """The component without weights."""
    with torch.device("meta"):
        if hasattr(diffusers, class_name):
            return getattr(diffusers, class_name).from_config(dict(config))
        known = getattr(transformers, class_name)
        return known(known.config_class(**config))


def _names(module: Any) -> set[str]:
    """Names of its parameters, tied ones once."""
    return {name for name, _ in module.named_parameters()}


PUBLISHED = [
    pytest.param(part.class_name, part.config, id=f"{architecture}-{name}")
    for architecture, whole in ARCHITECTURES.items()
    for name, part in whole.components.items()
    if part.parameters
]


@pytest.mark.parametrize(("class_name", "config"), PUBLISHED)
def test_published_architectures_have_these_names(class_name: str, config: Any) -> None:
    expected = expected_names(class_name, config)
    assert expected is not None
    own = _names(_module(class_name, config))
    assert {name.removeprefix("text_model.") for name in own} == expected


UNET = {
    "block_out_channels": (8, 8, 16),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"layers_per_block": (1, 3, 2)},
        {"transformer_layers_per_block": (2, 1, 3)},
        {"mid_block_type": None},
        {"time_cond_proj_dim": 4},
        {"use_linear_projection": True},
    ],
)
def test_unets_of_every_shape_have_these_names(more: dict[str, Any]) -> None:
    config = UNET | more
    assert expected_names("UNet2DConditionModel", config) == _names(
        _module("UNet2DConditionModel", config)
    )


@pytest.mark.parametrize(
    "more",
    [
        {"block_out_channels": (4, 8), "layers_per_block": 1},
        {"block_out_channels": (8, 8), "layers_per_block": 2, "use_quant_conv": False},
        {"block_out_channels": (8, 4), "mid_block_add_attention": False, "use_post_quant_conv": False},
    ],
)  # fmt: skip
def test_autoencoders_of_every_shape_have_these_names(more: dict[str, Any]) -> None:
    types = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip
    config = types | {"norm_num_groups": 4} | more
    assert expected_names("AutoencoderKL", config) == _names(_module("AutoencoderKL", config))


@pytest.mark.parametrize(
    ("class_name", "config"),
    [
        ("UNet2DConditionModel", {}),
        ("UNet2DConditionModel", UNET | {"class_embed_type": "timestep"}),
        ("UNet2DConditionModel", UNET | {"only_cross_attention": [False, True, False]}),
        ("UNet2DConditionModel", UNET | {"addition_embed_type": "image"}),
        ("UNet2DConditionModel", UNET | {"down_block_types": ["ResnetDownsampleBlock2D"] * 3}),
        ("UNet2DConditionModel", UNET | {"quantization_config": {"quant_method": "torchao"}}),
        ("AutoencoderKL", {"down_block_types": ["AttnDownEncoderBlock2D"]}),
        ("WanTransformer3DModel", {"num_layers": 2}),
    ],
)
def test_what_is_out_of_the_ordinary_is_not_guessed(class_name: str, config: Any) -> None:
    assert expected_names(class_name, config) is None


def test_older_spellings_of_a_weight_are_there() -> None:
    new = ["encoder.mid_block.attentions.0.to_q.weight", "encoder.mid_block.attentions.0.to_out.0.bias"]  # fmt: skip
    old = ["encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.proj_attn.bias"]  # fmt: skip
    assert missing_names(new, old) == []
    assert missing_names(["final_layer_norm.bias"], ["text_model.final_layer_norm.bias"]) == []
    assert missing_names(["shared.weight"], ["encoder.embed_tokens.weight"]) == []
    assert missing_names(["b", "a", "c"], ["c"]) == ["a", "b"]


def test_the_embedded_model_lacks_nothing() -> None:
    from fastdiff.models.reading import read_component_shapes, read_shapes

    folders = [SHAPES_DIR / name for name in ("unet", "vae", "text_encoder", "text_encoder_2")]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        class_name = config.get("_class_name") or config["architectures"][0]
        expected = expected_names(class_name, config)
        assert expected
        held = read_component_shapes(folder, folder.name, class_name, None)
        assert missing_names(expected, held) == []
    config = json.loads((SHAPES_STUDENT / "config.json").read_text())
    (file,) = Path(SHAPES_STUDENT).glob("*.safetensors")
    assert missing_names(expected_names("UNet2DConditionModel", config) or ["?"], read_shapes(file)) == []  # fmt: skip


ORIGINAL = [("sd1", "unet"), ("sd1", "vae"), ("sdxl", "unet"), ("sdxl", "vae"), ("bk_sdm_small", "unet")]  # fmt: skip


@pytest.mark.parametrize(("architecture", "name"), ORIGINAL)
def test_diffusers_makes_its_own_names_of_the_original_ones(architecture: str, name: str) -> None:
    part: Blueprint = ARCHITECTURES[architecture].components[name]
    original = original_names(part.class_name, part.config)
    expected = expected_names(part.class_name, part.config)
    assert original is not None
    prefix, convert = {
        "unet": ("model.diffusion_model.", single_file_utils.convert_ldm_unet_checkpoint),
        "vae": ("first_stage_model.", single_file_utils.convert_ldm_vae_checkpoint),
    }[name]
    checkpoint = {prefix + key: torch.zeros(1, 1, 1, 1) for key in original}
    config = {**_module(part.class_name, part.config).config}
    assert set(convert(checkpoint, config)) == expected


def test_diffusers_makes_its_own_names_of_fluxs_original_ones() -> None:
    config = {"num_layers": 2, "num_single_layers": 3, "guidance_embeds": False}
    original = original_names("FluxTransformer2DModel", config)
    assert original is not None
    checkpoint = {
        name: torch.zeros(3072 * 7 if "linear1" in name else 6, *[4] * name.endswith("weight"))
        for name in original
    }
    made = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    assert set(made) == expected_names("FluxTransformer2DModel", config)


@pytest.mark.parametrize(
    ("class_name", "config"),
    [
        ("UNet2DConditionModel", {"block_out_channels": [8], "down_block_types": ["a", "b"]}),
        ("UNet2DConditionModel", {"block_out_channels": None, "layers_per_block": "two"}),
        ("CLIPTextModel", {"num_hidden_layers": None}),
    ],
)
def test_a_configuration_that_no_model_could_be_made_of_is_nobodys_to_know(
    class_name: str, config: dict[str, Any]
) -> None:
    assert expected_names(class_name, config) is None
