"""Every option that ships: its YAML in `conf/`, the comment at its top, its schema, its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from fastdiff.config import CONF_DIR, SLOTS, Bench, NoQuality, Reference, Slot
from fastdiff.models import MODELS
from fastdiff.passes import OPTIONS

if TYPE_CHECKING:
    from omegaconf import DictConfig


def schemas() -> dict[str, dict[str, type[Slot]]]:
    """Every schema by slot and name, as the YAML files refer to them: `/schema/<slot>/<name>`."""
    return {
        "model": dict(MODELS),
        **{slot: dict(options) for slot, options in OPTIONS.items()},
        "bench": {"bench": Bench},
        "quality": {"reference": Reference, "none": NoQuality},
    }


@dataclass(frozen=True)
class OptionFile:
    """One YAML of `conf/`: its slot, name, comment, and the schema that it pulls in."""

    slot: str
    name: str
    path: Path

    @property
    def comment(self) -> str:
        """The comment at its top, as one line."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# ").rstrip())
        return " ".join(lines)

    @property
    def schema(self) -> type[Slot] | None:
        found = re.search(r"/schema/(\w+)/(\w+)@_here_", self.path.read_text(encoding="utf-8"))
        return schemas()[found.group(1)].get(found.group(2)) if found else None

    def node(self, changed: Mapping[str, Any]) -> DictConfig:
        """The option as its file describes it, typed by its schema, with some keys changed."""
        from omegaconf import OmegaConf

        values = {key: value for key, value in content(self.path).items() if key != "defaults"}
        whole = OmegaConf.merge(OmegaConf.structured(self.schema), values, dict(changed))
        return cast("DictConfig", whole)

    def option(self, **changed: Any) -> Slot:
        """The same as an object. Costs no composition."""
        from omegaconf import OmegaConf

        option = OmegaConf.to_object(self.node(changed))
        assert isinstance(option, Slot)
        return option


@cache
def content(path: Path) -> dict[str, Any]:
    """What a YAML of `conf/` says, as plain data. Not to be changed: it is read once."""
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(found, dict)
    return cast(dict[str, Any], found)


@cache
def option_files() -> dict[str, dict[str, OptionFile]]:
    """Every option that ships, by slot and name."""
    return {
        slot: {
            path.stem: OptionFile(slot, path.stem, path)
            for path in sorted((CONF_DIR / slot).glob("*.yaml"))
        }
        for slot in SLOTS
    }


@cache
def default_options() -> dict[str, str]:
    """The option that each slot has when nobody chooses one, by `config.yaml`."""
    text = (CONF_DIR / "config.yaml").read_text(encoding="utf-8")
    found = dict(re.findall(r"^  - (\w+): (\w+)$", text, re.MULTILINE))
    return {slot: found[slot] for slot in SLOTS}


def keys_of(schema: type) -> dict[str, Any]:
    """Keys of a dataclass with their types, those of nested dataclasses with dots."""
    found: dict[str, Any] = {}
    hints = get_type_hints(schema)
    for f in fields(schema):
        kind = hints[f.name]
        found[f.name] = kind
        if is_dataclass(kind) and isinstance(kind, type):
            found |= {f"{f.name}.{inner}": t for inner, t in keys_of(kind).items()}
    return found
