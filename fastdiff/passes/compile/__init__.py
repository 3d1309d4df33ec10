"""The slot `compile`: Inductor on the whole denoiser, its repeated blocks, and the VAE's decode.

Read `inductor.py` first, what all options share; then `whole.py`, torch.compile; then the two that compile less of a
model, `regional.py` and `regions.py`; then `aot.py`, which compiles ahead of time, and the `packages.py` that it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.passes.base import Option
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
class NoCompile(Option):
    """Eager PyTorch."""

    slot: ClassVar[str] = "compile"


OPTIONS: dict[str, type[Option]] = {
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
