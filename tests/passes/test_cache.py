"""Step caches: how much they skip, worked out from the UNet, how near the picture stays, and that each call begins anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastdiff
from fastdiff.errors import NoEffectError
from fastdiff.machine.environment import this_machine
from fastdiff.models.facts import KEEPS_ATTENTION
from fastdiff.passes.effects import Observed

LAYERS = 22
"""Of the embedded UNet's blocks. Down: residual block and downsampler; residual block, transformer, downsampler;
residual block, transformer. Middle: two residual blocks, a transformer. Up: twice two residual blocks, two transformers
and an upsampler; two residual blocks. 2 + 3 + 2 + 3 + 5 + 5 + 2."""

needs_deepcache = pytest.mark.skipif(
    not this_machine().has_module("DeepCache"), reason="the package DeepCache is not installed"
)


def cached(ran: Any) -> Any:
    """The cache's effect."""
    (effect,) = [
        e
        for e in ran.built.effects(Observed(), allow_no_effect=True)
        if e.name.startswith("cache.")
    ]
    return effect


def again(ran: Any) -> list[Any]:
    from fastdiff.models.pictures import draw, float32_noise

    with float32_noise(ran.pipeline):
        return draw(ran.pipeline, ran.generation)


def identical(left: list[Any], right: list[Any]) -> bool:
    return [picture.tobytes() for picture in left] == [picture.tobytes() for picture in right]


@pytest.fixture(scope="module")
def plain_25(shapes_run: Callable[..., Any]) -> Any:
    return shapes_run("generation.steps=25")


# DeepCache -------------------------------------------------------------------------------------------


@needs_deepcache
@pytest.mark.parametrize(
    ("interval", "full_steps", "near_db"),
    # Measured: 35.9, 31.8 and 29.8 dB.
    [(2, 13, 32), (3, 9, 28), (5, 5, 26)],
)
def test_deepcache_skips_all_but_one_layer_between_full_steps(
    shapes_run: Callable[..., Any],
    plain_25: Any,
    global_state: Any,
    interval: int,
    full_steps: int,
    near_db: float,
) -> None:
    """Branch 0 computes only the last up block's last residual block in the steps between."""
    before = global_state()
    ran = shapes_run("generation.steps=25", "cache=deepcache", f"cache.interval={interval}")
    effect = cached(ran)

    skipped = (25 - full_steps) * (LAYERS - 1)
    assert str(effect) == f"cache.deepcache {skipped} block calls skipped, of {25 * LAYERS}"
    assert effect.details["steps"] == 25
    assert near_db < ran.psnr_db(plain_25) < 60
    assert global_state() == before


@needs_deepcache
def test_a_deeper_branch_skips_less(shapes_run: Callable[..., Any]) -> None:
    """Branch 3 leaves the second block's first layer: its transformer and residual block are skipped, and what is
    below. Both sides of the outermost block are computed, with the sampler from the second: 2 + 3 layers up, 2 down."""
    shallow = cached(shapes_run("cache=deepcache", "cache.interval=2"))
    deep = cached(shapes_run("cache=deepcache", "cache.interval=2", "cache.branch=3"))
    assert shallow.changed == 2 * 21
    assert deep.changed == 2 * (LAYERS - 7)


@needs_deepcache
def test_every_call_begins_anew_and_the_first_is_what_counts(
    shapes_run: Callable[..., Any],
) -> None:
    ran = shapes_run("cache=deepcache")
    effect = cached(ran)
    assert str(effect) == f"cache.deepcache {2 * 21} block calls skipped, of {4 * LAYERS}"
    ran.kernels()  # leaves a call after its first step
    assert identical(again(ran), ran.pictures)
    assert identical(again(ran), ran.pictures)
    assert cached(ran) == effect


@needs_deepcache
def test_a_solver_that_visits_timesteps_twice_is_cached_by_steps(shapes_plan: Any) -> None:
    """Heun's: ten steps are nineteen calls of the UNet, ten of them in full."""
    from diffusers import HeunDiscreteScheduler

    from fastdiff.models.pictures import draw
    from fastdiff.passes.base import Context
    from fastdiff.passes.cache import DeepCache
    from fastdiff.planning.build import build

    plan = shapes_plan("generation.steps=10")
    pipeline = build(plan).pipeline
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    pending = DeepCache(interval=2).apply(pipeline, Context(plan.setting))
    draw(pipeline, plan.setting.run.generation)
    effect = pending.effect(Observed())
    assert (effect.details["steps"], effect.changed) == (19, 9 * 21)


