"""A team's own primary config: `--config-name ours` begins with fastdiff's, and chooses and sets what it says over that.

# DIR/ours.yaml
defaults:
  - config
  - override precision: bf16
  - _self_
generation: {steps: 20}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastdiff.choices.experiments import choice_of
from fastdiff.choices.folders import NAME_FLAGS, OWN_NAME, config_dirs, config_name
from fastdiff.choices.option_yaml import content, why_unreadable
from fastdiff.config import SCALARS, SLOTS
from fastdiff.errors import UsageError, nearest

_KEYS = (*SLOTS, "generation", *SCALARS)


@dataclass(frozen=True)
class Primary:
    """What a primary config says over fastdiff's own.

    choices: options of slots, and an experiment's name. keys: what it sets in them, and outside them. asks_hydra: whether it
    says something of Hydra's own.
    """

    choices: dict[str, str]
    keys: dict[str, Any]
    asks_hydra: bool


def primary() -> Primary:
    """That of the name in use; fastdiff's own says nothing over itself. Raises UsageError."""
    name = config_name()
    return Primary({}, {}, False) if name == OWN_NAME else _read(_file(name, config_dirs()))


def _file(name: str, folders: tuple[Path, ...]) -> Path:
    found = next((f for folder in folders if (f := folder / f"{name}.yaml").is_file()), None)
    if found:
        return found
    there = [path.stem for folder in folders for path in sorted(folder.glob("*.yaml"))]
    near = nearest(name, there)
    where = ", ".join(map(str, folders))
    reason = f"there is no {name}.yaml in {where}" if folders else "it lies in a team's folder"
    way = f"did you mean: {near}" if near else f"instead: --config-dir DIR {NAME_FLAGS[0]} NAME"
    raise UsageError(f"{NAME_FLAGS[0]} {name}: {reason}\n  {way}")


@cache
def _read(path: Path) -> Primary:
    """Raises UsageError for the first thing that is wrong with it."""
    wrong = why_unreadable(path) or next(_faults(path), None)
    if wrong:
        raise UsageError(wrong)
    said = dict(content(path))
    chosen = [choice_of(entry) for entry in said.pop("defaults") if isinstance(entry, dict)]
    return Primary(
        dict(filter(None, chosen)),
        said,
        said.pop("hydra", None) is not None,
    )


def _faults(path: Path) -> Iterator[str]:
    said = dict(content(path))
    first, *others = said.pop("defaults", None) or [None]
    if first != OWN_NAME:
        yield f"{path}: it must begin with fastdiff's own\n  instead: defaults: [config, ..., _self_]"
    for entry in others:
        chosen = choice_of(entry)
        if entry != "_self_" and (chosen is None or chosen[0] not in (*SLOTS, "experiment")):
            yield (
                f"{path}: '{entry}' chooses nothing\n"
                "  instead: - override <slot>: <option>, as in - override quant: int8"
            )
    for key in said:
        if key not in (*_KEYS, "hydra"):
            near = nearest(str(key), _KEYS)
            hint = f"did you mean: {near}" if near else f"there are: {', '.join(_KEYS)}"
            yield f"{path}: there is no key '{key}'\n  {hint}"
