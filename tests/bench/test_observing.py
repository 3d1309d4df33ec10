"""What a profiler and Dynamo saw, in counts."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastdiff.bench.observing import attention_kernels, compile_counters, count_kernels
from fastdiff.result import Observed

# Names as CUDA profiles show them, of flash-attention 2, cutlass, cuDNN and xFormers.
FLASH = "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4> >"
CUTLASS = "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)"
CUDNN = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128"
GEMM = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64"


@pytest.mark.parametrize(
    ("events", "kernels"),
    [
        ({}, {}),
        ({"aten::mm": 50, GEMM: 50, "aten::softmax": 3}, {}),
        ({"aten::_scaled_dot_product_flash_attention_for_cpu": 14}, {"flash": 14}),
        ({"aten::_scaled_dot_product_flash_attention": 8, FLASH: 8}, {"flash": 8}),
        ({"aten::_scaled_dot_product_efficient_attention": 8, CUTLASS: 8}, {"efficient": 8}),
        ({"aten::_scaled_dot_product_cudnn_attention": 8, CUDNN: 8}, {"cudnn": 8}),
        ({"aten::_scaled_dot_product_attention_math": 4, "aten::bmm": 8}, {"math": 4}),
        ({"aten::baddbmm": 4, "aten::bmm": 4}, {"baddbmm": 4}),
        (
            {
                "aten::_scaled_dot_product_flash_attention": 3,
                "aten::_scaled_dot_product_efficient_attention": 5,
            },
            {"efficient": 5, "flash": 3},
        ),
        ({"xformers::efficient_attention_forward_cutlass": 6}, {"xformers": 6}),
        ({"xformers_flash::flash_fwd": 6, FLASH: 6}, {"xformers": 6}),
        ({"aten::_efficient_attention_forward": 6, CUTLASS: 6}, {"xformers": 6}),
        # A parent and its child, as CUDA profiles show them, are one call.
        (
            {
                "aten::_scaled_dot_product_efficient_attention": 8,
                "aten::_efficient_attention_forward": 8,
                CUTLASS: 8,
            },
            {"efficient": 8},
        ),
        (
            {
                "xformers::efficient_attention_forward_cutlass": 6,
                "aten::_efficient_attention_forward": 6,
            },
            {"xformers": 6},
        ),
    ],
)
def test_operators_are_counted_by_kernel(events: dict[str, int], kernels: dict[str, int]) -> None:
    found = count_kernels(Counter(events))
    assert found == kernels
    assert list(found) == list(kernels)  # the most frequent first


@pytest.mark.parametrize(
    ("name", "kernel"), [(FLASH, "flash"), (CUTLASS, "efficient"), (CUDNN, "cudnn")]
)
def test_a_replayed_cuda_graph_shows_kernels_and_no_operators(name: str, kernel: str) -> None:
    assert count_kernels(Counter({name: 12, GEMM: 100, "cudaGraphLaunch": 1})) == {kernel: 12}


def test_one_profiled_call_leaves_the_pipeline_as_it_was(shapes_plain: Any) -> None:
    """The call is left after the denoiser's first step, so the rest of the pipeline doesn't run."""
    pipeline = shapes_plain.pipeline
    calls: list[str] = []
    hooks = [
        pipeline.unet.conv_in.register_forward_hook(lambda *_: calls.append("denoiser")),
        pipeline.vae.decoder.register_forward_hook(lambda *_: calls.append("vae")),
    ]
    forward = pipeline.unet.forward
    try:
        kernels = attention_kernels(pipeline, "unet", shapes_plain.generation)
    finally:
        for hook in hooks:
            hook.remove()
    assert kernels == {"flash": 14}
    assert calls == ["denoiser"]
    assert pipeline.unet.forward == forward


def test_the_pipeline_is_given_back_when_the_profiled_call_fails(
    sd_folder: Path, local_plan: Any
) -> None:
    from fastdiff.engine import build

    plan = local_plan(sd_folder)
    pipeline = build(plan).pipeline

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    hook = pipeline.unet.conv_in.register_forward_pre_hook(broken)
    forward = pipeline.unet.forward
    with pytest.raises(ZeroDivisionError):
        attention_kernels(pipeline, "unet", plan.setting.run.generation)
    hook.remove()
    assert pipeline.unet.forward == forward


def test_without_dynamo_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert compile_counters() == Observed()
