"""What a folder or a single file says of itself, and everything that is refused there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest
import torch
from safetensors.torch import save_file

from fastdiff.errors import ModelError
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.library import MODEL_CLASSES
from fastdiff.models.reading import read_folder, read_single_file
from fastdiff.models.sources import Local

diffusers: Any = _diffusers  # its constructors are untyped

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
    assert unet.facts is MODEL_CLASSES["UNet2DConditionModel"]
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


def test_a_folder_saved_as_a_variant_is_loaded_as_it(tmp_path: Path, pipeline: Any) -> None:
    pipeline.save_pretrained(tmp_path, variant="fp16")
    model = Local(path=str(tmp_path), variant="fp16")
    assert model.facts().denoiser is not None
    loaded = model.load(torch.float32, {})
    assert _numbers(loaded.unet) == _numbers(pipeline.unet)
    assert _refused(Local(path=str(tmp_path)).facts).endswith("\n  instead: model.variant=fp16")


def test_a_missing_folder_names_its_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "sdxl-turbo").mkdir()
    (tmp_path / "sdxl-turbo" / "model_index.json").write_text("{}")
    (tmp_path / "sdlx-turbos").mkdir()  # nearer, and no pipeline
    path = tmp_path / "sdlx-turbo"
    assert _refused(lambda: read_folder(path)) == (
        f"no such folder: {path}\n"
        f"  why: {tmp_path} holds no such name\n"
        f"  instead: model.path={tmp_path}/sdxl-turbo"
    )


def test_a_refusal_keeps_its_parts(tmp_path: Path) -> None:
    missing = tmp_path / "two\nlines"
    with pytest.raises(ModelError) as caught:
        read_folder(missing)
    error = caught.value
    assert (error.what, error.why) == (
        f"no such folder: {missing}",
        f"{tmp_path} holds no such name",
    )
    assert error.instead == "name a folder that save_pretrained() wrote"
    assert str(error) == f"{error.what}\n  why: {error.why}\n  instead: {error.instead}"


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


def test_a_modular_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modular_model_index.json").write_text("{}")
    assert _refused(lambda: read_folder(tmp_path)) == (
        f"not a pipeline: {tmp_path}\n"
        "  why: it has a modular_model_index.json: blocks of a modular pipeline, which fastdiff doesn't call yet\n"
        "  instead: name a folder that a pipeline's own save_pretrained() wrote"
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
    shard = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    (path / "unet" / WEIGHTS).rename(path / "unet" / shard)
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    return path


def test_weights_only_in_a_variant_name_the_variant(tmp_path: Path) -> None:
    path = _only_fp16(tmp_path)
    assert _refused(lambda: read_folder(path)) == (
        f"component unet has no plain weights: {path}/unet\n"
        "  why: its variants: fp16\n"
        "  instead: model.variant=fp16"
    )
    assert read_folder(path, "fp16").parameters == 6


def test_weights_only_in_another_variant_name_it(tmp_path: Path) -> None:
    path = _only_fp16(tmp_path)
    assert _refused(lambda: read_folder(path, "fp61")) == (
        f"component unet has neither fp61 nor plain weights: {path}/unet\n"
        "  why: its variants: fp16\n"
        "  instead: model.variant=fp16"
    )


def test_a_variant_that_no_component_has_is_refused(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    assert _refused(lambda: read_folder(path, "fp16")) == (
        f"no fp16 weights in {path}\n  why: it holds plain ones only\n  instead: model.variant=null"
    )
    save_file({"a": torch.zeros(6)}, path / "unet" / "diffusion_pytorch_model.bf16.safetensors")
    assert _refused(lambda: read_folder(path, "fp16")) == (
        f"no fp16 weights in {path}\n  why: its variants: bf16\n  instead: model.variant=bf16"
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
    ("keys", "entrance", "inputs", "pipeline_class"),
    [
        (SD1_KEYS, "model.diffusion_model.input_blocks.0.0.weight", 4, "StableDiffusionPipeline"),
        (SD1_KEYS, "model.diffusion_model.input_blocks.0.0.weight", 9, "StableDiffusionInpaintPipeline"),
        (SDXL_KEYS, "model.diffusion_model.input_blocks.0.0.weight", 9, "StableDiffusionXLInpaintPipeline"),
        (SDXL_KEYS, "model.diffusion_model.input_blocks.0.0.weight", 8, "StableDiffusionXLInstructPix2PixPipeline"),
        (FLUX_KEYS, "img_in.weight", 64, "FluxPipeline"),
        (FLUX_KEYS, "img_in.weight", 384, "FluxFillPipeline"),
        (FLUX_KEYS, "img_in.weight", 128, "FluxControlPipeline"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_takes_a_picture_too_is_told_by_its_first_layer(
    tmp_path: Path, keys: dict[str, int], entrance: str, inputs: int, pipeline_class: str
) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {key: torch.zeros(size) for key, size in keys.items()}
    save_file(tensors | {entrance: torch.zeros(2, inputs)}, path)
    assert read_single_file(path).pipeline == pipeline_class


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
