"""What really ran: Dynamo's and Inductor's counters, and the attention kernels of one denoiser call."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastdiff.bench.parts import at_first_denoiser_call
from fastdiff.config import Generation
from fastdiff.result import Observed

_OPERATORS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_fused_attention_overrideable": "overrideable",
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::baddbmm": "baddbmm",
}
_CUDA_KERNELS = (
    (re.compile(r"flash_fwd|flash::", re.IGNORECASE), "flash"),
    (re.compile(r"fmha_cutlass|cutlassF", re.IGNORECASE), "efficient"),
    (re.compile(r"cudnn.*(sdpa|flash)", re.IGNORECASE), "cudnn"),
)
_XFORMERS = re.compile(r"^xformers.*(fmha|attention|flash)", re.IGNORECASE)
_INNER = "aten::_efficient_attention_forward"
"""Called by SDPA's efficient kernel and, in newer versions, by xFormers: counted only where nothing above it was."""


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
    return Observed(
        graphs=graphs,
        graph_breaks=sum(breaks.values()),
        recompiles=len(again),
        break_reasons=[_one_line(r) for r in (*breaks, *(str(m.recompile_reason) for m in again))],
        cache="none" if not graphs else "cold" if cold or not hits else "warm",
        compile_s=sum((m.entire_frame_compile_time_s or 0.0 for m in compiled), 0.0),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def attention_kernels(pipeline: Any, denoiser: str, generation: Generation) -> dict[str, int]:
    """Attention kernels of one denoiser call with how often each ran.

    Starts a call of the pipeline with the same shapes and leaves it after the denoiser's first call.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    part = getattr(pipeline, denoiser)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available() and next(part.parameters()).is_cuda:
        activities.append(ProfilerActivity.CUDA)

    def profiled(call: Callable[..., Any], args: Any, kwargs: Any) -> Counter[str]:
        with profile(activities=activities) as events:
            call(*args, **kwargs)
            if len(activities) > 1:
                torch.cuda.synchronize()
        return Counter(event.name for event in events.events())

    names = at_first_denoiser_call(pipeline, denoiser, generation, profiled)
    return count_kernels(names) if names else {}


def count_kernels(events: Counter[str]) -> dict[str, int]:
    """Names that a profiler gave → kernels, most frequent first. Public for its test."""
    found: Counter[str] = Counter()
    on_device: Counter[str] = Counter()
    for name, count in events.items():
        if name in _OPERATORS:
            found[_OPERATORS[name]] += count
        elif _XFORMERS.search(name):
            found["xformers"] += count
        else:
            for pattern, kernel in _CUDA_KERNELS:
                if pattern.search(name):
                    on_device[kernel] += count
                    break
    if not found.keys() - {"baddbmm"} and events[_INNER]:
        found["xformers"] += events[_INNER]
    # A replayed CUDA graph has no operators any more, only the kernels that it launches.
    return dict((found or on_device).most_common())
