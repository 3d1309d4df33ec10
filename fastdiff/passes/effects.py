"""What a pass changed, counted on the pipeline: at once, or after the first call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Effect:
    """What a pass measurably changed.

    name: of the pass, `quant.int8`.
    changed: how many `unit`s it changed.
    already: nothing to do because it held before; shown as `already so`.
    flag: the pass sets a process flag, and the flag is the effect.
    details: further counts and names, plain data.
    """

    name: str
    changed: int
    unit: str
    already: bool = False
    flag: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether a pass that should have changed something changed nothing."""
        return self.changed == 0 and not (self.already or self.flag)

    def __str__(self) -> str:
        """In words: `quant.int8 63 linears`."""
        if self.already:
            return f"{self.name} already so"
        if self.flag:
            return f"{self.name} {self.unit}"
        extra = self.details.get("summary")
        unit = re.sub(r"(\w)s\b", r"\1", self.unit, count=1) if self.changed == 1 else self.unit
        return f"{self.name} {self.changed} {unit}" + (f", {extra}" if extra else "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "pass": self.name,
            "changed": self.changed,
            "unit": self.unit,
            "details": {**self.details, "already": self.already, "flag": self.flag},
        }


@dataclass(frozen=True)
class Observed:
    """What was seen of the first call and of one profiled denoiser call.

    kernels: attention kernels that ran in that call, with how often.
    graphs, graph_breaks, recompiles: Dynamo's counts.
    break_reasons: why graphs broke or were compiled again.
    cache: whether Inductor's cache gave (`warm`), had to be filled (`cold`), or wasn't used (`none`).
    compile_s: seconds that Dynamo and Inductor took.
    kernels_hidden: the profiler recorded nothing of the GPU, so that kernels which only the GPU tells can't be seen.
    cuda_graphs: functions that Inductor runs as CUDA graphs; None where that can't be told, or off CUDA.
    cuda_graphs_skipped: how often Inductor left a CUDA graph out though it was asked for one; reasons in its words.
    """

    kernels: Mapping[str, int] = field(default_factory=dict)
    graphs: int = 0
    graph_breaks: int = 0
    recompiles: int = 0
    break_reasons: Sequence[str] = ()
    cache: str = "none"
    compile_s: float = 0.0
    kernels_hidden: bool = False
    cuda_graphs: int | None = None
    cuda_graphs_skipped: int = 0
    cuda_graphs_reasons: Sequence[str] = ()


class Pending(Protocol):
    """What a pass returns that works lazily: its effect is known after the first call."""

    def observed(self, observed: Observed) -> Observed:
        """What was seen, with what this pass knows of it and torch's counters don't."""
        return observed

    @property
    def reused(self) -> bool:
        """Whether it took compiled code that it had kept itself."""
        return False

    def effect(self, observed: Observed) -> Effect: ...
