"""A pipeline that its user built: what it says of itself, against what its files say, and how it shows what was done to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

import fastdiff
from fastdiff.choices.compose import compose
from fastdiff.models.given import (
    Done,
    Given,
    devices_of,
    done_to,
    modules_of,
    precision_of,
    read_pipeline,
)
from fastdiff.models.library import MODEL_CLASSES, PIPELINE_CLASSES
from fastdiff.models.reading import read_folder
from fastdiff.models.sources import SHAPES_DIR

FAMILIES = ("shapes", "sd_folder", "sd_taesd_folder", "flux_folder")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    """Folders of pipelines of several families."""
    found: Path = SHAPES_DIR
    if request.param != "shapes":
        found = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def tiny(sd_folder: Path) -> Any:
    return load(sd_folder)


def load(folder: Path, dtype: torch.dtype | None = None) -> Any:
    return DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, local_files_only=True)


def given(pipeline: Any, keeps_dtype: bool = False) -> Given:
    return Given(pipeline, keeps_dtype=keeps_dtype, device="cpu")


# What it says of itself ------------------------------------------------------------------------------


def test_a_live_pipeline_says_of_itself_what_its_files_say(folder: Path) -> None:
    written, live = read_folder(folder), read_pipeline(load(folder, torch.float32))
    assert live.pipeline == written.pipeline
    assert live.components.keys() == written.components.keys()
    for name, part in written.components.items():
        found = live.components[name]
        assert (found.library, found.class_name) == (part.library, part.class_name)
        assert found.parameters == part.parameters
        said = {key: value for key, value in part.config.items() if not key.startswith("_")}
        for key in said.keys() - {"dtype", "torch_dtype", "transformers_version", "architectures"}:
            assert found.config[key] == said[key], f"{name}.{key}"


def test_the_bytes_of_its_weights_are_those_of_their_format(sd_folder: Path) -> None:
    full, half = (read_pipeline(load(sd_folder, t)) for t in (torch.float32, torch.bfloat16))
    for name, part in full.components.items():
        assert part.weight_bytes == read_folder(sd_folder).components[name].weight_bytes
        assert half.components[name].weight_bytes == (part.weight_bytes or 0) // 2


def test_it_is_known_by_its_classes_and_configurations(tiny: Any) -> None:
    model = given(tiny)
    assert model.title == "this StableDiffusionPipeline"
    assert model.facts() == read_pipeline(tiny)
    identity = model.identity()
    assert identity == json.loads(json.dumps(identity))
    assert identity["pipeline"] == "StableDiffusionPipeline"
    assert identity["components"].keys() == {"unet", "vae", "text_encoder", "scheduler"}
    before = identity["components"]["scheduler"]
    tiny.scheduler.register_to_config(steps_offset=0)
    assert model.identity()["components"]["scheduler"] != before


def test_a_run_of_it_can_be_written_down_without_it(tiny: Any) -> None:
    run = compose(["model=local", "model.path=given"])
    run.model = given(tiny)
    assert run.to_dict()["model"].keys() == {"option", "generation", "role", "tiny_vae"}


def test_a_compiled_component_is_known_by_what_it_was_made_from(tiny: Any) -> None:
    tiny.unet = torch.compile(tiny.unet)
    assert read_pipeline(tiny).components["unet"].class_name == "UNet2DConditionModel"


# Format and device -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_its_precision_is_its_denoisers(precision: str, tiny: Any) -> None:
    tiny.unet.to(DTYPES[precision])
    assert precision_of(tiny) == precision
    assert devices_of(tiny) == {torch.device("cpu")}


def test_layers_that_were_kept_in_fp32_dont_count(tiny: Any) -> None:
    tiny.unet.to(torch.bfloat16)
    tiny.unet.conv_norm_out.to(torch.float32)
    assert precision_of(tiny) == "bf16"


def test_other_formats_are_no_precision(tiny: Any) -> None:
    tiny.unet.to(torch.float64)
    assert precision_of(tiny) is None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cast_gives_what_loading_in_that_format_gives(folder: Path, precision: str) -> None:
    """T5 is in one of the folders: transformers keeps some of its layers in fp32 beside fp16, and not beside bf16."""
    dtype = DTYPES[precision]
    cast, loaded = given(load(folder)).load(dtype, {}), load(folder, dtype)
    for name, module in modules_of(loaded).items():
        state = modules_of(cast)[name].state_dict()
        for key, tensor in module.state_dict().items():
            assert state[key].dtype == tensor.dtype, f"{name}.{key}"
            assert torch.equal(state[key], tensor), f"{name}.{key}"


def test_what_a_diffusers_class_wants_in_fp32_stays_so(tiny: Any) -> None:
    tiny.unet._keep_in_fp32_modules = ["conv_norm_out"]
    given(tiny).load(torch.bfloat16, {})
    assert tiny.unet.conv_norm_out.weight.dtype == torch.float32
    assert tiny.unet.conv_in.weight.dtype == torch.bfloat16


def test_it_may_keep_its_format(tiny: Any) -> None:
    found = given(tiny, keeps_dtype=True).load(torch.bfloat16, {})
    assert found is tiny
    assert {weight.dtype for weight in tiny.unet.parameters()} == {torch.float32}


def test_parts_from_elsewhere_take_the_place_of_its_own_and_are_not_cast(
    tiny: Any, sd_taesd_folder: Path
) -> None:
    other = load(sd_taesd_folder).vae
    given(tiny).load(torch.bfloat16, {"vae": other})
    assert tiny.vae is other
    assert tiny.config["vae"] == ("diffusers", "AutoencoderTiny")
    assert {weight.dtype for weight in other.parameters()} == {torch.float32}


# What was done to it ---------------------------------------------------------------------------------


def test_a_pipeline_as_it_was_loaded_shows_nothing(folder: Path) -> None:
    assert {name: done_to(part) for name, part in modules_of(load(folder)).items()} == {
        name: set() for name in modules_of(load(folder))
    }


def fuse(pipeline: Any) -> None:
    pipeline.unet.fuse_qkv_projections()


def quantize(pipeline: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(pipeline.unet, Int8WeightOnlyConfig(set_inductor_config=False))


def store_in_fp8(pipeline: Any) -> None:
    pipeline.unet.conv_in.to(torch.float8_e4m3fn)


def cast_layerwise(pipeline: Any) -> None:
    pipeline.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


def compile_whole(pipeline: Any) -> None:
    pipeline.unet = torch.compile(pipeline.unet)


def compile_blocks(pipeline: Any) -> None:
    pipeline.unet.compile_repeated_blocks()


def compile_in_place(pipeline: Any) -> None:
    pipeline.unet.compile()


def wrap(pipeline: Any) -> None:
    forward = pipeline.unet.forward
    pipeline.unet.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def hook_with_accelerate(pipeline: Any) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(pipeline.unet, ModelHook())


def offload_in_groups(pipeline: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        pipeline.unet,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )


def skip_attention(pipeline: Any) -> None:
    from diffusers import PyramidAttentionBroadcastConfig
    from diffusers.hooks import apply_pyramid_attention_broadcast

    apply_pyramid_attention_broadcast(
        pipeline.unet,
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        ),
    )


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (fuse, {Done.FUSED}),
        (quantize, {Done.QUANTIZED}),
        (store_in_fp8, {Done.QUANTIZED}),
        (cast_layerwise, {Done.CAST}),
        (compile_whole, {Done.COMPILED}),
        (compile_blocks, {Done.COMPILED}),
        (compile_in_place, {Done.COMPILED}),
        (wrap, {Done.WRAPPED}),
        (hook_with_accelerate, {Done.OFFLOADED}),
        (offload_in_groups, {Done.OFFLOADED}),
        (skip_attention, {Done.WRAPPED}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_done_by_hand_shows(change: Any, shown: set[Done], tiny: Any) -> None:
    change(tiny)
    found = {name: done_to(part) for name, part in modules_of(tiny).items()}
    assert found == {"unet": shown, "vae": set(), "text_encoder": set()}


def test_an_adapter_that_isnt_fused_shows(tiny: Any) -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig

    tiny.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert done_to(tiny.unet) == {Done.ADAPTED}


def test_classes_that_the_file_does_not_know_are_looked_at(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in (MODEL_CLASSES, PIPELINE_CLASSES):  # what is learned here ends with the test
        monkeypatch.setattr(table, "_rows", dict(table))

    class OurUNet(UNet2DConditionModel):  # type: ignore[misc]
        _repeated_blocks = ("OurBlock",)

    class OurPipeline(StableDiffusionPipeline):  # type: ignore[misc]
        pass

    parts = load(sd_folder).components
    parts["unet"] = OurUNet.from_config(parts["unet"].config)
    pipeline = OurPipeline(**parts)
    facts = given(pipeline).facts()
    assert facts.denoiser is not None
    assert facts.denoiser.facts == replace(
        MODEL_CLASSES["UNet2DConditionModel"],
        repeated_blocks=("OurBlock",),
        attention=8,
    )
    assert facts.denoiser.fuses_qkv
    assert PIPELINE_CLASSES["OurPipeline"] == PIPELINE_CLASSES["StableDiffusionPipeline"]
    assert not any(
        layer.fused_projections
        for layer in pipeline.unet.modules()
        if hasattr(layer, "fused_projections")
    )
    with fastdiff.applied(pipeline, device="cpu", qkv="fused") as applied:
        assert "qkv.fused" in str(applied)
