"""Rows that layers see, counted without weights, against real calls and published architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from conftest import Ran, _autoencoder_kl, _flux
from torch import nn, zeros

from fastdiff.choices.compose import compose
from fastdiff.models import rows
from fastdiff.models.architectures import ARCHITECTURES
from fastdiff.models.pictures import draw
from fastdiff.models.random_weights import empty_component
from fastdiff.models.rows import fewest_rows
from fastdiff.planning.build import build


@contextmanager
def really_seen(pipeline: Any, names: tuple[str, ...]) -> Iterator[dict[str, dict[str, int]]]:
    """Within it, rows of each linear layer's inputs, by component and path."""
    found: dict[str, dict[str, int]] = {name: {} for name in names}
    hooks = []

    def noting(seen: dict[str, int], path: str) -> Callable[..., None]:
        def note(layer: Any, args: Any, kwargs: Any) -> None:
            (given, *_) = (*args, *kwargs.values())
            count = given.numel() // given.shape[-1]
            seen[path] = min(count, seen.get(path, count))

        return note

    for name in names:
        for path, layer in getattr(pipeline, name).named_modules():
            if isinstance(layer, nn.Linear):
                note = noting(found[name], path)
                hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    yield found
    for hook in hooks:
        hook.remove()


def assert_counts_what_is_seen(pipeline: Any, call: Callable[[], Any], *splits: str) -> Any:
    """Counting finds the rows of a real call, and leaves the pipeline as it was; returns them."""
    names = tuple(n for n in ("unet", "transformer", "vae") if n in pipeline.components)
    models = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    before = [set(vars(part)) for part in models]
    numbers = torch.get_rng_state()
    counted = fewest_rows(pipeline, names, call, splits)
    assert [set(vars(part)) for part in models] == before
    assert torch.equal(numbers, torch.get_rng_state())
    for way in splits:
        getattr(pipeline.vae, f"enable_{way}")()
    with really_seen(pipeline, names) as seen:
        call()
    for name in names:
        linear = {path: count for path, count in counted[name].items() if path in seen[name]}
        assert linear == seen[name]
    assert seen[names[0]]
    return counted


@pytest.mark.parametrize(
    "choices",
    [
        (),
        ("generation.guidance_scale=1.0",),
        ("generation.images_per_prompt=3", "scheduler=lcm"),
        ("generation.height=96", "qkv=fused", "precision=fp16"),
        ("generation.prompt=[a red circle,a blue star]", "memory_format=channels_last"),
        ("vae=tiny",),
    ],
)
def test_rows_are_those_of_a_real_call(
    choices: tuple[str, ...], shapes_plan: Callable[..., Any]
) -> None:
    plan = shapes_plan(*choices)
    pipeline = build(plan).pipeline
    assert_counts_what_is_seen(pipeline, lambda: draw(pipeline, plan.setting.run.generation))


def test_a_vae_that_divides_its_work_sees_fewer_rows(shapes_plan: Callable[..., Any]) -> None:
    plan = shapes_plan("generation.images_per_prompt=2", "generation.height=96")
    generation = plan.setting.run.generation

    def least(*splits: str) -> int:
        pipeline = build(plan).pipeline
        pipeline.vae.tile_sample_min_size = 64
        counted = assert_counts_what_is_seen(pipeline, lambda: draw(pipeline, generation), *splits)
        return min(count for path, count in counted["vae"].items() if "attentions" in path)

    whole = least()
    assert least("slicing") == whole / 2
    assert least("tiling") < whole


def published(name: str) -> Any:
    """The pipeline of a published architecture without weights and text encoders, which takes embeddings."""
    architecture = ARCHITECTURES[name]
    kind: Any = getattr(diffusers, architecture.pipeline)
    made: dict[str, Any] = dict.fromkeys(architecture.tokenizers)
    for part, blueprint in architecture.components.items():
        made[part] = None if "encoder" in part else empty_component(blueprint)
    on_cpu = {"_execution_device": torch.device("cpu"), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), on_cpu)(**architecture.arguments, **made)


def of_chosen(part: nn.Module, seen: dict[str, int]) -> list[int]:
    """Rows of the layers that quant=int8 chooses."""
    option: Any = compose(["quant=int8"]).quant
    return [seen[path] for path, layer in part.named_modules() if option.chooses(layer)]


def test_81_of_fluxs_502_layers_see_one_row() -> None:
    pipeline = published("flux_schnell")
    found = fewest_rows(
        pipeline,
        ("transformer",),
        lambda: pipeline(
            prompt_embeds=zeros(1, 256, 4096),
            pooled_prompt_embeds=zeros(1, 768),
            num_inference_steps=1,
            output_type="latent",
        ),
    )
    counts = of_chosen(pipeline.transformer, found["transformer"])
    assert (len(counts), counts.count(1)) == (502, 81)
    assert sorted(set(counts)) == [1, 256, 4096, 4096 + 256]