@needs_deepcache
def test_counting_changes_nothing_and_the_package_alone_draws_the_same(
    shapes_run: Callable[..., Any],
) -> None:
    from DeepCache import DeepCacheSDHelper

    ours = shapes_run("cache=deepcache", "cache.interval=2")
    theirs = shapes_run()
    helper = DeepCacheSDHelper(theirs.pipeline)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    helper.enable()
    assert identical(again(theirs), ours.pictures)


@needs_deepcache
@pytest.mark.parametrize(
    "other", ["qkv=fused", "attention=math", "attention=sdpa_math", "quant=int8", "precision=bf16"]
)
def test_deepcache_skips_as_much_beside_other_options(
    shapes_run: Callable[..., Any], other: str
) -> None:
    ran = shapes_run("cache=deepcache", other)
    effects = {
        e.name: e
        for e in ran.built.effects(
            Observed(kernels={"math": 14} if "math" in other else {"flash": 14})
        )
    }
    assert effects["cache.deepcache"].changed == 2 * 21
    assert identical(again(ran), ran.pictures)


@needs_deepcache
@pytest.mark.slow
def test_deepcache_goes_with_compiled_regions(shapes_run: Callable[..., Any]) -> None:
    eager = shapes_run("cache=deepcache")
    ran = shapes_run("cache=deepcache", "compile=regional")
    assert cached(ran) == cached(eager)
    assert ran.psnr_db(eager) > 50
    assert identical(again(ran), ran.pictures)


@needs_deepcache
def test_deepcache_on_an_sd_pipeline(sd_folder: Path, local_run: Callable[..., Any]) -> None:
    """Two blocks: residual block and downsampler; residual block and transformer. Middle: 3. Up: two residual blocks,
    two transformers and the upsampler; two residual blocks."""
    ran = local_run(sd_folder, "cache=deepcache", "cache.interval=2")
    layers = 2 + 2 + 3 + 5 + 2
    assert cached(ran).details["of"] == 2 * layers
    assert cached(ran).changed == layers - 1
    assert ran.psnr_db(local_run(sd_folder)) > 55  # measured: 70.5; random weights


# Pyramid attention broadcast -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "skipped", "near_db"),
    [
        # Steps 5 to 22 of 25 lie between noise levels 800 and 100 (1 + 40 * (24 - step)): 17, of which a range of 2 skips
        # every odd step, and one of 4 all but 8, 12, 16 and 20. Measured: 43.5, 50.3 and 44.3 dB.
        (("cache.cross_attention_block_skip_range=4",), 7 * (9 + 13), 38),
        (("cache.cross_attention_block_skip_range=2",), 7 * (9 + 9), 44),
        (("cache.spatial_attention_block_skip_range=null",), 7 * 13, 38),
    ],
)
def test_attention_is_computed_in_some_steps_only(
    shapes_run: Callable[..., Any],
    plain_25: Any,
    global_state: Any,
    keys: tuple[str, ...],
    skipped: int,
    near_db: float,
) -> None:
    """Seven transformer blocks, each with self-attention and cross-attention."""
    before = global_state()
    ran = shapes_run("generation.steps=25", "cache=pyramid_attention", *keys)
    assert str(cached(ran)) == (
        f"cache.pyramid_attention {skipped} attention calls skipped, of {25 * 14}"
    )
    assert near_db < ran.psnr_db(plain_25) < 80
    assert global_state() == before


def test_broadcast_attention_begins_anew_in_every_call(shapes_run: Callable[..., Any]) -> None:
    """A UNet's pipeline doesn't forget by itself."""
    ran = shapes_run("cache=pyramid_attention")
    effect = cached(ran)
    ran.kernels()
    assert identical(again(ran), ran.pictures)
    assert cached(ran) == effect


def test_broadcast_attention_on_flux(flux_folder: Path, local_run: Callable[..., Any]) -> None:
    """One double and two single blocks: three attentions."""
    ran = local_run(
        flux_folder,
        "cache=pyramid_attention",
        "generation.steps=8",
        "cache.timestep_skip_range=[0,1001]",
    )
    plain = local_run(flux_folder, "generation.steps=8")
    assert str(cached(ran)) == "cache.pyramid_attention 12 attention calls skipped, of 24"
    assert ran.psnr_db(plain) > 50  # measured: 62.9; random weights
    assert identical(again(ran), ran.pictures)


EVERY_STEP = ("cache=pyramid_attention", "cache.timestep_skip_range=[0,1001]", "generation.steps=8")


