"""The tables against the installed diffusers, and the readers against real and broken files."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest
import torch
from diffusers.models.cache_utils import CacheMixin
from safetensors.torch import save_file

from fastdiff.errors import ModelError
from fastdiff.models.facts import (
    CLASSES,
    PIPELINES,
    Component,
    ModelFacts,
    class_facts,
    read_folder,
    read_single_file,
)

diffusers: Any = _diffusers  # its constructors are untyped

# --- the tables -------------------------------------------------------------------------------

# Few layers where the default has dozens; a full config where the default can't be built.
SMALL: dict[str, dict[str, Any]] = {
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_channels": [32, 32],
        "text_emb_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "max_resolution": (8, 8),
        "llama_layers": (0, 1),
    },
    "HunyuanDiT2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "sample_size": 8,
        "patch_size": 2,
        "hidden_size": 16,
        "num_layers": 2,
        "activation_fn": "gelu-approximate",
    },
    "Transformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 32},
}
LAYERS = ("num_layers", "num_single_layers", "num_mmdit_layers", "num_single_dit_layers")


@pytest.mark.parametrize("name", CLASSES)
def test_class_table_says_what_the_installed_class_has(name: str) -> None:
    cls = getattr(diffusers, name)
    facts = CLASSES[name]
    assert facts.default_attention == hasattr(cls, "set_default_attn_processor")
    assert facts.attention_processors == hasattr(cls, "set_attn_processor")
    assert facts.repeated_blocks == tuple(cls._repeated_blocks or ())
    assert facts.step_cache == issubclass(cls, CacheMixin)
    if facts.fuses_qkv:
        assert hasattr(cls, "fuse_qkv_projections")


@pytest.mark.parametrize("name", CLASSES)
def test_class_table_says_how_many_dimensions_convolution_weights_have(name: str) -> None:
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    config = SMALL.get(name) or {key: 1 for key in LAYERS if key in known}
    with torch.device("meta"):
        model = cls(**config)
    sizes = [
        module.weight.dim()
        for module in model.modules()
        if isinstance(module, torch.nn.modules.conv._ConvNd)
    ]
    assert CLASSES[name].conv_weights == max(sizes, default=0)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_table_says_what_the_installed_pipeline_has(name: str) -> None:
    cls = getattr(diffusers, name)
    assert PIPELINES[name].denoiser in inspect.signature(cls.__init__).parameters
    assert PIPELINES[name].fuses_qkv == hasattr(cls, "fuse_qkv_projections")


def test_a_class_outside_the_table_has_no_facts() -> None:
    assert class_facts("CLIPTextModel") is None
    assert class_facts("UNet2DConditionModel") is CLASSES["UNet2DConditionModel"]


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
        SMALL["HunyuanDiT2DModel"]
        | {
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


def test_every_class_that_fuses_is_measured() -> None:
    assert {name for name, facts in CLASSES.items() if facts.fuses_qkv} <= set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_fusing_makes_layers_that_run_exactly_where_the_table_says_so(name: str) -> None:
    added, ran, before, after = _fuse(name, *TINY[name])
    assert (added > 0 and ran) == CLASSES[name].fuses_qkv
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("name", ["SanaTransformer2DModel", "QwenImageTransformer2DModel"])
def test_fusing_sana_and_qwenimage_adds_no_parameter(name: str) -> None:
    assert _fuse(name, *TINY[name])[0] == 0


def test_fusing_ltx_adds_parameters_that_no_forward_pass_uses() -> None:
    added, ran, _, _ = _fuse("LTXVideoTransformer3DModel", *TINY["LTXVideoTransformer3DModel"])
    assert added > 0
    assert not ran


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, facts in CLASSES.items()
        if not facts.fuses_qkv
        and name not in TINY
        and hasattr(getattr(diffusers, name), "fuse_qkv_projections")
    ),
)
def test_fusing_the_other_classes_that_offer_it_adds_no_parameter(name: str) -> None:
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    with torch.device("meta"):
        model = cls(**{key: 1 for key in LAYERS if key in known})
    before = sum(parameter.numel() for parameter in model.parameters())
    model.fuse_qkv_projections()
    assert sum(parameter.numel() for parameter in model.parameters()) == before


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


def test_a_component_of_an_unknown_class_is_not_fused() -> None:
    assert not _part("CLIPTextModel", {}).fuses_qkv
    assert _part("CLIPTextModel", {}).facts is None


def test_facts_import_neither_torch_nor_diffusers_nor_transformers() -> None:
    code = (
        "import sys, fastdiff.models.facts; "
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- a real pipeline folder ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A Stable Diffusion pipeline of some hundred thousand parameters, its tokenizer included."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**UNET),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_counts(facts: ModelFacts, pipeline: Any, width: int) -> None:
    for name in ("unet", "vae", "text_encoder"):
        count = _numbers(getattr(pipeline, name))
        assert facts.components[name].parameters == count
        assert facts.components[name].weight_bytes == width * count
    assert facts.parameters == sum(
        _numbers(part) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    )


def test_a_saved_pipeline_is_read_as_it_is(tmp_path: Path, pipeline: Any) -> None:
    pipeline.save_pretrained(tmp_path)
    facts = read_folder(tmp_path)
    assert facts.pipeline == "StableDiffusionPipeline"
    assert set(facts.components) == {"unet", "vae", "text_encoder", "scheduler"}
    _check_counts(facts, pipeline, 4)
    assert facts.denoiser is facts.components["unet"]
    assert facts.vae is facts.components["vae"]
    unet = facts.components["unet"]
    assert (unet.library, unet.class_name) == ("diffusers", "UNet2DConditionModel")
    assert unet.facts is CLASSES["UNet2DConditionModel"]
    assert unet.fuses_qkv
    assert unet.config["cross_attention_dim"] == 32
    assert facts.components["text_encoder"].library == "transformers"
    scheduler = facts.components["scheduler"]
    assert (scheduler.class_name, scheduler.parameters) == ("DDIMScheduler", 0)
    assert scheduler.config["num_train_timesteps"] == 1000


def test_sharded_weights_are_counted_over_all_files(tmp_path: Path, pipeline: Any) -> None:
    pipeline.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    _check_counts(read_folder(tmp_path), pipeline, 4)


def test_only_one_variant_is_counted_where_two_lie_side_by_side(
    tmp_path: Path, pipeline: Any
) -> None:
    pipeline.save_pretrained(tmp_path)
    pipeline.to(torch.float16).save_pretrained(tmp_path, variant="fp16", max_shard_size="200KB")
    pipeline.to(torch.float32)
    _check_counts(read_folder(tmp_path), pipeline, 4)
    _check_counts(read_folder(tmp_path, variant="fp16"), pipeline, 2)


# --- small folders made by hand -----------------------------------------------------------------

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _folder(tmp_path: Path, index: object = INDEX) -> Path:
    """A folder m with a model_index.json and a unet of one tensor of 6 float32 numbers."""
    path = tmp_path / "m"
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "unet" / "config.json").write_text("{}")
    save_file({"a": torch.zeros(2, 3)}, path / "unet" / WEIGHTS)
    return path


def _refused(read: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        read()
    return str(caught.value)


def test_a_folder_with_one_weight_component_is_enough(tmp_path: Path) -> None:
    facts = read_folder(_folder(tmp_path))
    assert facts.components["unet"] == Component(
        "unet", "diffusers", "UNet2DConditionModel", 24, 6, {}
    )
    assert facts.vae is None


def test_position_ids_are_bytes_but_no_parameters(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    save_file({"a": torch.zeros(2, 3), "ids": torch.arange(4)}, path / "unet" / WEIGHTS)
    unet = read_folder(path).components["unet"]
    assert (unet.weight_bytes, unet.parameters) == (24 + 32, 6)


def test_weights_both_whole_and_in_shards_are_counted_once(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    save_file({"a": torch.zeros(2, 3)}, path / "unet" / shard)
    assert read_folder(path).parameters == 6


def test_a_variant_that_a_component_lacks_is_counted_by_its_plain_files(tmp_path: Path) -> None:
    path = _folder(tmp_path, INDEX | {"vae": ["diffusers", "AutoencoderKL"]})
    (path / "vae").mkdir()
    save_file({"a": torch.zeros(5)}, path / "vae" / WEIGHTS)
    half = torch.zeros(5, dtype=torch.float16)
    save_file({"a": half}, path / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    facts = read_folder(path, variant="fp16")
    assert facts.components["unet"].weight_bytes == 24
    assert facts.components["vae"].weight_bytes == 10


def test_the_denoiser_of_an_unknown_pipeline_is_its_unet_or_transformer(tmp_path: Path) -> None:
    facts = read_folder(_folder(tmp_path, INDEX | {"_class_name": "BrandNewPipeline"}))
    assert facts.denoiser is facts.components["unet"]
    assert ModelFacts("BrandNewPipeline", {}).denoiser is None


def test_the_sum_of_parameters_is_unknown_where_one_is() -> None:
    known = Component("vae", "diffusers", "VQModel", 4, 1)
    unknown = Component("unet", "diffusers", "UNet2DModel", None, None)
    facts = ModelFacts("DDPMPipeline", {"vqvae": known, "unet": unknown})
    assert facts.parameters is None
    assert facts.vae is known


def test_a_missing_folder_names_its_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "sdxl-turbo").mkdir()
    path = tmp_path / "sdlx-turbo"
    assert _refused(lambda: read_folder(path)) == (
        f"no such folder: {path}\n"
        f"  why: {tmp_path} holds no such name\n"
        f"  instead: model.path={tmp_path}/sdxl-turbo"
    )


def test_a_missing_folder_in_a_missing_folder_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert _refused(lambda: read_folder(path)) == (
        f"no such folder: {path}\n"
        f"  why: {tmp_path}/a isn't there either\n"
        "  instead: name a folder that save_pretrained() wrote"
    )


@pytest.mark.parametrize(
    ("name", "why", "instead"),
    [
        (
            "m.safetensors",
            "it is a single file, and this model is read from a folder",
            "model=single_file model.path={path}",
        ),
        (
            "m.py",
            "it is code, and fastdiff runs no code that comes with a model",
            "a pipeline whose class is in diffusers",
        ),
        (
            "m.txt",
            "it is a file, and a pipeline is a folder with a model_index.json",
            "name a folder that save_pretrained() wrote",
        ),
    ],
)
def test_a_file_is_no_folder(tmp_path: Path, name: str, why: str, instead: str) -> None:
    path = tmp_path / name
    path.touch()
    assert _refused(lambda: read_folder(path)) == (
        f"not a folder: {path}\n  why: {why}\n  instead: {instead.format(path=path)}"
    )


def test_a_folder_without_index_is_no_pipeline(tmp_path: Path) -> None:
    assert _refused(lambda: read_folder(tmp_path)) == (
        f"not a pipeline: {tmp_path}\n"
        "  why: it has no model_index.json\n"
        "  instead: name a folder that save_pretrained() wrote"
    )


def test_a_component_folder_is_no_pipeline(tmp_path: Path) -> None:
    path = _folder(tmp_path) / "unet"
    assert _refused(lambda: read_folder(path)) == (
        f"not a pipeline: {path}\n"
        "  why: it has a config.json and no model_index.json: a single component\n"
        "  instead: name the folder of the whole pipeline"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{\n"a": ', "line 2: Expecting value"),
        (b"[]", "it holds no JSON object"),
        (b"\xff\xfe\xfa", "it is no JSON text"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "model_index.json"
    file.write_bytes(content)
    assert _refused(lambda: read_folder(tmp_path)) == (
        f"can't read {file}\n  why: {why}\n  instead: fetch it again, or save the pipeline again"
    )


@pytest.mark.parametrize(
    ("index", "why"),
    [({}, "`_class_name` is missing"), ({"_class_name": 3}, "`_class_name` is no string")],
)
def test_an_index_without_pipeline_class_is_refused(
    tmp_path: Path, index: object, why: str
) -> None:
    path = _folder(tmp_path, index)
    assert _refused(lambda: read_folder(path)) == (
        f"no pipeline class in {path}/model_index.json\n"
        f"  why: {why}\n"
        "  instead: save the pipeline again with save_pretrained()"
    )


@pytest.mark.parametrize(
    ("name", "spelled"), [(["my_code", "Mine"], "my_code.Mine"), ("my_code.py", "my_code.py")]
)
def test_a_custom_pipeline_is_refused_because_it_is_code(
    tmp_path: Path, name: object, spelled: str
) -> None:
    path = _folder(tmp_path, {"_class_name": name})
    assert _refused(lambda: read_folder(path)) == (
        f"custom pipeline: {path}\n"
        f"  why: its class {spelled} is code in the folder, "
        "and fastdiff runs no code that comes with a model\n"
        "  instead: a pipeline whose class is in diffusers"
    )


def test_a_custom_component_is_refused_because_it_is_code(tmp_path: Path) -> None:
    path = _folder(tmp_path, INDEX | {"unet": ["my_unet", "Mine"]})
    (path / "unet" / "my_unet.py").touch()
    assert _refused(lambda: read_folder(path)) == (
        f"custom component: {path}/unet\n"
        "  why: its class Mine is code in my_unet.py, "
        "and fastdiff runs no code that comes with a model\n"
        "  instead: a pipeline whose classes are in diffusers and transformers"
    )


def test_a_missing_component_folder_is_refused(tmp_path: Path) -> None:
    path = _folder(tmp_path, INDEX | {"vae": ["diffusers", "AutoencoderKL"]})
    assert _refused(lambda: read_folder(path)) == (
        f"component vae is missing: no folder {path}/vae\n"
        "  why: model_index.json lists it as diffusers AutoencoderKL\n"
        "  instead: fetch the folder, "
        "or set vae to [null, null] if the pipeline works without it"
    )


def test_a_component_without_weights_is_refused(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    (path / "unet" / WEIGHTS).unlink()
    assert _refused(lambda: read_folder(path)) == (
        f"component unet has no weights: no *.safetensors in {path}/unet\n"
        "  why: UNet2DConditionModel needs them\n"
        "  instead: fetch the folder's weights, "
        "or save the pipeline again with save_pretrained()"
    )


@pytest.mark.parametrize("ending", ["bin", "pt", "ckpt"])
def test_pickled_weights_are_refused_because_a_pickle_can_run_code(
    tmp_path: Path, ending: str
) -> None:
    path = _folder(tmp_path)
    (path / "unet" / WEIGHTS).rename(path / "unet" / f"model.{ending}")
    assert _refused(lambda: read_folder(path)) == (
        f"component unet has only pickled weights: {path}/unet/model.{ending}\n"
        "  why: fastdiff loads only safetensors, "
        "because a pickle can run code when it is opened\n"
        "  instead: if you trust it, load it once with diffusers and "
        "save_pretrained(..., safe_serialization=True)"
    )


def test_a_missing_scheduler_config_is_refused(tmp_path: Path) -> None:
    path = _folder(tmp_path, INDEX | {"scheduler": ["diffusers", "DDIMScheduler"]})
    (path / "scheduler").mkdir()
    assert _refused(lambda: read_folder(path)) == (
        f"can't read {path}/scheduler/scheduler_config.json\n"
        "  why: No such file or directory\n"
        "  instead: fetch it again, or save the pipeline again"
    )


def _only_fp16(tmp_path: Path) -> Path:
    path = _folder(tmp_path)
    (path / "unet" / WEIGHTS).rename(
        path / "unet" / "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    )
    return path


def test_weights_only_in_a_variant_name_the_way_to_plain_ones(tmp_path: Path) -> None:
    path = _only_fp16(tmp_path)
    assert _refused(lambda: read_folder(path)) == (
        f"component unet has no plain weights: {path}/unet\n"
        "  why: its variants: fp16\n"
        "  instead: load it once with from_pretrained(..., variant='fp16') "
        "and save_pretrained() it"
    )
    assert read_folder(path, "fp16").parameters == 6


def test_weights_only_in_another_variant_name_it(tmp_path: Path) -> None:
    path = _only_fp16(tmp_path)
    assert _refused(lambda: read_folder(path, "fp61")) == (
        f"component unet has neither fp61 nor plain weights: {path}/unet\n"
        "  why: its variants: fp16\n"
        "  instead: ask for fp16"
    )


def test_a_variant_that_no_component_has_is_refused(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    assert _refused(lambda: read_folder(path, "fp16")) == (
        f"no fp16 weights in {path}\n  why: it holds plain ones only\n  instead: ask for no variant"
    )
    save_file({"a": torch.zeros(6)}, path / "unet" / "diffusion_pytorch_model.bf16.safetensors")
    assert _refused(lambda: read_folder(path, "fp16")) == (
        f"no fp16 weights in {path}\n  why: its variants: bf16\n  instead: ask for bf16"
    )


# --- single files -------------------------------------------------------------------------------

LDM_KEYS = {"model.diffusion_model.out.weight": 3, "first_stage_model.encoder.weight": 2}
SD1_KEYS = LDM_KEYS | {"cond_stage_model.transformer.text_model.weight": 4, "model_ema.decay": 1}
SDXL_KEYS = LDM_KEYS | {
    "conditioner.embedders.0.transformer.text_model.weight": 4,
    "conditioner.embedders.1.model.text_projection": 5,
}
FLUX_KEYS = {"double_blocks.0.img_mod.lin.weight": 6, "img_in.weight": 1}


def _checkpoint(path: Path, keys: dict[str, int]) -> Path:
    save_file({key: torch.zeros(size) for key, size in keys.items()}, path)
    return path


@pytest.mark.parametrize(
    ("keys", "pipeline_class", "parts"),
    [
        (
            SD1_KEYS,
            "StableDiffusionPipeline",
            {
                "unet": ("UNet2DConditionModel", 3),
                "vae": ("AutoencoderKL", 2),
                "text_encoder": ("CLIPTextModel", 4),
            },
        ),
        (
            SDXL_KEYS,
            "StableDiffusionXLPipeline",
            {
                "unet": ("UNet2DConditionModel", 3),
                "vae": ("AutoencoderKL", 2),
                "text_encoder": ("CLIPTextModel", 4),
                "text_encoder_2": ("CLIPTextModelWithProjection", 5),
            },
        ),
        (FLUX_KEYS, "FluxPipeline", {"transformer": ("FluxTransformer2DModel", 7)}),
        (
            {f"model.diffusion_model.{key}": size for key, size in FLUX_KEYS.items()}
            | {"vae.decoder.weight": 2, "text_encoders.t5xxl.shared.weight": 8},
            "FluxPipeline",
            {
                "transformer": ("FluxTransformer2DModel", 7),
                "vae": ("AutoencoderKL", 2),
                "text_encoder_2": ("T5EncoderModel", 8),
            },
        ),
    ],
    ids=["sd1", "sdxl", "flux", "flux-with-all-parts"],
)
def test_a_single_file_is_told_by_its_keys(
    tmp_path: Path,
    keys: dict[str, int],
    pipeline_class: str,
    parts: dict[str, tuple[str, int]],
) -> None:
    facts = read_single_file(_checkpoint(tmp_path / "m.safetensors", keys))
    assert facts.pipeline == pipeline_class
    found = {name: (part.class_name, part.parameters) for name, part in facts.components.items()}
    assert found == parts
    assert facts.denoiser is not None
    for part in facts.components.values():
        assert part.weight_bytes == 4 * (part.parameters or 0)
        assert hasattr(__import__(part.library), part.class_name)


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_unet_down.weight": 1, "lora_te_up.weight": 1},
        {"double_blocks.0.img_mod.linear.weight": 1, "double_blocks.0.img_attn_qkv.weight": 1},
    ],
    ids=["lora", "hunyuan-video"],
)
def test_an_unknown_kind_of_single_file_is_refused(tmp_path: Path, keys: dict[str, int]) -> None:
    path = _checkpoint(tmp_path / "m.safetensors", keys)
    assert _refused(lambda: read_single_file(path)) == (
        f"unknown kind of checkpoint: {path}\n"
        "  why: none of its 2 tensors has a known name; "
        "known kinds: Stable Diffusion XL, Stable Diffusion 1, Flux\n"
        "  instead: load it once with diffusers, save_pretrained() it, and name that folder"
    )


def test_a_missing_single_file_names_its_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "flux.safetensors").touch()
    path = tmp_path / "flxu.safetensors"
    assert _refused(lambda: read_single_file(path)) == (
        f"no such file: {path}\n"
        f"  why: {tmp_path} holds no such name\n"
        f"  instead: model.path={tmp_path}/flux.safetensors"
    )
    path = tmp_path / "x.ckpt"
    assert _refused(lambda: read_single_file(path)) == (
        f"no such file: {path}\n"
        f"  why: {tmp_path} holds no such name\n"
        "  instead: name one .safetensors file"
    )


def test_a_folder_is_no_single_file(tmp_path: Path) -> None:
    assert _refused(lambda: read_single_file(tmp_path)) == (
        f"not a file: {tmp_path}\n"
        "  why: it is a folder, and model=single_file reads one checkpoint\n"
        "  instead: name one .safetensors file"
    )


def test_a_pickled_checkpoint_is_refused_because_it_can_run_code(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.touch()
    assert _refused(lambda: read_single_file(path)) == (
        f"fastdiff doesn't load {path}\n"
        "  why: a .ckpt file is a pickle, and a pickle can run code when it is opened\n"
        "  instead: the same checkpoint as .safetensors"
    )


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.touch()
    assert _refused(lambda: read_single_file(path)) == (
        f"fastdiff doesn't load {path}\n"
        "  why: its name doesn't end with .safetensors\n"
        "  instead: a checkpoint as .safetensors"
    )


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\xff" * 64,
        _header(b"{}")[:-1],
    ],
    ids=["empty", "shorter-than-a-length", "length-beyond-the-file", "cut-in-the-header"],
)
def test_a_file_without_safetensors_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    assert _refused(lambda: read_single_file(path)) == (
        f"can't read {path}\n"
        "  why: it doesn't begin with a safetensors header\n"
        "  instead: fetch it again"
    )


@pytest.mark.parametrize(
    "text",
    [
        b"garbage",
        b"[1, 2]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b"\xff\xff",
    ],
)
def test_a_damaged_safetensors_header_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(_header(text))
    assert _refused(lambda: read_single_file(path)) == (
        f"can't read {path}\n  why: its safetensors header is damaged\n  instead: fetch it again"
    )


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path / "m.safetensors", FLUX_KEYS)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert _refused(lambda: read_single_file(path)) == (
        f"can't read {path}\n"
        f"  why: it is cut off: {whole - 1} bytes, and its header tells of {whole}\n"
        "  instead: fetch it again"
    )


def test_a_git_lfs_pointer_is_no_weight_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert _refused(lambda: read_single_file(path)) == (
        f"can't read {path}\n"
        "  why: it is a Git LFS pointer, not the weights\n"
        "  instead: git lfs pull"
    )