@pytest.mark.parametrize(("guidance", "pictures"), [(5.0, 2), (1.0, 1)])
def test_all_but_sdxls_embeddings_see_more_than_16_rows(guidance: float, pictures: int) -> None:
    pipeline = published("sdxl")
    found = fewest_rows(
        pipeline,
        ("unet",),
        lambda: pipeline(
            prompt_embeds=zeros(1, 77, 2048),
            negative_prompt_embeds=zeros(1, 77, 2048),
            pooled_prompt_embeds=zeros(1, 1280),
            negative_pooled_prompt_embeds=zeros(1, 1280),
            num_inference_steps=1,
            guidance_scale=guidance,
            output_type="latent",
        ),
    )
    few = {path for path, count in found["unet"].items() if count < 17}
    assert all("emb" in path for path in few)
    counts = of_chosen(pipeline.unet, found["unet"])
    assert sorted(set(counts))[:2] == [pictures, 77 * pictures]


def sd3() -> tuple[Any, dict[str, Any]]:
    encoders = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=32,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder_kl(shift_factor=0.0, use_quant_conv=False, use_post_quant_conv=False),
        **dict.fromkeys(encoders),
    )
    pooled = {f"{n}pooled_prompt_embeds": zeros(1, 64) for n in ("", "negative_")}
    return pipeline, {f"{n}prompt_embeds": zeros(1, 20, 32) for n in ("", "negative_")} | pooled


def masked(width: int) -> dict[str, Any]:
    given: dict[str, Any] = {"prompt": None, "negative_prompt": None}
    for name in ("", "negative_"):
        given[f"{name}prompt_embeds"] = zeros(1, 20, width)
        given[f"{name}prompt_attention_mask"] = torch.ones(1, 20)
    return given | {"use_resolution_binning": False}


def pixart() -> tuple[Any, dict[str, Any]]:
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=_autoencoder_kl(),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
        ),
        scheduler=diffusers.DDIMScheduler(),
    )
    return pipeline, masked(32)


def sana() -> tuple[Any, dict[str, Any]]:
    pipeline = diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        ),
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=32,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    return pipeline, masked(8) | {"complex_human_instruction": None}


@pytest.mark.parametrize(
    ("make", "few"),
    [
        (sd3, ("time_text_embed", "norm")),
        (pixart, ("adaln_single",)),
        (sana, ("time_embed",)),
    ],
)
def test_modulation_of_other_families_sees_a_row_a_picture(
    make: Callable[[], tuple[Any, dict[str, Any]]], few: tuple[str, ...]
) -> None:
    pipeline, embeddings = make()
    pipeline.set_progress_bar_config(disable=True)
    counted = assert_counts_what_is_seen(
        pipeline,
        lambda: pipeline(
            **embeddings,
            num_inference_steps=2,
            height=32,
            width=32,
            generator=torch.Generator("cpu").manual_seed(0),
        ),
    )
    linear = {p for p, m in pipeline.transformer.named_modules() if isinstance(m, nn.Linear)}
    least = {path for path in linear if counted["transformer"][path] == 2}  # guidance's two
    assert least
    assert all(any(name in path for name in few) for path in least)


def test_text_encoders_need_not_compute() -> None:
    pipeline = _flux()
    for name in ("text_encoder", "text_encoder_2"):
        for layer in getattr(pipeline, name).modules():
            if isinstance(layer, nn.Linear):
                layer.forward = None
    call = lambda: pipeline("a red circle", num_inference_steps=1, height=32, width=32)  # noqa: E731
    assert fewest_rows(pipeline, ("transformer",), call)["transformer"]["x_embedder"] == 64


def test_a_text_encoder_that_can_not_be_without_weights_computes(
    monkeypatch: pytest.MonkeyPatch, shapes_plain: Ran
) -> None:
    pipeline, generation = shapes_plain.pipeline, shapes_plain.generation
    expected = fewest_rows(pipeline, ("unet",), lambda: draw(pipeline, generation))
    real, calls = rows.without_weights, []

    def odd(part: Any) -> Any:
        if "CLIP" in type(part).__name__:
            calls.append(part)
            raise TypeError("odd")
        return real(part)

    monkeypatch.setattr(rows, "without_weights", odd)
    assert fewest_rows(pipeline, ("unet",), lambda: draw(pipeline, generation)) == expected
    assert len(calls) == 2


def test_pointwise_convolutions_count_and_what_no_call_reaches_is_missing(
    shapes_plain: Ran,
) -> None:
    pipeline = shapes_plain.pipeline
    found = fewest_rows(pipeline, ("unet", "vae"), lambda: draw(pipeline, shapes_plain.generation))
    pointwise = {
        p
        for p, m in pipeline.unet.named_modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    }
    assert {found["unet"][path] for path in pointwise} <= {2 * n * n for n in (4, 8, 16, 32)}
    assert not any(path.startswith("encoder") for path in found["vae"])


def test_a_call_that_fails_leaves_nothing_behind(shapes_plain: Ran) -> None:
    pipeline = shapes_plain.pipeline

    def call() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fewest_rows(pipeline, ("unet",), call)
    assert not {"forward", "decode"} & {*vars(pipeline.unet), *vars(pipeline.vae)}
    assert pipeline._progress_bar_config == {"disable": True}


def test_a_model_that_has_two_names_is_put_back_too(shapes_plan: Callable[..., Any]) -> None:
    pipeline = build(shapes_plan()).pipeline
    encoder = pipeline.text_encoder_2
    pipeline.register_modules(text_encoder=encoder)
    fewest_rows(pipeline, ("unet",), lambda: None)
    assert "forward" not in vars(encoder)
