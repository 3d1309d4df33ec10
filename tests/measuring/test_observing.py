"""What a profiler and Dynamo saw, in counts."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiff.measuring import observing
from fastdiff.measuring.observing import attention_kernels, compile_counters, count_kernels
from fastdiff.passes.effects import Observed

# Names as CUDA profiles show them, of flash-attention 2, cutlass, cuDNN and xFormers.
FLASH = "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4> >"
CUTLASS = "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)"
CUDNN = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128"
DOT, INNER = "aten::_scaled_dot_product_", "aten::_efficient_attention_forward"
SPLIT = "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64> >"
GEMM = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64"


@pytest.mark.parametrize(
    ("events", "kernels"),
    [
        ({}, {}),
        ({"aten::mm": 50, GEMM: 50, "aten::softmax": 3}, {}),
        ({f"{DOT}flash_attention_for_cpu": 14}, {"flash": 14}),
        ({f"{DOT}flash_attention": 8, FLASH: 8}, {"flash": 8}),
        ({f"{DOT}efficient_attention": 8, CUTLASS: 8}, {"efficient": 8}),
        ({f"{DOT}cudnn_attention": 8, CUDNN: 8}, {"cudnn": 8}),
        ({f"{DOT}attention_math": 4, "aten::bmm": 8}, {"math": 4}),
        # On mps the formula has an operator of its own (aten/src/ATen/native/mps/operations/Attention.mm).
        ({f"{DOT}attention_math_for_mps": 4, "aten::scaled_dot_product_attention": 4}, {"math": 4}),
        ({"aten::baddbmm": 4, "aten::bmm": 4}, {"baddbmm": 4}),
        (
            {f"{DOT}flash_attention": 3, f"{DOT}efficient_attention": 5},
            {"efficient": 5, "flash": 3},
        ),
        ({"xformers::efficient_attention_forward_cutlass": 6}, {"xformers": 6}),
        ({"xformers_flash::flash_fwd": 6, FLASH: 6}, {"xformers": 6}),
        ({INNER: 6, CUTLASS: 6}, {"xformers": 6}),
        # A parent and its child, as CUDA profiles show them, are one call.
        ({f"{DOT}efficient_attention": 8, INNER: 8, CUTLASS: 8}, {"efficient": 8}),
        ({"xformers::efficient_attention_forward_cutlass": 6, INNER: 6}, {"xformers": 6}),
        # A replayed CUDA graph shows kernels and no operators.
        *[
            ({name: 12, GEMM: 100, "cudaGraphLaunch": 1}, {kernel: 12})
            for name, kernel in ((FLASH, "flash"), (CUTLASS, "efficient"), (CUDNN, "cudnn"))
        ],
        # Over few queries FlashAttention splits keys and values, and sums up in a kernel of its own.
        ({SPLIT: 20, SPLIT.replace("splitkv", "splitkv_combine"): 20}, {"flash": 20}),
    ],
)
def test_operators_are_counted_by_kernel(events: dict[str, int], kernels: dict[str, int]) -> None:
    found = count_kernels(Counter(events))
    assert found == kernels
    assert list(found) == list(kernels)  # the most frequent first


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
    assert kernels == ({"flash": 14}, False)
    assert calls == ["denoiser"]
    assert pipeline.unet.forward == forward


def test_the_pipeline_is_given_back_when_the_profiled_call_fails(
    sd_folder: Path, local_plan: Any, built: Any
) -> None:
    pipeline, generation = built(local_plan(sd_folder))

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    hook = pipeline.unet.conv_in.register_forward_pre_hook(broken)
    forward = pipeline.unet.forward
    with pytest.raises(ZeroDivisionError):
        attention_kernels(pipeline, "unet", generation)
    hook.remove()
    assert pipeline.unet.forward == forward


def test_without_dynamo_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert compile_counters() == Observed()


# On CUDA -------------------------------------------------------------------------------------------


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that computes on a GPU; the GPU itself is missing."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def profiler_of(*events: tuple[str, Any]) -> Callable[..., Any]:
    """A profiler that saw these names, each on a device."""

    class Profile:
        def __init__(self, activities: Any) -> None:
            assert torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def events(self) -> list[Any]:
            return [SimpleNamespace(name=name, device_type=kind) for name, kind in events]

    return Profile


def test_a_gpu_that_the_profiler_can_not_see_is_told_from_kernels_that_did_not_run(
    shapes_plain: Any, on_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.autograd import DeviceType

    def seen(*events: tuple[str, Any]) -> Any:
        monkeypatch.setattr("torch.profiler.profile", profiler_of(*events))
        return attention_kernels(shapes_plain.pipeline, "unet", shapes_plain.generation)

    launch = ("cudaGraphLaunch", DeviceType.CPU)
    assert seen(launch) == ({}, True)
    assert seen(launch, (GEMM, DeviceType.CUDA)) == ({}, False)
    assert seen(launch, (FLASH, DeviceType.CUDA)) == ({"flash": 1}, False)
    operator = ("aten::_scaled_dot_product_flash_attention", DeviceType.CPU)
    assert seen(operator) == ({"flash": 1}, True)


def trees(manager: Any) -> Any:
    """Inductor's module of CUDA graph trees, with this manager on its only device."""

    def get_manager(device: int, create_if_none_exists: bool = True) -> Any:
        assert (device, create_if_none_exists) == (0, False)
        return manager

    return SimpleNamespace(get_manager=get_manager)


