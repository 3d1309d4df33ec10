"""Memory for speed: weights in fewer bits, weights on the host, and a VAE that divides its work.

The offloads move weights between the host and a GPU. Where there is none, their hooks are put on all the same, with the CPU
in the GPU's place: what is counted, what is called and what later passes rely on is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imagined import planned

from fastdiff.errors import NoEffectError, RunError
from fastdiff.measuring.quality import compare
from fastdiff.models.pictures import draw
from fastdiff.passes.base import Context
from fastdiff.passes.effects import Effect
from fastdiff.passes.memory import (
    _TILES_OF_TAESD,
    GroupOffload,
    Layerwise,
    ModelOffload,
    OffloadType,
    VaeSplitting,
)
from fastdiff.passes.wrapping import around_forward
from fastdiff.planning.build import build

TWO, LARGE = "generation.images_per_prompt=2", ("generation.height=128", "generation.width=128")


def effect_of(ran: Any, name: str) -> Effect:
    return next(o for o in ran.built.outcomes if isinstance(o, Effect) and o.name == name)


# Weights in fewer bits ----------------------------------------------------------------------------


def test_every_linear_and_convolution_of_the_denoiser_is_kept_in_fp8(
    shapes_run: Callable[..., Any], shapes_plain: Any, global_state: Any
) -> None:
    """Linears: 7 transformer blocks of 10, with 2 around each; 4 of time and size; 11 of resnets: 99, 42 of them without
    a bias. Convolutions: first and last; 2 in each of 11 resnets, 8 shortcuts; 2 down, 2 up: 36. So 57 + 99 + 72."""
    import torch

    before = global_state()
    ran = shapes_run("memory=layerwise")
    effect = effect_of(ran, "memory.layerwise")
    unet = ran.pipeline.unet
    kept = [w for w in unet.parameters() if w.dtype == torch.float8_e4m3fn]

    assert effect.changed == len(kept) == 228
    assert effect.details["of"] == 330
    numbers, small = sum(w.numel() for w in unet.parameters()), sum(w.numel() for w in kept)
    assert effect.details["bytes_before"] == 4 * numbers == 25_035_664
    assert effect.details["bytes_after"] == small + 4 * (numbers - small) == 6_296_644
    assert str(effect) == "memory.layerwise 228 weights in float8_e4m3fn, 25.0 MB became 6.3 MB"
    assert {w.dtype for w in ran.pipeline.vae.parameters()} == {torch.float32}
    assert 34 < ran.psnr_db(shapes_plain) < 60  # measured: 38.8
    assert global_state() == before


@pytest.mark.parametrize(
    ("choice", "weights", "least_db"),
    [
        ("precision=bf16", 228, 36),  # measured: 41.0
        ("attention=math", 228, 34),  # 38.8, as the others
        ("memory_format=channels_last", 228, 34),
        ("qkv=fused", 242, 34),  # 14 joined matrices more
    ],
)
def test_fp8_storage_goes_with_everything_that_comes_before_it(
    choice: str,
    weights: int,
    least_db: float,
    shapes_run: Callable[..., Any],
    shapes_plain: Any,
) -> None:
    ran = shapes_run("memory=layerwise", choice)
    assert effect_of(ran, "memory.layerwise").changed == weights
    assert least_db < ran.psnr_db(shapes_plain) < 60


def test_layers_are_left_out_by_the_pattern_of_their_name(shapes_plan: Callable[..., Any]) -> None:
    """Linears of time and size (4) and of the resnets' time (11), each with its bias: 30 of the 228."""
    pattern = "memory.skip_modules_pattern=[norm,time_emb,add_emb]"
    built = build(shapes_plan("memory=layerwise", pattern))
    (effect,) = [o for o in built.outcomes if isinstance(o, Effect) and o.name == Layerwise.key]
    assert effect.changed == 228 - 30


