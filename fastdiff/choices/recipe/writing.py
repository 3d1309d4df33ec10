"""A run's report → its recipe: the choices that a file can hold, and what they were measured to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import PurePath
from typing import Any

from fastdiff.choices.keys import direct_keys
from fastdiff.choices.options import default_options, option_files
from fastdiff.choices.recipe.format import CHOOSABLE, FORMAT
from fastdiff.config import Generation, Slot, plain

_COMMENTS = {
    "format": "Use: python -m fastdiff recipe=FILE; look first: python -m fastdiff recipe check FILE",
    "choices": "Slots that aren't here keep their defaults.",
    "measured": "Seconds, bytes and dB; `python -m fastdiff recipe verify FILE` measures them again.",
}
_LOCAL = "A model of somebody's own; name yours: model=local model.path=DIR"


def recipe_of(
    report: Mapping[str, Any],
    name: str,
    report_sha256: str | None = None,
    description: str | None = None,
    generation: bool = False,
) -> dict[str, Any]:
    """The recipe as plain data, in the order in which it is written.

    generation: whether what was drawn, as far as it isn't the model's own, becomes the recipe's default.
    Left out are a slot at its default and a key at its option's, and places on this machine: whoever uses it names theirs.
    """
    config, environment = report["config"], report["environment"]
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "description": description,
        "made_for": {"model": _choice("model", config), "device": environment["device"]},
        "choices": dict(_choices(config)),
    }
    if generation:
        recipe["generation"] = dict(_generation(config)) or None
    if report["latency_s"]["samples"]:
        recipe["measured"] = _known(_measured(report, report_sha256))
    return {key: value for key, value in recipe.items() if value is not None}


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as YAML: comments above its parts, an empty line between them."""
    import yaml

    dumper = _dumper("CSafeDumper" if str(recipe).isascii() else "SafeDumper")
    comments = dict(_COMMENTS)
    if _option_of(recipe.get("made_for", {}).get("model")) in ("local", "single_file"):
        comments["made_for"] = _LOCAL
    text = ""
    for key, value in recipe.items():
        apart = key in ("made_for", "choices", "generation", "measured")
        text += "\n" if apart else ""
        text += f"# {comments[key]}\n" if key in comments else ""
        text += yaml.dump(
            {key: value}, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100
        )
    return text


@cache
def _dumper(name: str) -> type[Any]:
    """One of yaml's. libyaml's (`CSafeDumper`) takes a tenth of the time, but turns emoji into numbers; it may be missing."""
    import yaml

    class Plain(getattr(yaml, name, yaml.SafeDumper)):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True  # what is the same twice is written twice: a recipe has no aliases

    return Plain


def _option_of(choice: object) -> object:
    return choice.get("option") if isinstance(choice, Mapping) else choice


def _choices(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    defaults = default_options()
    for slot in CHOOSABLE:
        choice = _choice(slot, config)
        if choice != defaults[slot]:
            yield slot, choice


def _generation(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    own = asdict(Generation()) | dict(config["model"].get("generation", {}))
    for key, value in config["generation"].items():
        if value != own[key]:
            yield key, value


def _choice(slot: str, config: Mapping[str, Any]) -> str | dict[str, Any]:
    """An option's name, or a mapping with the keys that aren't as the option's own file has them."""
    values = config.get(slot) or {"option": default_options()[slot]}  # a report older than the slot
    option = values["option"]
    changed = dict(_changed(_option(slot, option), values))
    return {"option": option, **changed} if changed else option


def _changed(own: Any, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, key in direct_keys(type(own)).items():
        if name not in values:
            continue
        value, before = values[name], getattr(own, name)
        if key.inside and isinstance(value, Mapping):
            if inner := dict(_changed(before, value)):
                yield name, inner
        elif value != plain(before) and not (key.place and _is_a_place(value, key.place)):
            yield name, value


@cache
def _option(slot: str, option: str) -> Slot:
    return option_files()[slot][option].option()


def _is_a_place(value: object, kind: str | None) -> bool:
    """Whether a value leads to a place that only its author has: a path, and not a name on the hub."""
    if not isinstance(value, str) or kind != "path or name":
        return isinstance(value, str)
    path = PurePath(value)
    return path.is_absolute() or ".." in path.parts or len(path.parts) != 2


def _measured(report: Mapping[str, Any], report_sha256: str | None) -> dict[str, Any]:
    """Figures that tell whoever gets the recipe what to expect, of what work, and on what."""
    environment, quality = report["environment"], report["quality"]
    generation, memory = report["config"]["generation"], report["peak_memory_bytes"]
    versions = ("os", "python", "torch", "diffusers", "transformers", "torchao", "fastdiff")
    return {
        "latency_s": _short(report["latency_s"]["median"]),
        "step_latency_s": _short(report["step_latency_s"]["median"]),
        "compile_s": _short(report["compile_s"]),
        "peak_memory_bytes": memory["device_allocated"] or memory["host"],
        "quality": {
            "identical": quality["identical"],
            "psnr_db": _short(quality["psnr_db"]),
            "ssim": _short(quality["ssim"]),
            "max_abs_difference": _short(quality["max_abs_difference"]),
        },
        "work": {
            **{key: generation[key] for key in ("steps", "guidance_scale", "height", "width")},
            "images": len(report["images"]) or None,
        },
        "environment": {
            "device_name": environment["device_name"],
            "threads": environment["threads"],
            **{name: environment.get(name) for name in versions},
        },
        "report_sha256": report_sha256,
    }


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """What isn't null, level by level."""
    found = {
        key: _known(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    return {key: value for key, value in found.items() if value is not None and value != {}}


def _short(value: float | None) -> float | None:
    """Four digits: more would be noise."""
    return None if value is None else float(f"{value:.4g}")
