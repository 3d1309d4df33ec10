"""The arithmetic of known models, and what a machine's rates make of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fastdiff.measuring import roofline as module
from fastdiff.measuring.fields import Roofline
from fastdiff.measuring.rates import Rates
from fastdiff.measuring.roofline import (
    Counted,
    Work,
    against_limit,
    count_flops,
    roofline,
    work_of_a_step,
)
from fastdiff.models.architectures import ARCHITECTURES
from fastdiff.models.random_weights import empty_component

MakePlan = Callable[..., Any]


def rates(**given: Any) -> Rates:
    """1 TFLOP/s, 4 in int8, and 100 GB/s."""
    known: dict[str, Any] = {
        "matmul_flops_per_s": 1e12,
        "int8_ops_per_s": 4e12,
        "copy_bytes_per_s": 1e11,
        "processor_share": 1.0,
        "made_for": {},
        "measured_at": "2026-11-21T10:00:00+00:00",
    }
    return Rates(**known | given)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@functools.cache
def unet_of(architecture: str) -> Any:
    """A published denoiser that has no weights."""
    return empty_component(ARCHITECTURES[architecture].components["unet"]).to("meta")


@functools.cache
def sdxl(pictures: int, pixels: int) -> Counted:
    """What a call of SDXL's denoiser counts."""
    sample = meta(pictures, 4, pixels // 8, pixels // 8)
    given = {
        "encoder_hidden_states": meta(pictures, 77, 2048),
        "added_cond_kwargs": {
            "text_embeds": meta(pictures, 1280),
            "time_ids": meta(pictures, 6),
        },
        "return_dict": False,
    }
    return count_flops(unet_of("sdxl"), (sample, meta()), given)


def attention_of_sdxl(pixels: int) -> float:
    """TFLOP of a picture's attention products, by hand: two products of n queries with n pixels and 77 words in each block."""
    levels = ((640, 10, (pixels // 16) ** 2), (1280, 60, (pixels // 32) ** 2))
    return sum(2 * 2 * wide * blocks * n * (n + 77) for wide, blocks, n in levels) / 1e12


def test_the_arithmetic_of_sdxl_is_what_is_known() -> None:
    """Counters that overlook attention say 3.07 TFLOP for guidance at 512x512, and 2.99 tera multiply-adds at 1024x1024."""
    guided, large = sdxl(2, 512).total / 1e12, sdxl(1, 1024).total / 1e12
    assert guided - 2 * attention_of_sdxl(512) == pytest.approx(3.07, rel=0.002)
    assert (large - attention_of_sdxl(1024)) / 2 == pytest.approx(2.99, rel=0.002)
    assert guided == pytest.approx(3.178, rel=0.001)
    assert large == pytest.approx(6.761, rel=0.001)


def test_the_arithmetic_of_stable_diffusion_is_what_is_known() -> None:
    """0.40 tera products and additions a picture and step at 512x512, attention included."""
    given = {"encoder_hidden_states": meta(1, 77, 768), "return_dict": False}
    found = count_flops(unet_of("sd1"), (meta(1, 4, 64, 64), meta()), given)
    assert found.total / 2e12 == pytest.approx(0.40, rel=0.02)


def test_a_layer_counts_two_operations_for_a_product_and_an_addition() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(10, 100), nn.Linear(100, 1)

        def forward(self, x: Any, *, twice: bool = False) -> Any:
            y = self.narrow(self.wide(x))
            return y + self.narrow(self.wide(x)) if twice else y

    with torch.device("meta"):
        two = Two()
    whole, by_layer, _ = count_flops(two, (meta(8, 10),), {})
    assert by_layer == {"wide": 2 * 8 * 10 * 100, "narrow": 2 * 8 * 100}
    assert whole == sum(by_layer.values())
    assert count_flops(two, (meta(8, 10),), {"twice": True})[0] == 2 * whole


def test_arithmetic_binds_where_it_takes_longer_than_the_weights() -> None:
    found = against_limit(Work(2 * 10**12, 0, 10**11, torch.bfloat16), rates(), 4.0)
    assert found == Roofline(
        step_s=4.0,
        flops_per_step=2 * 10**12,
        int8_flops_per_step=0,
        weight_bytes_per_step=10**11,
        dtype="bfloat16",
        matmul_tflops_per_s=1.0,
        int8_tops_per_s=4.0,
        copy_gb_per_s=100.0,
        rates_measured_at="2026-11-21T10:00:00+00:00",
        convolution_flops_per_step=0,
        convolution_tflops_per_s=None,
        limit_s=2.0,
        bound="compute",
        achieved_tflops_per_s=0.5,
        fraction_of_limit=0.5,
        reason=None,
    )


@pytest.mark.parametrize(
    ("work", "known", "seconds", "expected"),
    [
        (  # reading the weights takes longer
            *(Work(10**11, 0, 10**11, torch.float32), {}, 2.0),
            {"bound": "memory", "limit_s": 1.0, "fraction_of_limit": 0.5},
        ),
        (Work(2 * 10**12, 10**12, 0, torch.bfloat16), {}, 2.5, {"limit_s": 1.0 + 0.25}),
        (
            *(Work(2 * 10**12, 10**12, 0, torch.bfloat16), {"int8_ops_per_s": None}, 2.5),
            {"limit_s": 2.0, "int8_tops_per_s": None, "int8_flops_per_step": 0},
        ),
        (  # in fp32 on an NVIDIA GPU cuDNN computes convolutions in TF32
            *(Work(2 * 10**12, 0, 0, torch.float32, False, 10**12),),
            *({"convolution_flops_per_s": 8e12}, 1.5),
            {
                "limit_s": 1.0 + 0.125,
                "convolution_flops_per_step": 10**12,
                "convolution_tflops_per_s": 8.0,
                "fraction_of_limit": 0.75,
            },
        ),
        (
            *(Work(2 * 10**12, 0, 0, torch.float32, False, 10**12), {}, 1.5),
            {"limit_s": 2.0, "convolution_flops_per_step": 0},
        ),
    ],
)
def test_each_kind_of_work_has_a_limit_of_its_own(
    work: Work, known: dict[str, Any], seconds: float, expected: dict[str, Any]
) -> None:
    found = against_limit(work, rates(**known), seconds)
    assert replace(found, **expected) == found


def test_convolutions_of_a_model_are_counted_apart() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.window, self.linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(7, 11)

        def forward(self, x: Any) -> Any:
            return self.linear(self.window(x))

    with torch.device("meta"):
        both = Both()
    found = count_flops(both, (meta(2, 3, 7, 7),), {})
    windows, products = 2 * 2 * 7 * 7 * 3 * 5 * 9, 2 * 2 * 5 * 7 * 7 * 11
    assert found.total == windows + products
    assert found.convolutions == {"": windows, "window": windows, "linear": 0}


def test_a_quarter_of_sdxls_arithmetic_is_convolutions() -> None:
    found = sdxl(1, 1024)  # by picture: guidance has as much again of both
    assert found.convolutions[""] / found.total == pytest.approx(0.24, abs=0.01)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 512.00 MiB.\nA long story"
            ),
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB.",
        ),
        (MemoryError(), "MemoryError: "),
        (RuntimeError("CUDA error: an illegal memory access"), "RuntimeError: CUDA error: an "),
    ],
)
def test_rates_that_can_not_be_measured_cost_a_run_nothing_but_its_roofline(
    error: Exception, reason: str, shapes_plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(device: str, dtype: Any) -> Rates:
        raise error

    monkeypatch.setattr(module, "machine_rates", fails)
    found, notices = roofline(
        shapes_plain.pipeline, shapes_plain.generation, "cpu", 0.1, caches=False
    )
    assert found == Roofline(reason=found.reason)
    assert found.reason.startswith(f"the machine's rates can't be measured: {reason}")
    assert "story" not in found.reason
    assert notices == ()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Which rates were asked for; those above are given."""
    asked: list[Any] = []

    def given(device: str, dtype: Any) -> Rates:
        asked.append((device, dtype))
        return rates(notices=("kept elsewhere",))

    monkeypatch.setattr(module, "machine_rates", given)
    return asked


@pytest.mark.parametrize("family", ["sd_folder", "flux_folder"])
def test_a_real_pipelines_step_has_a_limit(
    family: str,
    request: pytest.FixtureRequest,
    local_plan: MakePlan,
    built: Any,
    measured: list[Any],
) -> None:
    plan = local_plan(request.getfixturevalue(family), "precision=bf16")
    pipeline, generation = built(plan)
    found, notices = roofline(pipeline, generation, "cpu", 0.01, caches=False)
    part = getattr(pipeline, "unet", None) or pipeline.transformer
    assert found.weight_bytes_per_step == 2 * sum(p.numel() for p in part.parameters())
    assert found.flops_per_step > 1e5
    assert found.reason is found.note is None
    assert notices == ("kept elsewhere",)
    assert measured == [("cpu", torch.bfloat16)]


@pytest.fixture
def work(built: Any) -> Callable[[Any], Work]:
    def found(plan: Any) -> Work:
        of_a_step = work_of_a_step(*built(plan)[:1], "unet", plan.setting.run.generation)
        assert of_a_step is not None
        return of_a_step

    return found


def test_what_passes_do_to_the_denoiser_changes_no_arithmetic(
    shapes_plan: MakePlan, work: Callable[[Any], Work]
) -> None:
    plain = work(shapes_plan())
    fused = work(shapes_plan("qkv=fused", "attention=sdpa_math", "memory_format=channels_last"))
    assert fused.flops == plain.flops
    assert fused.weight_bytes == plain.weight_bytes  # unused projections are not read
    quantized = work(shapes_plan("quant=int8", "precision=bf16"))
    assert quantized.flops == plain.flops
    assert quantized.weight_bytes < plain.weight_bytes / 2
    assert 0 < quantized.int8_flops < plain.flops
    assert work(shapes_plan("quant=int8", "qkv=fused")).int8_flops == quantized.int8_flops
    weights_only = work(shapes_plan("quant=int8_weight_only", "cache=pyramid_attention"))
    assert (weights_only.int8_flops, weights_only.fp8) == (0, False)
    assert weights_only.flops == plain.flops
    # Guidance and batches are counted.
    assert work(shapes_plan("generation.images_per_prompt=3")).flops == 3 * plain.flops
    assert work(shapes_plan("generation.guidance_scale=1.0")).flops == plain.flops / 2


@pytest.mark.slow
def test_a_compiled_denoiser_hides_nothing(
    smallest_folder: Path, local_plan: MakePlan, built: Any, work: Callable[[Any], Work]
) -> None:
    from fastdiff.measuring.observing import compile_counters
    from fastdiff.models.pictures import draw

    plain = work(local_plan(smallest_folder))
    pipeline, generation = built(local_plan(smallest_folder, "compile=default"))
    draw(pipeline, generation)
    graphs = compile_counters().graphs
    assert work_of_a_step(pipeline, "unet", generation) == plain
    assert compile_counters().graphs == graphs


def test_a_cache_and_fp8_are_said_because_the_fraction_means_less(
    shapes_plain: Any, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, generation = shapes_plain.pipeline, shapes_plain.generation
    found, _ = roofline(pipeline, generation, "cpu", 1e-6, caches=True)
    assert found.fraction_of_limit > 1
    assert found.note == (
        "the step cache leaves work out that is counted, so the fraction may be above 1"
    )
    in_fp8 = Work(10**9, 0, 10**6, torch.bfloat16, fp8=True)
    monkeypatch.setattr(module, "work_of_a_step", lambda *given: in_fp8)
    found, _ = roofline(pipeline, generation, "cpu", 0.1, caches=False)
    assert found.note == "layers compute in fp8, and the limit is that of bfloat16"


@pytest.mark.parametrize(
    ("device", "other_share", "note"),
    [
        *[("cpu", share, None) for share in (None, 0.0, 0.1)],
        (
            "cpu",
            0.6,
            "others took 60% of this run's CPUs while calls were timed, so the fraction may be too low",
        ),
        ("cuda", 0.6, None),  # which needs one processor
    ],
)
def test_a_step_beside_others_is_said_because_the_rates_were_measured_alone(
    device: str,
    other_share: float | None,
    note: str | None,
    shapes_plain: Any,
    measured: list[Any],
) -> None:
    pipeline, generation = shapes_plain.pipeline, shapes_plain.generation
    found, _ = roofline(pipeline, generation, device, 0.1, caches=False, other_share=other_share)
    assert found.note == note


def test_where_there_are_no_figures_there_is_a_reason(
    shapes_plain: Any, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(pipeline: Any, step_s: float | None = 0.1) -> Any:
        found, notices = roofline(pipeline, shapes_plain.generation, "cpu", step_s, caches=False)
        assert found == Roofline(reason=found.reason)
        assert notices == ()
        return found.reason

    assert reason(SimpleNamespace(components={})) == "SimpleNamespace has no denoiser that is known"
    assert reason(shapes_plain.pipeline, None) == "the denoiser's calls were not timed"
    assert reason(shapes_plain.pipeline, 0.0) == "the denoiser's calls were not timed"

    def no_meta(part: Any) -> Any:
        raise NotImplementedError("aten::odd has no meta kernel\nand a long story")

    monkeypatch.setattr(module, "without_weights", no_meta)
    assert reason(shapes_plain.pipeline) == (
        "the arithmetic can't be counted: NotImplementedError: aten::odd has no meta kernel"
    )
    monkeypatch.setattr(module, "work_of_a_step", lambda *given: None)
    assert reason(shapes_plain.pipeline) == "the denoiser was not called"
    assert measured == []
