"""The slot `compile`: Inductor on the whole denoiser, its repeated blocks, and the VAE's decode.

Read `inductor.py` first, what all options share; then `whole.py`, torch.compile; then the two that compile less of a
model, `regional.py` and `regions.py`; then `aot.py`, which compiles ahead of time, and the `packages.py` that it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.passes import base
from fastdiff.passes.compile.aot import Aot
from fastdiff.passes.compile.regional import Regional
from fastdiff.passes.compile.regions import Regions
from fastdiff.passes.compile.whole import (
    Default,
    Dynamic,
    MaxAutotune,
    MaxAutotuneNoCudagraphs,
    ReduceOverhead,
)


@dataclass
class NoCompile(base.Option):
    """Eager PyTorch."""

    slot = "compile"


OPTIONS: dict[str, type[base.Option]] = {
    "none": NoCompile,
    "default": Default,
    "reduce_overhead": ReduceOverhead,
    "max_autotune": MaxAutotune,
    "max_autotune_no_cudagraphs": MaxAutotuneNoCudagraphs,
    "regional": Regional,
    "dynamic": Dynamic,
    "regions": Regions,
    "aot": Aot,
}
