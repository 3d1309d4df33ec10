"""Files that hold only a part of their weights are refused from their headers; whole ones load and draw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiff.errors import ModelError
from fastdiff.models import names
from fastdiff.models.reading import read_folder, read_json_object
from fastdiff.models.sources import Local, SingleFile
from fastdiff.models.whole import check_shards

UNET = "unet/diffusion_pytorch_model.safetensors"
FETCH = "fetch it again, or save the pipeline again with save_pretrained()"


def _without(file: Path, drop: Callable[[str], bool]) -> None:
    """Leaves tensors of a file out."""
    tensors = load_file(file)
    save_file({key: tensor for key, tensor in tensors.items() if not drop(key)}, file)


def _copy(folder: Path, into: Path) -> Path:
    shutil.copytree(folder, into)
    return into


def _refused(read: Callable[[], object]) -> tuple[str, str, str]:
    with pytest.raises(ModelError) as caught:
        read()
    error = caught.value
    return error.what, error.why, error.instead


# --- folders ------------------------------------------------------------------------------------


def test_a_unet_that_lacks_a_block_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    folder = _copy(sd_folder, tmp_path / "m")
    count = len(load_file(folder / UNET))
    _without(folder / UNET, lambda key: key.startswith("mid_block.attentions"))
    lacks = count - len(load_file(folder / UNET))
    assert _refused(lambda: read_folder(folder)) == (
        f"component unet is incomplete: {folder / 'unet'}",
        f"{lacks} of its {count} weights are missing, such as mid_block.attentions.0.norm.bias, "
        "mid_block.attentions.0.norm.weight and mid_block.attentions.0.proj_in.bias",
        FETCH,
    )


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias"),
        ("text_encoder/model.safetensors", "encoder.layers.1.mlp.fc2.weight"),
    ],
)
def test_one_weight_that_is_missing_is_named(
    file: str, key: str, sd_folder: Path, tmp_path: Path
) -> None:
    folder = _copy(sd_folder, tmp_path / "m")
    count = len(load_file(folder / file))
    _without(folder / file, lambda name: name.removeprefix("text_model.") == key)
    what, why, _ = _refused(lambda: read_folder(folder))
    assert what == f"component {Path(file).parent.name} is incomplete: {(folder / file).parent}"
    assert why == f"1 of its {count} weights are missing, such as {key}"


def test_a_class_whose_names_nobody_knows_is_refused_before_its_weights_are_read(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = _copy(tiny_folder("QwenImagePipeline"), tmp_path / "m")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    count = len(load_file(file))
    _without(file, lambda key: key.startswith("transformer_blocks.1.img_mlp"))
    read_folder(folder)
    what, why, _ = _refused(lambda: Local(path=str(folder)).load(None, {}))
    assert what == f"component transformer is incomplete: {folder / 'transformer'}"
    assert why.startswith(f"4 of its {count} weights are missing, such as transformer_blocks.1.img")


@pytest.mark.parametrize(
    "name",
    ["ChromaPipeline", "FluxPipeline", "LTXPipeline", "QwenImagePipeline", "WanPipeline", "ZImagePipeline"],
)  # fmt: skip
def test_whole_pipelines_of_other_classes_load(
    name: str, tiny_folder: Callable[[str], Path]
) -> None:
    folder = tiny_folder(name)
    assert Local(path=str(folder)).load(None, {}).transformer is not None


def test_a_variant_beside_which_lies_a_part_is_whole(sd_folder: Path, tmp_path: Path) -> None:
    folder = _copy(sd_folder, tmp_path / "m")
    for file in folder.rglob("*.safetensors"):
        save_file({k: t.half() for k, t in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))  # fmt: skip
    _without(folder / UNET, lambda key: key.startswith("up_blocks"))
    assert read_folder(folder, "fp16").parameters
    assert "weights are missing, such as up_blocks.0" in _refused(lambda: read_folder(folder))[1]


# --- shards -------------------------------------------------------------------------------------


@pytest.fixture
def sharded(sd_folder: Path, tmp_path: Path) -> Path:
    """The tiny pipeline saved again with its UNet in several files."""
    from diffusers import StableDiffusionPipeline

    made: Any = StableDiffusionPipeline.from_pretrained(sd_folder, use_safetensors=True)
    made.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    return tmp_path / "m"


def _shards(folder: Path) -> list[Path]:
    return sorted((folder / "unet").glob("*-of-*.safetensors"))


def test_shards_that_are_all_there_are_whole(sharded: Path) -> None:
    assert len(_shards(sharded)) > 2
    assert read_folder(sharded).parameters


@pytest.mark.parametrize("with_index", [True, False])
def test_a_shard_that_is_missing_is_named(sharded: Path, with_index: bool) -> None:
    shards = _shards(sharded)
    shards[1].unlink()
    if not with_index:
        next((sharded / "unet").glob("*.index.json")).unlink()
    assert _refused(lambda: read_folder(sharded)) == (
        f"component unet is incomplete: {sharded / 'unet'}",
        f"1 of its {len(shards)} files are missing, such as {shards[1].name}",
        FETCH,
    )


def test_shards_without_their_index_are_refused(sharded: Path) -> None:
    (index,) = (sharded / "unet").glob("*.index.json")
    index.unlink()
    what, why, _ = _refused(lambda: read_folder(sharded))
    count = len(_shards(sharded))
    assert what == (
        f"component unet has no index of its {count} files: no "
        f"diffusion_pytorch_model.safetensors.index.json in {sharded / 'unet'}"
    )
    assert why == "without it diffusers and transformers find none of them"


def test_a_damaged_index_is_refused(sharded: Path) -> None:
    (index,) = (sharded / "unet").glob("*.index.json")
    index.write_text("{}")
    assert _refused(lambda: read_folder(sharded))[:2] == (
        f"can't read {index}",
        "it is no index of weights",
    )


def test_a_tensor_that_only_the_index_names_is_missing(tmp_path: Path) -> None:
    files = {tmp_path / f"model-0000{n}-of-00002.safetensors": {f"w{n}"} for n in (1, 2)}
    index = {"w1": "model-00001-of-00002.safetensors", "w2": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    check_shards(tmp_path, "text_encoder", files)
    index["w3"] = "model-00002-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert _refused(lambda: check_shards(tmp_path, "text_encoder", files))[1] == (
        "1 of its 3 weights are missing, such as w3"
    )


# --- single files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(sd_folder: Path) -> dict[str, torch.Tensor]:
    """The tiny pipeline's weights under the names of an original checkpoint."""
    configs = {name: read_json_object(sd_folder / name / "config.json") for name in ("unet", "vae")}
    found = {}
    for key, tensor in load_file(sd_folder / UNET).items():
        up: Any = configs["unet"]["up_block_types"]
        name = names._original_unet(key, 1, up)
        found[f"model.diffusion_model.{name}"] = tensor
    for key, tensor in load_file(sd_folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        name = names._original_autoencoder(key, configs["vae"])
        is_linear = ".attn_1." in name and tensor.dim() == 2
        found[f"first_stage_model.{name}"] = tensor[:, :, None, None] if is_linear else tensor
    for key, tensor in load_file(sd_folder / "text_encoder" / "model.safetensors").items():
        name = key.removeprefix("text_model.")
        found[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    return found


def _file(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path) -> Path:
    path = folder / "checkpoint.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors}, path)
    return path


def test_a_whole_checkpoint_draws_what_the_folder_draws(
    checkpoint: dict[str, torch.Tensor], sd_folder: Path, tmp_path: Path
) -> None:
    path = _file(checkpoint.items(), tmp_path)
    made = SingleFile(path=str(path), config=str(sd_folder))
    made.facts()
    loaded, folder = made.load(torch.float32, {}), Local(path=str(sd_folder)).load(None, {})
    for name in ("unet", "vae", "text_encoder"):
        own, other = (getattr(pipeline, name).state_dict() for pipeline in (loaded, folder))
        assert own.keys() == other.keys()
        assert all(torch.equal(own[key], other[key]) for key in own)


@pytest.mark.parametrize(
    ("component", "prefix"),
    [
        ("unet", "model.diffusion_model.output_blocks."),
        ("vae", "first_stage_model.decoder.up."),
        ("text_encoder", "cond_stage_model.transformer.text_model.encoder.layers.1."),
    ],
)
def test_a_part_of_a_checkpoint_is_refused(
    component: str,
    prefix: str,
    checkpoint: dict[str, torch.Tensor],
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    kept = [(key, tensor) for key, tensor in checkpoint.items() if not key.startswith(prefix)]
    path = _file(kept, tmp_path)
    model = SingleFile(path=str(path), config=str(sd_folder))
    what, why, instead = _refused(model.facts)
    root = {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.transformer.text_model.",
    }[component]
    whole = sum(key.startswith(root) for key in checkpoint)
    first = sorted(key.removeprefix(root) for key in checkpoint if key.startswith(prefix))[:3]
    assert what == f"component {component} is incomplete: {path}"
    assert why == (
        f"{len(checkpoint) - len(kept)} of its {whole} weights are missing, such as "
        f"{first[0]}, {first[1]} and {first[2]}"
    )
    assert instead == "fetch the file again, or name one that holds the whole component"


def test_without_configurations_a_checkpoint_is_held_to_the_published_architecture(
    checkpoint: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = _file(checkpoint.items(), tmp_path)
    what, why, _ = _refused(SingleFile(path=str(path)).facts)
    assert what == f"component unet is incomplete: {path}"
    assert " of its 686 weights are missing, such as " in why
