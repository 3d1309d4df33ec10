"""A run's report → its recipe: the choices that a file can hold, and what they were measured to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any

from fastdiff.config import SLOTS, Slot
from fastdiff.options import default_options, option_files

FORMAT = 1

_NOT_CHOSEN = ("model", "bench", "quality")
"""Slots that say for what, and how it was measured."""


def recipe_of(
    report: Mapping[str, Any], name: str, report_sha256: str | None = None
) -> dict[str, Any]:
    """The recipe as plain data, in the order in which it is written.

    Left out are a slot at its default and a key at its option's, and places on this machine: whoever uses it names theirs.
    """
    config, environment = report["config"], report["environment"]
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "made_for": {"model": config["model"]["option"], "device": environment["device"]},
        "choices": dict(_choices(config)),
    }
    if report["latency_s"]["samples"]:
        recipe["measured"] = _measured(report, report_sha256)
    return recipe


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as YAML, an empty line between its parts."""
    import yaml

    parts = [
        yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=100)
        for key, value in recipe.items()
    ]
    head, others = parts[:2], parts[2:]
    return "\n".join(["".join(head), *others])


def _choices(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    defaults = default_options()
    for slot in SLOTS:
        if slot in _NOT_CHOSEN:
            continue
        option = config[slot]["option"]
        changed = dict(_changed(slot, option, config[slot]))
        if changed:
            yield slot, {"option": option, **changed}
        elif option != defaults[slot]:
            yield slot, option


def _changed(slot: str, option: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys that aren't as the option's own file has them."""
    own = {key: _named(value) for key, value in asdict(_option(slot, option)).items()}
    for key, value in values.items():
        if key != "option" and value != own.get(key) and not _is_a_place(value):
            yield key, value


@cache
def _option(slot: str, option: str) -> Slot:
    return option_files()[slot][option].option()


def _named(value: object) -> object:
    return value.name if isinstance(value, Enum) else value


def _is_a_place(value: object) -> bool:
    return isinstance(value, str) and PurePath(value).is_absolute()


def _measured(report: Mapping[str, Any], report_sha256: str | None) -> dict[str, Any]:
    """Figures that tell whoever gets the recipe what to expect, and on what."""
    environment, quality = report["environment"], report["quality"]
    found: dict[str, Any] = {
        "latency_s": _short(report["latency_s"]["median"]),
        "compile_s": _short(report["compile_s"]),
        "peak_memory_bytes": report["peak_memory_bytes"]["device_allocated"]
        or report["peak_memory_bytes"]["host"],
        "psnr_db": _short(quality["psnr_db"]),
        "identical": quality["identical"],
        "device_name": environment["device_name"],
        **{name: environment[name] for name in ("torch", "diffusers", "transformers", "torchao")},
        "report_sha256": report_sha256,
    }
    return {key: value for key, value in found.items() if value is not None}


def _short(value: float | None) -> float | None:
    """Four digits: more would be noise."""
    return None if value is None else float(f"{value:.4g}")