@pytest.mark.parametrize(
    ("manager", "graphs"),
    [
        (None, 0),
        (SimpleNamespace(ids_to_funcs={1: "a", 2: "b"}, warned_mutation=set()), 2),
        (SimpleNamespace(ids_to_funcs={1: "a", 2: "b"}, warned_mutation={2}), 1),
        (SimpleNamespace(), None),
    ],
)
def test_cuda_graphs_are_counted_where_inductor_keeps_its_books_of_them(
    manager: Any, graphs: int | None, on_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees(manager))
    assert observing.cuda_graphs() == graphs
    monkeypatch.delitem(sys.modules, "torch._inductor.cudagraph_trees")
    assert observing.cuda_graphs() == 0


def test_inductors_books_of_cuda_graphs_are_where_they_are_looked_for() -> None:
    """The names in torch itself, which no faked module can vouch for."""
    import inspect

    from torch._inductor import cudagraph_trees, cudagraph_utils

    made = inspect.getsource(cudagraph_trees.CUDAGraphTreeManager.__init__)
    assert "self.ids_to_funcs" in made
    assert "self.warned_mutation" in made
    assert "create_if_none_exists" in inspect.signature(cudagraph_trees.get_manager).parameters
    assert cudagraph_utils.cudagraphs_log.name == observing._SKIPS_LOG


def test_what_inductor_says_of_graphs_that_it_left_out_is_kept_once(
    on_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters
    from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter

    monkeypatch.setattr(observing, "_skips", observing._Skips())
    before = counters["inductor"]["cudagraph_skips"]
    observing.note_skipped_cuda_graphs()
    try:
        for _ in range(2):
            log_cudagraph_skip_and_bump_counter("skipping cudagraphs due to\n  mutated inputs")
        seen = compile_counters()
        assert seen.cuda_graphs_skipped - before == 2
        assert seen.cuda_graphs_reasons == ["skipping cudagraphs due to mutated inputs"]
    finally:
        logging.getLogger(observing._SKIPS_LOG).removeHandler(observing._skips)
        counters["inductor"]["cudagraph_skips"] = before


def test_off_cuda_no_graph_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """There Inductor counts every graph of a mode with CUDA graphs."""
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters["inductor"], "cudagraph_skips", 2)
    seen = compile_counters()
    assert (seen.cuda_graphs, seen.cuda_graphs_skipped, seen.cuda_graphs_reasons) == (None, 0, [])
