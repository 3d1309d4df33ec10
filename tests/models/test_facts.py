"""The tables against the installed diffusers, and the readers against real and broken files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest
import torch

from fastdiff.models.facts import Component
from fastdiff.models.library import MODEL_CLASSES

diffusers: Any = _diffusers  # its constructors are untyped

# --- the tables -------------------------------------------------------------------------------


def test_a_component_that_is_none_of_diffusers_models_has_no_facts() -> None:
    assert _part("CLIPTextModel", {}).facts is None
    assert _part("UNet2DConditionModel", {}).facts is MODEL_CLASSES["UNet2DConditionModel"]


# --- fusing, measured: tiny models, one forward pass before and one after -----------------------


def _rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


STEP = torch.tensor([3.0])
IMAGE, TEXT = _rand(1, 4, 8, 8), _rand(1, 5, 32)
ROPE = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}
SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 32,
}
SD3_INPUT = {
    "hidden_states": IMAGE,
    "encoder_hidden_states": TEXT,
    "pooled_projections": _rand(1, 32),
    "timestep": STEP,
}
FLUX = {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1} | {
    "joint_attention_dim": 32
}
FLUX_INPUT = {
    "hidden_states": _rand(1, 16, 4),
    "encoder_hidden_states": TEXT,
    "timestep": STEP,
    "img_ids": torch.zeros(16, 3),
    "txt_ids": torch.zeros(5, 3),
}
PLAIN = {"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "timestep": STEP}
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": (32,),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "latent_channels": 4,
    "norm_num_groups": 8,
}
TINY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "UNet2DConditionModel": (
        UNET,
        {"sample": IMAGE, "timestep": STEP, "encoder_hidden_states": TEXT},
    ),
    "AutoencoderKL": (VAE, {"sample": _rand(1, 3, 8, 8)}),
    "AutoencoderKLFlux2": (VAE, {"sample": _rand(1, 3, 8, 8)}),
    "FluxTransformer2DModel": (
        FLUX | ROPE | {"pooled_projection_dim": 32},
        FLUX_INPUT | {"pooled_projections": _rand(1, 32)},
    ),
    "ChromaTransformer2DModel": (
        FLUX
        | ROPE
        | {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        FLUX_INPUT,
    ),
    "Flux2Transformer2DModel": (
        FLUX | ROPE | {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 32},
        FLUX_INPUT
        | {"guidance": STEP, "img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(5, 4)},
    ),
    "SD3Transformer2DModel": (SD3, SD3_INPUT),
    "PixArtTransformer2DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "cross_attention_dim": 32,
            "sample_size": 8,
            "caption_channels": 32,
            "use_additional_conditions": False,
        },
        PLAIN | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "SanaTransformer2DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 32,
            "sample_size": 8,
        },
        PLAIN,
    ),
    "QwenImageTransformer2DModel": (
        {"in_channels": 16, "out_channels": 4, "num_layers": 1, "joint_attention_dim": 32} | ROPE,
        {
            "hidden_states": _rand(1, 16, 16),
            "encoder_hidden_states": TEXT,
            "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.long),
            "timestep": STEP,
            "img_shapes": [(1, 4, 4)],
        },
    ),
    "WanTransformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 32,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 1,
        },
        {
            "hidden_states": _rand(1, 4, 1, 8, 8),
            "encoder_hidden_states": TEXT,
            "timestep": STEP.long(),
        },
    ),
    "CogVideoXTransformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 2,
            "text_embed_dim": 32,
            "num_layers": 1,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 4,
            "max_text_seq_length": 5,
        },
        PLAIN | {"hidden_states": IMAGE[None]},
    ),
    "AuraFlowTransformer2DModel": (
        {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "joint_attention_dim": 32,
            "pos_embed_max_size": 256,
        },
        PLAIN,
    ),
    "HunyuanDiT2DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "hidden_size": 16,
            "num_layers": 2,
            "activation_fn": "gelu-approximate",
            "cross_attention_dim": 8,
            "cross_attention_dim_t5": 8,
            "pooled_projection_dim": 4,
            "text_len": 4,
            "text_len_t5": 4,
        },
        {
            "hidden_states": IMAGE,
            "timestep": STEP,
            "encoder_hidden_states": _rand(1, 4, 8),
            "text_embedding_mask": torch.ones(1, 4),
            "encoder_hidden_states_t5": _rand(1, 4, 8),
            "text_embedding_mask_t5": torch.ones(1, 4),
            "image_meta_size": _rand(1, 6),
            "style": torch.zeros(1, dtype=torch.long),
            "image_rotary_emb": [_rand(16, 8), _rand(16, 8)],
        },
    ),
    "LTXVideoTransformer3DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "num_layers": 1,
            "caption_channels": 32,
        },
        {
            "hidden_states": _rand(1, 16, 4),
            "encoder_hidden_states": TEXT,
            "timestep": STEP,
            "encoder_attention_mask": torch.ones(1, 5),
            "num_frames": 1,
            "height": 4,
            "width": 4,
        },
    ),
}


def _fuse(
    name: str, config: dict[str, Any], inputs: dict[str, Any]
) -> tuple[int, bool, torch.Tensor, torch.Tensor]:
    """Fuses a new model: added parameters, whether a fused layer ran, output before and after."""
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        before = model(**inputs)[0]
        count = sum(parameter.numel() for parameter in model.parameters())
        model.fuse_qkv_projections()
        added = sum(parameter.numel() for parameter in model.parameters()) - count
        ran: list[str] = []
        for key, module in model.named_modules():
            if key.rpartition(".")[2] in ("to_qkv", "to_kv", "to_added_qkv", "to_added_kv"):
                module.register_forward_hook(lambda *_, key=key: ran.append(key))
        after = model(**inputs)[0]
    return added, bool(ran), before, after


@pytest.mark.parametrize("name", TINY)
def test_fusing_makes_layers_that_run_exactly_where_the_table_says_so(name: str) -> None:
    added, ran, before, after = _fuse(name, *TINY[name])
    assert (added > 0 and ran) == MODEL_CLASSES[name].fuses_qkv
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("name", ["SanaTransformer2DModel", "QwenImageTransformer2DModel"])
def test_fusing_sana_and_qwenimage_adds_no_parameter(name: str) -> None:
    assert _fuse(name, *TINY[name])[0] == 0


def test_fusing_ltx_adds_parameters_that_no_forward_pass_uses() -> None:
    added, ran, _, _ = _fuse("LTXVideoTransformer3DModel", *TINY["LTXVideoTransformer3DModel"])
    assert added > 0
    assert not ran


def _part(class_name: str, config: dict[str, Any]) -> Component:
    return Component("x", "diffusers", class_name, None, None, config)


def test_sd35_is_not_fused_because_its_norms_would_be_left_out() -> None:
    config = SD3 | {"qk_norm": "rms_norm"}
    _, _, before, after = _fuse("SD3Transformer2DModel", config, SD3_INPUT)
    assert (after - before).abs().max() > 1e-3
    assert not _part("SD3Transformer2DModel", config).fuses_qkv
    assert _part("SD3Transformer2DModel", {"qk_norm": None}).fuses_qkv


def test_sd35_with_dual_attention_is_not_fused_because_it_would_fail() -> None:
    config = SD3 | {"dual_attention_layers": (0,)}
    with pytest.raises(AttributeError):
        _fuse("SD3Transformer2DModel", config, SD3_INPUT)
    assert not _part("SD3Transformer2DModel", config).fuses_qkv


def test_a_unet_with_added_key_value_projections_is_not_fused_because_it_would_fail() -> None:
    config = UNET | {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    }
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(**config)
    with pytest.raises(ValueError, match="added KV projections"):
        model.fuse_qkv_projections()
    assert not _part("UNet2DConditionModel", config).fuses_qkv
    assert not _part("UNet2DConditionModel", config).plain_attention
    defaults = {type(processor).__name__ for processor in model.attn_processors.values()}
    assert defaults
    assert all("AddedKV" in name for name in defaults)


@pytest.mark.parametrize(
    ("class_name", "plain"),
    [
        ("UNet2DConditionModel", True),
        ("AutoencoderKL", True),
        ("PixArtTransformer2DModel", True),
        ("HunyuanDiT2DModel", False),
        ("FluxTransformer2DModel", False),
        ("CLIPTextModel", False),
    ],
)
def test_where_the_plain_attention_processor_can_stand_in(class_name: str, plain: bool) -> None:
    assert _part(class_name, {}).plain_attention == plain


def test_hunyuan_dits_default_attention_is_its_own() -> None:
    sizes = {"num_layers": 2, "sample_size": 16, "patch_size": 2, "in_channels": 4}
    sizes |= {"attention_head_dim": 8, "hidden_size": 128}
    with torch.device("meta"):
        model = diffusers.HunyuanDiT2DModel(**sizes)
    model.set_default_attn_processor()
    kinds = {type(processor).__name__ for processor in model.attn_processors.values()}
    assert kinds == {"HunyuanAttnProcessor2_0"}


def test_a_component_of_an_unknown_class_is_not_fused() -> None:
    assert not _part("CLIPTextModel", {}).fuses_qkv


def test_facts_import_neither_torch_nor_diffusers_nor_transformers() -> None:
    code = (
        "import sys, fastdiff.models.facts; "
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "config", [{"block_out_channels": []}, {"attention_head_dim": None}, {"attention_head_dim": 0}]
)
def test_heads_of_a_configuration_that_no_unet_could_be_made_of_are_unknown(config: Any) -> None:
    assert Component("unet", "diffusers", "UNet2DConditionModel", 0, 0, config).head_dims == set()