def test_quantized_weights_stay_as_they_are_beside_fp8(
    shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    """99 linears are in int8; what is left for fp8 are their 57 biases and the 36 convolutions."""
    import torch

    plain, ran = (
        shapes_run("quant=int8_weight_only", memory)
        for memory in ("memory=none", "memory=layerwise")
    )
    pairs = zip(plain.pipeline.unet.parameters(), ran.pipeline.unet.parameters(), strict=True)
    same = [
        torch.equal(old.qdata, new.qdata) and torch.equal(old.scale, new.scale)
        for old, new in pairs
        if hasattr(old, "qdata")
    ]
    effect = effect_of(ran, "memory.layerwise")
    assert same == [True] * 99
    assert effect.changed == 57 + 2 * 36
    assert effect.details["bytes_before"] < 17e6  # of 25.0 MB in fp32
    assert effect.details["bytes_after"] < 7e6
    assert ran.psnr_db(shapes_plain) > 31  # measured: 36.3


@pytest.mark.slow
def test_compiling_blocks_whose_weights_are_cast_fails_indeed(
    sd_folder: Path, local_plan: Any
) -> None:
    """What the refusal rests on: compiled all the same, Dynamo raises."""
    import torch

    built = build(local_plan(sd_folder, "compile=regional"))
    built.pipeline.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    generation = local_plan(sd_folder).setting.run.generation
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Parameter"):
        draw(built.pipeline, generation)
    torch._dynamo.reset()


# Weights on the host ------------------------------------------------------------------------------


def offloaded(option: ModelOffload | GroupOffload, plan: Any) -> tuple[Any, Effect]:
    """A pipeline with the option's hooks on it, the CPU in the GPU's place."""
    built = build(plan)
    return built.pipeline, option.apply(built.pipeline, Context(plan.setting))


def test_model_offload_hooks_every_component_and_draws_the_same(
    shapes_plan: Callable[..., Any], shapes_plain: Any
) -> None:
    plan = shapes_plan()
    pipeline, effect = offloaded(ModelOffload(), plan)
    names = {"unet", "vae", "text_encoder", "text_encoder_2"}

    assert set(effect.details["components"]) == names
    assert effect.details["always_on_device"] == []
    assert all(hasattr(getattr(pipeline, name), "_hf_hook") for name in names)
    assert str(effect) == "memory.model_offload 4 components on the device in turn"
    assert compare(draw(pipeline, plan.setting.run.generation), shapes_plain.pictures).identical


def test_a_call_ends_with_every_component_back_and_wrappers_in_place(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers alone would take the wrapper off with its hooks, and the second call would go without it."""
    from contextlib import nullcontext

    from accelerate.hooks import UserCpuOffloadHook

    plan = shapes_plan("generation.steps=2")
    pipeline, _ = offloaded(ModelOffload(), plan)
    entered, back = [], []
    around_forward(pipeline.unet, lambda: entered.append(1) or nullcontext())  # type: ignore[func-returns-value]
    monkeypatch.setattr(UserCpuOffloadHook, "offload", lambda hook: back.append(hook.model))
    for _ in range(2):
        draw(pipeline, plan.setting.run.generation)

    assert len(entered) == 4
    parts = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet, pipeline.vae]
    assert back == parts * 2
    assert all(hasattr(part, "_hf_hook") for part in parts)


def test_diffusers_is_told_which_device(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, plan = build(shapes_plan()).pipeline, shapes_plan()
    told: list[Any] = []
    monkeypatch.setattr(
        type(pipeline), "enable_model_cpu_offload", lambda self, **given: told.append(given)
    )
    context = Context(replace(plan.setting, device="cuda"))
    effect = ModelOffload().apply(pipeline, context)
    assert told == [{"device": "cuda"}]
    assert effect.empty  # nothing was hooked, and the effect knows


def test_a_pipeline_without_an_order_is_an_error(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = shapes_plan()
    pipeline = build(plan).pipeline
    monkeypatch.setattr(type(pipeline), "model_cpu_offload_seq", None)
    with pytest.raises(RunError) as refused:
        ModelOffload().apply(pipeline, Context(plan.setting))
    assert str(refused.value) == (
        "memory=model_offload: StableDiffusionXLPipeline doesn't say in which order its components work\n"
        "  instead: memory=group_offload, or memory=none"
    )


@pytest.mark.parametrize(
    ("option", "denoiser"),
    [
        (GroupOffload(), 7),  # three blocks down, three up, and all the rest
        (GroupOffload(num_blocks_per_group=2), 5),
        (GroupOffload(offload_type=OffloadType.leaf_level), 186),  # 135 layers and 51 norms
    ],
)
def test_group_offload_hooks_groups_and_draws_the_same(
    option: GroupOffload, denoiser: int, shapes_plan: Callable[..., Any], shapes_plain: Any
) -> None:
    from torch import nn

    plan = shapes_plan()
    pipeline, effect = offloaded(option, plan)
    layers = [
        m for m in pipeline.vae.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.GroupNorm)
    ]

    groups = effect.details["components"]
    assert (groups["unet"], groups["vae"]) == (denoiser, len(layers))
    assert effect.changed == sum(groups.values())
    assert (
        str(effect)
        == f"memory.group_offload {effect.changed} groups of layers on the device in turn"
    )
    for _ in range(2):
        assert compare(draw(pipeline, plan.setting.run.generation), shapes_plain.pictures).identical


def test_what_can_not_be_grouped_stays_on_the_device(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = shapes_plan()
    pipeline = build(plan).pipeline
    monkeypatch.setattr(type(pipeline.vae), "_supports_group_offloading", False)
    effect = GroupOffload().apply(pipeline, Context(plan.setting))
    assert effect.details["always_on_device"] == ["vae"]
    assert "vae" not in effect.details["components"]


def test_diffusers_is_told_how_to_group(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers.hooks
    import torch

    plan, told = shapes_plan(), {}
    pipeline = build(plan).pipeline
    names = {id(part): name for name, part in pipeline.components.items()}
    monkeypatch.setattr(
        diffusers.hooks,
        "apply_group_offloading",
        lambda part, **given: told.update({names[id(part)]: given}),
    )
    effect = GroupOffload(use_stream=True).apply(
        pipeline, Context(replace(plan.setting, device="cuda"))
    )
    common = {
        "onload_device": torch.device("cuda"),
        "offload_device": torch.device("cpu"),
        "num_blocks_per_group": 1,
    }
    assert told["unet"] == common | {"offload_type": "block_level", "use_stream": True}
    assert told["vae"] == common | {"offload_type": "leaf_level", "use_stream": False}
    assert set(told) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert effect.empty


@pytest.mark.parametrize("option", ["model_offload", "group_offload"])
def test_offloads_take_the_place_of_moving_there(option: str) -> None:
    plan = planned(f"memory={option}", device="cuda")
    (step,) = [step for step in plan.steps if step.stage.name == "PLACE"]
    assert step.pass_.key == f"memory.{option}"
    assert step.components == ("text_encoder", "text_encoder_2", "unet", "vae")
    alone = planned("", device="cuda").steps
    assert [s.pass_.key for s in alone if s.stage.name == "PLACE"] == ["device"]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "overrides",
    [
        ["memory=model_offload"],
        ["memory=group_offload"],
        ["memory=group_offload", "memory.offload_type=leaf_level"],
        ["memory=group_offload", "memory.use_stream=true"],
        ["memory=layerwise"],
    ],
)
def test_on_a_gpu_less_memory_is_in_use_between_calls(
    overrides: list[str], shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    import torch

    left = []
    for chosen in ([], overrides):
        before = torch.cuda.memory_allocated()
        ran = shapes_run("device=cuda", *chosen)
        left.append(torch.cuda.memory_allocated() - before)
        assert ran.psnr_db(shapes_plain) > 34
        del ran
    assert left[1] < 0.7 * left[0]


# A VAE that divides its work ----------------------------------------------------------------------


def test_slicing_decodes_a_batch_picture_by_picture(
    shapes_run: Callable[..., Any], global_state: Any
) -> None:
    before = global_state()
    plain, ran = shapes_run(TWO), shapes_run(TWO, "memory.vae_slicing=true")
    effect = effect_of(ran, "memory.vae")
    sizes: list[int] = []
    decoder = ran.pipeline.vae.decoder
    decoder.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[0]))
    draw(ran.pipeline, ran.generation)

    assert sizes == [1, 1]
    assert (ran.pipeline.vae.use_slicing, ran.pipeline.vae.use_tiling) == (True, False)
    assert (str(effect), effect.changed, effect.flag) == ("memory.vae slicing on", 1, True)
    assert ran.psnr_db(plain) > 80  # measured: 92.0, one grey level somewhere
    assert global_state() == before


def test_tiling_decodes_a_large_picture_in_tiles(shapes_run: Callable[..., Any]) -> None:
    """128 pixels are 32 latents; tiles are 16 latents, and the next one begins after 12: three a side."""
    plain, ran = shapes_run(*LARGE), shapes_run(*LARGE, "memory.vae_tiling=true")
    effect = effect_of(ran, "memory.vae")
    tiles: list[tuple[int, ...]] = []
    decoder = ran.pipeline.vae.decoder
    decoder.register_forward_pre_hook(lambda _, given: tiles.append(tuple(given[0].shape[-2:])))
    draw(ran.pipeline, ran.generation)

    assert (len(tiles), max(tiles)) == (9, (16, 16))
    assert (str(effect), effect.changed, effect.flag) == ("memory.vae tiling on", 1, True)
    assert 27 < ran.psnr_db(plain) < 60  # measured: 32.5


def test_both_hold_together_and_beside_any_option(shapes_plan: Callable[..., Any]) -> None:
    both = ("memory.vae_slicing=true", "memory.vae_tiling=true")
    plan = shapes_plan("memory=layerwise", *both, TWO, *LARGE)
    steps = [(s.pass_.key, s.components) for s in plan.steps if s.stage.name == "MEMORY"]
    assert steps == [("memory.layerwise", ("unet",)), ("memory.vae", ("vae",))]
    assert plan.steps[-2].does == "decode picture by picture and in overlapping tiles"
    built = build(plan)
    shown = [str(o) for o in built.outcomes if isinstance(o, Effect) and o.name == "memory.vae"]
    assert shown == ["memory.vae slicing and tiling on"]
    plan = planned(" ".join(["memory=group_offload", *both, TWO, *LARGE]), device="cuda")
    assert [s.pass_.key for s in plan.steps[-2:]] == ["memory.vae", "memory.group_offload"]


@pytest.mark.slow
def test_a_decode_in_tiles_is_one_graph(sd_folder: Path, local_plan: Any) -> None:
    """20 latents of height are two tiles of up to 16; traced, and run without a compiler."""
    import torch

    vae = build(local_plan(sd_folder, "memory.vae_tiling=true")).pipeline.vae
    latents = torch.randn(1, 4, 20, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = vae.decode(latents).sample
        found = torch.compile(vae.decode, fullgraph=True, backend="eager")(latents).sample
    assert torch.equal(found, expected)
    torch._dynamo.reset()


def test_the_tile_of_an_autoencoder_tiny_is_known() -> None:
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny()
    config = {"decoder_block_out_channels": [64] * 4}
    taesd = {"pipeline": "StableDiffusionPipeline", "vae": {"AutoencoderTiny": config}}
    assert round(vae.tile_sample_min_size * (1 - vae.tile_overlap_factor)) == _TILES_OF_TAESD
    for size, expected in ((_TILES_OF_TAESD, 1), (_TILES_OF_TAESD + 8, 0)):
        plan = planned(f"memory.vae_tiling=true generation.height={size}", model=taesd)
        assert sum("the whole picture is one tile" in n.text for n in plan.notices) == expected


def test_an_autoencoder_tiny_divides_too(sd_taesd_folder: Path, local_run: Any) -> None:
    plain = local_run(sd_taesd_folder, TWO)
    ran = local_run(sd_taesd_folder, TWO, "memory.vae_slicing=true")
    assert effect_of(ran, "memory.vae").changed == 1
    assert ran.psnr_db(plain) > 70


@pytest.mark.parametrize("missing", ["method", "vae"])
def test_a_vae_of_an_unknown_class_that_can_not_is_an_error(
    missing: str, shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = shapes_plan()
    pipeline = build(plan).pipeline
    if missing == "vae":
        monkeypatch.setattr(pipeline, "vae", None)
    else:
        monkeypatch.delattr(pipeline.vae, "use_slicing")
    with pytest.raises(RunError) as refused:
        VaeSplitting(slicing=True, tiling=False).apply(pipeline, Context(plan.setting))
    assert str(refused.value) == (
        "memory.vae_slicing=true: StableDiffusionXLPipeline has no VAE that can be told to\n"
        "  instead: memory.vae_slicing=false"
    )


def test_a_flag_that_did_not_hold_is_an_error(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    monkeypatch.setattr(AutoencoderKL, "enable_tiling", lambda self: None)
    with pytest.raises(NoEffectError, match=r"memory\.vae changed 0 tiling on"):
        build(shapes_plan("memory.vae_tiling=true"))
