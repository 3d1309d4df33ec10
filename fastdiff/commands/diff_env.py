"""`diff-env A B`: what two reports say differently of the machine, the software, the settings and the choices. Knows no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastdiff.commands.words import print_json, read_words
from fastdiff.errors import UsageError
from fastdiff.machine.files import SCHEMA, read_json

GROUPS = ("hardware", "software", "settings", "load")
_SETTINGS = (
    *("threads", "torch_settings.", "process_flags.", "environment_variables."),
    *("host_memory.transparent_hugepages", "processor.affinity", "processor.governor"),
    *("gpu.mig", "gpu.persistence", "gpu.ecc", "gpu.power_limit_w", "gpu.sm_clock_setting_mhz"),
)
_HARDWARE = (
    *("device", "capability", "cpu", "memory_bytes", "processor.", "host_memory.", "gpu."),
    *("system.virtual_machine", "system.hardware"),
)
_DRIVER = ("gpu.driver",)
"""How the names of fields begin, by group; the first group that fits has the field, and software has the rest."""
_NOT_COMPARED = ("torch_settings.threads", "system.kernel", "git_dirty_reason", "gpu.reason")
"""Said by another field as well."""
_VERSIONS = ("torch", "diffusers", "transformers", "torchao", "accelerate", "hydra-core")
"""Versions that every report has beside its other fields; `packages` has them and more."""
_THERE_OR_NOT = ("packages.", "environment_variables.", *_VERSIONS)
"""What one report doesn't hold of these wasn't there; any other field wasn't recorded."""
NOTABLE = 0.05
"""How far two shares of the processors, or two clocks as parts of the higher one, lie apart to be worth a line."""


