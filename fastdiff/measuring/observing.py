"""What really ran: Dynamo's and Inductor's counters, its CUDA graphs, and the attention kernels of one denoiser call."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from fastdiff.config import Generation
from fastdiff.measuring.memory import cuda_is_in_use
from fastdiff.measuring.parts import at_first_denoiser_call
from fastdiff.passes.effects import Observed

_OPERATORS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_fused_attention_overrideable": "overrideable",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_attention_math_for_mps": "math",
    "aten::baddbmm": "baddbmm",
}
_CUDA_KERNELS = (
    (re.compile(r"flash_fwd|flash::", re.IGNORECASE), "flash"),
    (re.compile(r"fmha_cutlass|cutlassF", re.IGNORECASE), "efficient"),
    (re.compile(r"cudnn.*(sdpa|flash)", re.IGNORECASE), "cudnn"),
)
_SECOND_HALF = "splitkv_combine"
"""Of one call of FlashAttention over few queries: it sums up what `flash_fwd_splitkv_kernel` left, which is counted."""
_XFORMERS = re.compile(r"^xformers.*(fmha|attention|flash)", re.IGNORECASE)
_INNER = "aten::_efficient_attention_forward"
"""Called by SDPA's efficient kernel and, in newer versions, by xFormers: counted only where nothing above it was."""


_SKIPS_LOG = "torch._inductor.cudagraph_utils.__cudagraphs"
"""Where Inductor says why it leaves a CUDA graph out (`cudagraphs_log` in torch/_inductor/cudagraph_utils.py)."""


class _Skips(logging.Handler):
    """Keeps each reason once, in the order in which they came."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reasons: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.reasons[_one_line(record.getMessage())] = None


_skips = _Skips()


def note_skipped_cuda_graphs() -> None:
    """From now on, in a run's own process, keep why Inductor leaves CUDA graphs out."""
    logging.getLogger(_SKIPS_LOG).addHandler(_skips)


def compile_counters() -> Observed:
    """Dynamo's counts since the process began; all zero if nothing was compiled."""
    if "torch._dynamo" not in sys.modules:
        return Observed()
    from torch._dynamo.utils import counters, get_compilation_metrics

    frames = [m for m in get_compilation_metrics() if not getattr(m, "is_runtime", False)]
    compiled = [m for m in frames if m.has_guarded_code and not m.fail_type]
    again = [m for m in compiled if m.recompile_reason]
    breaks: Counter[str] = counters["graph_break"]
    inductor = counters["inductor"]
    hits, misses = inductor["fxgraph_cache_hit"], inductor["fxgraph_cache_miss"]
    cold = misses or inductor["fxgraph_cache_bypass"]
    graphs = len(compiled)
    # On a CPU Inductor counts every graph as left out, whose CUDA graph nobody could have had.
    on_cuda = cuda_is_in_use()
    return Observed(
        graphs=graphs,
        graph_breaks=sum(breaks.values()),
        recompiles=len(again),
        break_reasons=[_one_line(r) for r in (*breaks, *(str(m.recompile_reason) for m in again))],
        cache="none" if not graphs else "cold" if cold or not hits else "warm",
        compile_s=sum((m.entire_frame_compile_time_s or 0.0 for m in compiled), 0.0),
        cuda_graphs=cuda_graphs() if on_cuda else None,
        cuda_graphs_skipped=inductor["cudagraph_skips"] if on_cuda else 0,
        cuda_graphs_reasons=list(_skips.reasons) if on_cuda else [],
    )


def cuda_graphs() -> int | None:
    """Functions that Inductor runs as CUDA graphs: warmed up in their first call, recorded in the second, replayed from then on.

    One whose inputs are written to is taken over and then computed without a graph all the same: it doesn't count. None
    where this torch keeps its books otherwise.
    """
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is None:
        return 0
    import torch

    try:
        manager = trees.get_manager(torch.cuda.current_device(), create_if_none_exists=False)
        return 0 if manager is None else len(manager.ids_to_funcs) - len(manager.warned_mutation)
    except (AttributeError, TypeError):
        return None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


class SeenCall(NamedTuple):
    """Attention kernels of one denoiser call, with how often each ran.

    hidden: nothing at all was recorded of the GPU though one is in use: CUPTI may not trace in a container or on a virtual
        GPU. Kernels that are launched without operators, by a CUDA graph, can't be seen then.
    """

    kernels: dict[str, int]
    hidden: bool = False


def attention_kernels(pipeline: Any, denoiser: str, generation: Generation) -> SeenCall:
    """What one denoiser call runs.

    Starts a call of the pipeline with the same shapes and leaves it after the denoiser's first call.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    # Also where the weights wait on the host for their turn (memory=group_offload).
    on_cuda = cuda_is_in_use()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda

    def profiled(call: Callable[..., Any], args: Any, kwargs: Any) -> SeenCall:
        with profile(activities=activities) as profiler:
            call(*args, **kwargs)
            if on_cuda:
                torch.cuda.synchronize()
        events = profiler.events()
        seen = any(event.device_type.name == "CUDA" for event in events)
        return SeenCall(count_kernels(Counter(e.name for e in events)), on_cuda and not seen)

    return at_first_denoiser_call(pipeline, denoiser, generation, profiled) or SeenCall({})


def count_kernels(events: Counter[str]) -> dict[str, int]:
    """Names that a profiler gave → kernels, most frequent first. Public for its test."""
    found: Counter[str] = Counter()
    on_device: Counter[str] = Counter()
    for name, count in events.items():
        if name in _OPERATORS:
            found[_OPERATORS[name]] += count
        elif _XFORMERS.search(name):
            found["xformers"] += count
        elif _SECOND_HALF not in name:
            for pattern, kernel in _CUDA_KERNELS:
                if pattern.search(name):
                    on_device[kernel] += count
                    break
    if not found.keys() - {"baddbmm"} and events[_INNER]:
        found["xformers"] += events[_INNER]
    # A replayed CUDA graph has no operators any more, only the kernels that it launches.
    return dict((found or on_device).most_common())