@pytest.mark.parametrize(
    ("name", "words", "skipped", "of"),
    [
        # One double and one single block, called with and without the prompt in each of eight steps.
        ("ChromaPipeline", (), 2 * 2 * 4, 2 * 2 * 8),
        ("QwenImagePipeline", (), 2 * 4, 2 * 8),
        ("QwenImagePipeline", ("generation.negative_prompt=ugly",), 2 * 2 * 4, 2 * 2 * 8),
    ],
)
def test_attention_is_kept_for_each_call_within_a_step(
    name: str,
    words: tuple[str, ...],
    skipped: int,
    of: int,
    tiny_folder: Callable[[str], Path],
    local_run: Callable[..., Any],
) -> None:
    folder = tiny_folder(name)
    ran = local_run(folder, *EVERY_STEP, *words)
    assert str(cached(ran)) == f"cache.pyramid_attention {skipped} attention calls skipped, of {of}"
    assert cached(ran).details["steps"] == 8
    assert identical(again(ran), ran.pictures)


def test_a_call_without_the_prompt_is_not_given_what_the_one_with_it_computed(
    tiny_folder: Callable[[str], Path], local_run: Callable[..., Any]
) -> None:
    """As diffusers' own hooks do, which know of no calls within a step."""
    import torch

    folder = tiny_folder("ChromaPipeline")

    def outputs(ran: Any) -> list[Any]:
        found: list[Any] = []
        attention = ran.pipeline.transformer.transformer_blocks[0].attn
        handle = attention.register_forward_hook(lambda module, inputs, out: found.append(out[0]))
        again(ran)
        handle.remove()
        return found

    kept = outputs(local_run(folder, *EVERY_STEP))
    assert len(kept) == 16
    for step in range(0, 8, 2):
        with_prompt, without, with_again, without_again = kept[2 * step : 2 * step + 4]
        assert torch.equal(with_prompt, with_again)
        assert torch.equal(without, without_again)
        assert not torch.equal(with_prompt, without)


@pytest.mark.parametrize("name", ["CogVideoXPipeline", "LTXPipeline", "WanPipeline"])
def test_attention_is_kept_in_pipelines_that_their_user_calls(
    name: str, tiny_folder: Callable[[str], Path]
) -> None:
    import numpy
    import torch

    def frames(**choices: Any) -> Any:
        pipeline = fastdiff.load(model=tiny_folder(name), device="cpu", **choices)
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(
            prompt="a red circle",
            height=32,
            width=32,
            num_frames=9,
            num_inference_steps=6,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        return drawn.frames

    cache = {"option": "pyramid_attention", "timestep_skip_range": [0, 1001]}
    moved = numpy.abs(frames(cache=cache) - frames()).max()
    assert 0 < moved < 0.5


@pytest.mark.parametrize("class_name", KEEPS_ATTENTION)
def test_who_keeps_attention_can_hold_a_cache_in_diffusers_too(class_name: str) -> None:
    import diffusers
    from diffusers.models.cache_utils import CacheMixin

    known = getattr(diffusers, class_name)
    assert issubclass(known, CacheMixin) or class_name == "UNet2DConditionModel"


@pytest.mark.parametrize(
    "name", ["ChromaPipeline", "CogVideoXPipeline", "FluxPipeline", "LTXPipeline", "QwenImagePipeline", "StableDiffusionPipeline", "WanPipeline"]
)  # fmt: skip
def test_which_of_them_have_cross_attention(name: str, tiny_folder: Callable[[str], Path]) -> None:
    from diffusers import DiffusionPipeline
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    made: Any = DiffusionPipeline.from_pretrained(tiny_folder(name), use_safetensors=True)
    denoiser = made.components.get("transformer") or made.unet
    found = [m for m in denoiser.modules() if isinstance(m, (Attention, AttentionModuleMixin))]
    crosses = any(getattr(module, "is_cross_attention", False) for module in found)
    assert KEEPS_ATTENTION[type(denoiser).__name__] == crosses


@pytest.mark.parametrize("other", ["qkv=fused", "attention=math", "quant=int8"])
def test_broadcast_attention_beside_other_options(
    shapes_run: Callable[..., Any], other: str
) -> None:
    ran = shapes_run("cache=pyramid_attention", other)
    assert cached(ran).changed == 21
    assert identical(again(ran), ran.pictures)


def test_steps_that_all_lie_outside_the_noise_levels_are_an_error(
    shapes_run: Callable[..., Any],
) -> None:
    ran = shapes_run("cache=pyramid_attention", "cache.timestep_skip_range=[998,999]")
    with pytest.raises(NoEffectError) as error:
        ran.effects(kernels={"flash": 14})
    assert str(error.value).startswith("cache.pyramid_attention changed 0 attention calls skipped")