def read_report(named: str) -> dict[str, Any]:
    """A report, named by its file or by its run's folder. Raises UsageError."""
    path = Path(os.path.expanduser(named))
    way = "a run's folder, or its report.json"
    if path.is_dir():
        path, folder = path / "report.json", path
        if not path.exists():
            raise UsageError(f"there is no report.json in {folder}\n  instead: {way}")
    try:
        report = read_json(path)
    except FileNotFoundError:
        raise UsageError(f"there is no {path}\n  instead: {way}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it isn't JSON"
        raise UsageError(f"{path} can't be read: {why}\n  instead: {way}") from None
    if not isinstance(report, dict) or not {"schema", "config", "environment"} <= report.keys():
        raise UsageError(f"{path} is no report of a run\n  instead: {way}")
    if report["schema"] != SCHEMA:
        raise UsageError(
            f"{path} has the schema {report['schema']!r}, and this fastdiff reads {SCHEMA}\n"
            "  instead: the fastdiff that wrote it"
        )
    if not isinstance(report["environment"], dict) or not isinstance(report["config"], dict):
        raise UsageError(f"{path} is no report of a run\n  instead: {way}")
    return report


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Two reports → plain data, in which what is equal is left out.

    environment: by group (GROUPS) and then by field, {"a", "b"}; with "missing": "a" or "b" where that report doesn't
    record it. choices: the same by slot and key. figures: by name {"a", "b"}, equal or not, None for what wasn't measured.
    """
    groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    if None in (a["environment"].get("gpu", ""), b["environment"].get("gpu", "")):
        # One of them ran on the CPU, as `device` says: the other's GPU has nothing to be compared with.
        a, b = ({**r, "environment": {**r["environment"], "gpu": None}} for r in (a, b))
    for field, entry in _changed(_facts(a), _facts(b)):
        groups[_group(field)][field.rstrip(".")] = entry
    if groups["hardware"].get("device_name") == groups["hardware"].get("cpu"):
        groups["hardware"].pop("device_name", None)  # of a run on the CPU both are its name
    groups["load"] = dict(_changed(*_notable(_load(a), _load(b))))
    choices = dict(_changed(_choices(a), _choices(b)))
    return {"environment": groups, "choices": choices, "figures": _figures(a, b)}


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fields of two flat mappings that differ, in the order of the first and then of the second.

    A group of fields that one of them lacks altogether stands for all of its fields.
    """
    groups = {field for field in (*a, *b) if field.endswith(".")}
    lacking = tuple(group for group in groups if group not in a or group not in b)
    for field in dict.fromkeys((*a, *b)):
        pair = {"a": a.get(field), "b": b.get(field)}
        if field in lacking:
            yield field, pair | {"missing": "a" if field not in a else "b"}
        elif field.startswith(lacking):
            continue
        elif (field in a and field in b) or field.startswith(_THERE_OR_NOT):
            if pair["a"] != pair["b"]:
                yield field, pair
        else:
            yield field, pair | {"missing": "a" if field not in a else "b"}


def _flat(data: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Nested fields by their path, `processor.smt`; an empty group stands for itself."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield f"{under}{key}.", None
            yield from _flat(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value


def _facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """The environment, flat."""
    environment = dict(report["environment"])
    if isinstance(packages := environment.get("packages"), Mapping):
        environment["packages"] = {k: v for k, v in packages.items() if k not in _VERSIONS}
    return {k: v for k, v in _flat(environment) if k not in _NOT_COMPARED}


def _group(field: str) -> str:
    if field.startswith(_DRIVER):
        return "software"
    if field.startswith(_SETTINGS):
        return "settings"
    return "hardware" if field.startswith(_HARDWARE) else "software"


def _choices(report: Mapping[str, Any]) -> dict[str, Any]:
    """Every slot's option and keys, as typed: `quant`, `quant.min_in_features`; experiments are names alone."""
    found = {}
    for slot, value in report["config"].items():
        if slot == "experiment":
            continue
        if not isinstance(value, Mapping):
            found[slot] = value
            continue
        for key, chosen in value.items():
            found[slot if key == "option" else f"{slot}.{key}"] = chosen
    return found


def _load(report: Mapping[str, Any]) -> dict[str, float]:
    """What else the machine did while calls were timed; {} for a report that doesn't say."""
    conditions = report.get("conditions") or {}
    host = conditions.get("host") or {}
    found = {name: host.get(name) for name in ("other_share", "steal_share")}
    gpu = conditions.get("gpu") or {}
    for when in ("before", "after"):
        state = gpu.get(when) or {}
        found[f"sm_clock_mhz_{when}"] = state.get("sm_clock_mhz")
    return {k: v for k, v in found.items() if isinstance(v, (int, float))}


def _notable(a: dict[str, float], b: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Both without what no two runs share: small differences, and what only one report says."""

    def notable(name: str) -> bool:
        apart = abs(a[name] - b[name])
        if name.endswith("share"):
            return apart > NOTABLE
        return apart > NOTABLE * max(abs(a[name]), abs(b[name]))

    names = [name for name in a if name in b and notable(name)]
    return {n: a[n] for n in names}, {n: b[n] for n in names}


_FIGURES = {
    "latency_s": ("latency_s", "median"),
    "step_latency_s": ("step_latency_s", "median"),
    "first_call_s": ("first_call_s",),
    "compile_s": ("compile_s",),
    "compile_cache": ("compile", "cache"),
    "peak_memory_device_bytes": ("peak_memory_bytes", "device_allocated"),
    "peak_memory_host_bytes": ("peak_memory_bytes", "host"),
    "psnr_db": ("quality", "psnr_db"),
    "ssim": ("quality", "ssim"),
    "identical": ("quality", "identical"),
}
"""Name → where it stands in a report."""


def _figures(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {"status": {"a": a.get("status"), "b": b.get("status")}}
    for name, path in _FIGURES.items():
        found[name] = {"a": _at(a, path), "b": _at(b, path)}
    return found


def _at(report: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = report
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def run(words: list[str]) -> int:
    """`diff-env A B`: what two reports say differently of their machines, settings and choices."""
    read = read_words("diff-env", "A/report.json B/report.json [--json]", words)
    a, b = read.files
    found = difference(read_report(a), read_report(b))
    if "--json" in read.flags:
        print_json(found)
        return 0
    from fastdiff.display.environment import render

    print(render(a, b, found))
    return 0
