"""What a run says: effects, times, quality, and the report that holds them.

`report.json` is strict JSON (no NaN, no Infinity). Fields are added, never renamed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

SCHEMA = 1


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    INCOMPATIBLE = "incompatible"
    FAILED = "failed"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    INVALID_OUTPUT = "invalid_output"
    INTERRUPTED = "interrupted"


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

    def effect(self, observed: Observed) -> Effect: ...


@dataclass(frozen=True)
class Latency:
    """Times of the same thing again and again, in seconds. Samples are kept; statistics are derived.

    calls: how many of the samples come from each call of the pipeline, in their order; None where each is a call of its own.
    """

    samples_s: tuple[float, ...]
    calls: tuple[int, ...] | None = None

    @classmethod
    def by_call(cls, calls_s: Iterable[Sequence[float]]) -> Latency:
        """Times within calls. Those of one call have its luck in common, so they are no samples apart from one another."""
        known = [tuple(call) for call in calls_s]
        return cls(tuple(s for call in known for s in call), tuple(map(len, known)))

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples_s)

    def quantile_s(self, q: float) -> float:
        """The q-quantile (0 <= q <= 1), interpolated between samples."""
        ordered = sorted(self.samples_s)
        at = q * (len(ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])

    def ci95_s(self) -> tuple[float, float] | None:
        """Bootstrap interval of the median (10,000 resamples of whole calls, seed 0); None below 5 calls."""
        calls = self._calls()
        if len(calls) < _CALLS_FOR_CI95:
            return None
        import numpy

        samples = numpy.asarray(self.samples_s)
        order = numpy.argsort(samples)
        ordered, of_call = samples[order], numpy.repeat(numpy.arange(len(calls)), calls)[order]
        random, even = numpy.random.default_rng(0), [1 / len(calls)] * len(calls)
        medians = []
        for _ in range(10):  # all at once, thousands of steps would take hundreds of megabytes
            drawn = random.multinomial(len(calls), even, 1000)
            so_far = drawn[:, of_call].cumsum(axis=1)
            whole = so_far[:, -1:]
            # Of an even number of samples the median lies between the two in the middle.
            below = (2 * so_far >= whole).argmax(axis=1)
            above = (2 * so_far > whole).argmax(axis=1)
            medians.append((ordered[below] + ordered[above]) / 2)
        low, high = numpy.quantile(numpy.concatenate(medians), [0.025, 0.975])
        return float(low), float(high)

    def p99_s(self) -> float | None:
        """The 99th percentile; None below 100 samples or 20 calls."""
        if len(self.samples_s) < _SAMPLES_FOR_P99 or len(self._calls()) < _CALLS_FOR_P99:
            return None
        return self.quantile_s(0.99)

    def _calls(self) -> tuple[int, ...]:
        """Samples of each call that has any."""
        if self.calls is None:
            return (1,) * len(self.samples_s)
        return tuple(filter(None, self.calls))

    def to_dict(self) -> dict[str, Any]:
        """For the report; `calls` only for times within calls."""
        calls = {} if self.calls is None else {"calls": list(self.calls)}
        if not self.samples_s:
            figures = dict.fromkeys(("median", "p10", "p90", "p99", "ci95"))
            return {"samples": [], **calls, **figures}
        ci95 = self.ci95_s()
        return {
            "samples": list(self.samples_s),
            **calls,
            "median": self.median_s,
            "p10": self.quantile_s(0.1),
            "p90": self.quantile_s(0.9),
            "p99": self.p99_s(),
            "ci95": list(ci95) if ci95 else None,
        }


_CALLS_FOR_CI95 = 5
_SAMPLES_FOR_P99, _CALLS_FOR_P99 = 100, 20


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON so that the file is whole or not there at all.

    Raises ValueError for NaN and Infinity, which JSON doesn't know.
    """
    write_text(path, json.dumps(data, indent=2, allow_nan=False, default=_plain) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside its place first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits; of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
