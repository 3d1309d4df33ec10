"""One call under torch's profiler, for profile=true: a trace that Perfetto opens, and the heaviest operators."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdiff.config import Generation
from fastdiff.errors import InvalidOutputError, RunError
from fastdiff.measuring.fields import HeavyOperator, Profile
from fastdiff.measuring.parts import DENOISER, around_parts
from fastdiff.measuring.timing import synchronize
from fastdiff.models.pictures import draw

TRACE = "trace.json.gz"
_MOST_STEPS = 5
_MOST_OPERATORS = 10
_LONGEST_NAME = 100
_OURS = "fastdiff: "
_WHOLE = "call"


@dataclass(frozen=True)
class Row:
    """One name in a profile. self_us: microseconds on the host in it and in nothing inside it; device_us: on the GPU.

    kernel: it is what ran on the GPU, not what started it.
    """

    name: str
    calls: int
    self_us: float
    device_us: float
    kernel: bool = False


def profile_call(pipeline: Any, generation: Generation, device: str, folder: Path) -> Profile:
    """Draw once more, in at most five steps, and write `trace.json.gz` into the folder.

    The shapes are those of the run, so nothing is compiled again. Raises RunError if the call fails or the trace can't be
    written whole.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    steps = min(_MOST_STEPS, generation.steps or _MOST_STEPS)
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    try:
        synchronize(device)
        with (
            profile(activities=activities) as profiled,
            record_function(_OURS + _WHOLE),
            around_parts(pipeline, lambda part: record_function(_OURS + part)),
        ):
            draw(pipeline, replace(generation, steps=steps))
            synchronize(device)
        rows = [row for event in profiled.key_averages() if (row := _row(event, device))]
    except (MemoryError, torch.OutOfMemoryError, InvalidOutputError):
        raise
    except Exception as error:
        raise _failed(f"the profiled call failed: {type(error).__name__}: {error}") from error
    write_trace(profiled, folder / TRACE)
    return Profile(TRACE, steps, *heaviest(rows, device), reason=None)


def _failed(reason: str) -> RunError:
    return RunError(f"profile=true: {reason}\n  instead: profile=false")


def write_trace(profiled: Any, path: Path) -> None:
    """Write the trace, and read it again. Raises RunError if it isn't whole; nothing is left of it then."""
    try:
        profiled.export_chrome_trace(str(path))
        doubt = what_is_missing(path)
    except (OSError, RuntimeError) as error:
        doubt = str(getattr(error, "strerror", None) or error)
    if doubt:
        path.unlink(missing_ok=True)
        raise _failed(f"{path} can't be written: {doubt}")


def what_is_missing(path: Path) -> str | None:
    """Why a file is no trace of a call; None if it is one."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            trace = json.load(file)
    except (OSError, EOFError, ValueError) as error:
        return f"what was written is no compressed JSON ({type(error).__name__})"
    events = trace.get("traceEvents") if isinstance(trace, dict) else None
    names = {event.get("name") for event in events or []}
    return None if {_OURS + _WHOLE, _OURS + DENOISER} <= names else "the call is not in it"


def _row(event: Any, device: str) -> Row | None:
    """A row of torch's table; None for a range that a profiler draws on the GPU, which is nothing that ran there."""
    on_gpu = event.device_type.name != "CPU"
    if on_gpu and event.is_user_annotation:
        return None
    device_us = event.self_device_time_total if device == "cuda" else 0.0
    return Row(event.key, event.count, event.self_cpu_time_total, device_us, kernel=on_gpu)


def heaviest(rows: Iterable[Row], device: str) -> tuple[str, list[HeavyOperator]]:
    """Whose time was measured, and the ten names that took longest by themselves; `share` is of all that was measured.

    On CUDA it is the GPU's time, by the operator that started it; by kernel where operators started less than half of
    it, as in a CUDA graph that is replayed. Elsewhere it is the host's time in an operator and in no other inside it.
    What a part of the pipeline spends outside of operators, in Python or in compiled code that no profiler sees into,
    stands under its own name.
    """
    rows = list(rows)
    host = [row for row in rows if not row.kernel]
    measured = "host"
    found = [(_name(row), row.calls, row.self_us) for row in host]
    if device == "cuda":
        kernels = [row for row in rows if row.kernel]
        operators = [row for row in host if not row.name.startswith(_OURS)]
        ran = sum(row.device_us for row in kernels)
        chosen, measured = operators, "device, by operator"
        if sum(row.device_us for row in operators) < ran / 2:
            chosen, measured = kernels, "device, by kernel"
        found = [(_name(row), row.calls, row.device_us) for row in chosen]
    total = sum(took for _, _, took in found)
    most = sorted(found, key=lambda each: -each[2])[:_MOST_OPERATORS]
    return measured, [
        HeavyOperator(name, calls, took / 1e6, took / total)
        for name, calls, took in most
        if took > 0
    ]


def _name(row: Row) -> str:
    """An operator's name; a part's own time in words. Kernels' names can take a page."""
    if row.name.startswith(_OURS):
        return f"{row.name.removeprefix(_OURS)}, outside of operators"
    short = " ".join(row.name.split())
    return short if len(short) <= _LONGEST_NAME else f"{short[: _LONGEST_NAME - 3]}..."
