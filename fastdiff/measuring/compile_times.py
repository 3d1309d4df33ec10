"""What compiling took while a cache was empty, kept beside what the cache holds, so that a warm run can say what it was spared.

A record lies in the compile cache's own folder, under `fastdiff/`, and moves and is deleted with it. It says how long a
setting took to compile on this machine with nothing to take from the cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdiff.config import PROVENANCE, fingerprint
from fastdiff.machine.cache_folder import KeptFile
from fastdiff.measuring.fields import Compiling
from fastdiff.passes.base import Setting
from fastdiff.passes.effects import Effect, Observed, Pending

_NOT_COMPILED = (
    *PROVENANCE,
    *("bench", "quality", "profile", "allow_no_effect", "device", "model"),
)
"""Of a run's choices, those that no compiled code depends on; the model is known by its parts instead."""
_NOT_IN_GRAPHS = ("prompt", "negative_prompt", "seed", "steps")
_NATIVE = {".so", ".cubin", ".hsaco"}
"""What C++ and Triton compile to, the latter for NVIDIA and for AMD."""


def native_code(setting: Setting) -> frozenset[str]:
    """Native code in the cache that this run uses, by its place there; taken before compiling, it tells what is new."""
    records = records_folder(setting)
    if records is None:
        return frozenset()
    folder = records.parent
    found = (path for path in folder.rglob("*") if path.suffix in _NATIVE)
    return frozenset(path.relative_to(folder).as_posix() for path in found)


def compile_times(
    setting: Setting,
    observed: Observed,
    outcomes: Sequence[Effect | Pending],
    before: frozenset[str],
) -> Compiling:
    """What the cache had, and what that saved.

    outcomes: what the passes returned. before: the cache's native code before the first call. The quickest cold run's
    seconds are on record, because what else computes only makes one slower; a warm run is compared with them. `saved_s`
    is below 0 where taking from the cache took longer, and None where nothing can be compared.
    """
    records = records_folder(setting)
    if observed.cache == "none" or records is None:
        return _said(observed.cache, None, None, "nothing was compiled")
    record = records / f"{setting_key(setting)}.json"
    built = bool(native_code(setting) - before)
    return judged(record, observed, inductor_counts(), outcomes, built=built, held=bool(before))


def judged(
    record: Path,
    observed: Observed,
    counts: Mapping[str, int],
    outcomes: Sequence[Effect | Pending],
    *,
    built: bool,
    held: bool,
) -> Compiling:
    """The same, for a record's file and Inductor's counts since the process began.

    built: whether native code was added to the cache; held: whether there had been any, of this setting or of another.

    Frozen weights that are packed for the processor can't be written to Inductor's index of graphs, so such a graph is
    planned in every process, and Inductor counts no hit. The native code that the plan asks for is taken from the folder
    all the same: where none had to be built, the cache was warm. Beside a damaged index, too, code may be taken: a run
    that built none, though there was some, isn't put on record.
    """
    own_s, cold_s = observed.compile_s, read(record)
    unlisted = counts.get("fxgraph_cache_bypass") and not counts.get("fxgraph_cache_miss")
    planned_again = bool(unlisted) and observed.cache == "cold" and not built
    if observed.cache == "warm" or planned_again:
        if cold_s is None:
            why = f"no cold run of this setting on this machine is on record in {record.parent}"
            return _said("warm", None, None, why)
        return _said("warm", cold_s, cold_s - own_s, _PLANNED_AGAIN if planned_again else None)
    reused = any(not isinstance(each, Effect) and each.reused for each in outcomes)
    if counts.get("fxgraph_cache_hit") or reused:
        return _said("cold", cold_s, None, _IN_PART)
    if held and not built:
        return _said("cold", cold_s, None, _INDEX_ALONE)
    if held and unlisted and cold_s is not None:
        return _said("cold", cold_s, None, _IN_PART)
    why = "this run filled the cache" if cold_s is None else _NOTHING_TAKEN
    if cold_s is None or own_s < cold_s:
        return _said("cold", own_s, None, remember(record, own_s) or why)
    return _said("cold", cold_s, None, why)


_PLANNED_AGAIN = (
    "frozen graphs are planned again in every process; their native code was in the cache"
)
_IN_PART = "part of the cache was missing and was compiled again"
_INDEX_ALONE = (
    "graphs were planned again; native code may have been taken from the cache, whose index was missing, "
    "damaged or switched off"
)
_NOTHING_TAKEN = "a cold run is on record, and nothing was taken from the cache: it was emptied, damaged or switched off"


def inductor_counts() -> dict[str, int]:
    """Inductor's own counts since the process began."""
    from torch._dynamo.utils import counters

    return dict(counters["inductor"])


def _said(cache: str, cold_s: float | None, saved_s: float | None, reason: str | None) -> Compiling:
    return Compiling(cache=cache, cold_compile_s=cold_s, saved_s=saved_s, saved_reason=reason)


def records_folder(setting: Setting) -> Path | None:
    """Beside what the run's cache of compiled code holds: `fastdiff/` in its folder; None if nothing is compiled."""
    folders = [folder for option in setting.options if (folder := option.code_folder())]
    return folders[0] / "fastdiff" if folders else None


def setting_key(setting: Setting) -> str:
    """Hash of what decides how long compiling takes: choices, the model's parts and sizes, machine, versions.

    The weights' values aren't among it, nor the prompt, nor the cache's own place.
    """
    import torch

    choices = {k: v for k, v in setting.run.to_dict().items() if k not in _NOT_COMPILED}
    choices["compile"] = {k: v for k, v in choices["compile"].items() if k != "cache_dir"}
    drawn = {k: v for k, v in choices["generation"].items() if k not in _NOT_IN_GRAPHS}
    choices["generation"] = drawn | {"prompts": len(setting.run.generation.prompts)}
    machine = setting.environment
    gpu = machine.gpus[0].name if setting.device == "cuda" and machine.gpus else None
    here = [setting.device, gpu, machine.cpu, torch.get_num_threads(), dict(machine.versions)]
    return fingerprint([choices, _architecture(setting), here])


def _architecture(setting: Setting) -> dict[str, Any]:
    """The model's parts without where they come from, which diffusers keeps in keys such as `_name_or_path`."""
    parts = setting.facts.components if setting.facts else {}
    return {
        name: [part.class_name, {k: v for k, v in part.config.items() if not k.startswith("_")}]
        for name, part in parts.items()
    }


def remember(record: Path, compile_s: float) -> str | None:
    """Put the seconds on record; returns why that can't be done, if so."""
    failed = KeptFile(record, shared=True).keep({"compile_s": compile_s})
    return f"can't be put on record in {record.parent} ({failed})" if failed else None


def read(record: Path) -> float | None:
    """The seconds on record; None where there are none, or none that can be read."""
    found: Any = (KeptFile(record, shared=True).read()[0] or {}).get("compile_s")
    usable = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if usable and math.isfinite(found) and found > 0 else None
