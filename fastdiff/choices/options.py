"""Every option that can be chosen: those that ship (a YAML in `conf/` each), those of plug-ins, and those of a team's folders."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, cast

from fastdiff.choices.folder_contents import SCHEMA, contents
from fastdiff.choices.folders import config_dirs
from fastdiff.choices.keys import Key, keys_of
from fastdiff.choices.option_yaml import (
    content,
    fault,
    foreign_interpolation,
    inherited,
    why_unreadable,
)
from fastdiff.choices.plugins import Found, Plugin, plugins
from fastdiff.config import CONF_DIR, SLOTS, Bench, Generation, NoQuality, Reference, Slot
from fastdiff.errors import UsageError, nearest
from fastdiff.machine.files import sha256_of
from fastdiff.models import MODELS
from fastdiff.passes import OPTIONS

if TYPE_CHECKING:
    from omegaconf import DictConfig


def schemas() -> dict[str, dict[str, type[Slot]]]:
    """Every schema by slot and name, as the YAML files refer to them: `/schema/<slot>/<name>`."""
    known: dict[str, dict[str, type[Slot]]] = {
        "model": dict(MODELS),
        **{slot: dict(options) for slot, options in OPTIONS.items()},
        "bench": {"bench": Bench},
        "quality": {"reference": Reference, "none": NoQuality},
    }
    for plugin in plugins().plugins:
        known[plugin.slot][plugin.option] = plugin.kind
    return known


@dataclass(frozen=True)
class OptionFile:
    """One option, described by a YAML: its slot, name, comment, and the schema that it pulls in.

    base: the option that it begins with instead of a schema, `defaults: [sdxl, _self_]`.
    """

    slot: str
    name: str
    path: Path
    base: OptionFile | None = None

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
        if self.base:
            return self.base.schema
        found = SCHEMA.search(self.path.read_text(encoding="utf-8"))
        return schemas()[found.group(1)].get(found.group(2)) if found else None

    @property
    def values(self) -> dict[str, Any]:
        """What it says of its keys, over what its base does."""
        own = {key: value for key, value in content(self.path).items() if key != "defaults"}
        return _over(self.base.values, own) if self.base else own

    @property
    def origin(self) -> dict[str, str]:
        """Where it comes from, for a report."""
        return {"file": str(self.path), "sha256": sha256_of(self.path)}

    def node(self, changed: Mapping[str, Any]) -> DictConfig:
        """The option as it is described, typed by its schema, with some keys changed."""
        from omegaconf import OmegaConf

        whole = OmegaConf.merge(OmegaConf.structured(self.schema), self.values, dict(changed))
        return cast("DictConfig", whole)

    def option(self, **changed: Any) -> Slot:
        """The same as an object. Costs no composition: keys that only a whole run can tell, `${generation.steps}`, are their schema's."""
        from omegaconf import OmegaConf

        told = {k: v for k, v in self.values.items() if foreign_interpolation(v) is None}
        node = OmegaConf.merge(OmegaConf.structured(self.schema), told, changed)
        option = OmegaConf.to_object(node)
        assert isinstance(option, Slot)
        return option


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, the second over the first, also within mappings, as Hydra merges them."""
    inside = {k: _over(below[k], v) for k, v in above.items() if _both_mappings(below.get(k), v)}
    return {**below, **above, **inside}


def _both_mappings(a: object, b: object) -> bool:
    return isinstance(a, Mapping) and isinstance(b, Mapping)


@dataclass(frozen=True)
class PluginOption(OptionFile):
    """One that a plug-in's class describes, without a YAML. path: of the module that the class is in."""

    plugin: Plugin = field(kw_only=True)

    @property
    def comment(self) -> str:
        return self.plugin.comment

    @property
    def schema(self) -> type[Slot]:
        return self.plugin.kind

    @property
    def values(self) -> dict[str, Any]:
        return {}

    @property
    def origin(self) -> dict[str, str]:
        return {"distribution": self.plugin.distribution, "version": self.plugin.version}


def option_files() -> dict[str, dict[str, OptionFile]]:
    """Every option by slot and name. Raises UsageError if a folder or a plug-in brings one that can't be chosen."""
    found = available()
    if found.problems:
        raise UsageError(said_together(found.problems))
    return found.files


@dataclass(frozen=True)
class Available:
    """Options by slot and name; problems: what is wrong with others of folders and plug-ins, each with its way out."""

    files: dict[str, dict[str, OptionFile]]
    problems: tuple[str, ...]


def available() -> Available:
    """What `option_files` looks at, with problems instead of an error."""
    return _available(config_dirs(), plugins())


@cache
def _available(folders: tuple[Path, ...], found: Found) -> Available:
    files = {slot: dict(options) for slot, options in shipped_files().items()}
    problems = list(found.problems)
    for plugin in found.plugins:
        module = getattr(sys.modules.get(plugin.kind.__module__), "__file__", None)
        path = Path(module or plugin.kind.__module__)
        option = PluginOption(plugin.slot, plugin.option, path, plugin=plugin)
        files[plugin.slot][plugin.option] = option
    problems += [wrong for folder in folders for wrong in contents(folder).wrong]
    left = [each for folder in folders for each in contents(folder).options]
    while left:
        ready = [each for each in left if _begins_with(*each) in (None, *files[each[0]])]
        for slot, path in ready:
            base, other = _begins_with(slot, path), files[slot].get(path.stem)
            file = OptionFile(slot, path.stem, path, files[slot][base] if base else None)
            if other is not None:
                problems.append(twice(f"{slot}={file.name}", path, other.path))
            elif wrong := fault(
                path, slot, schemas()[slot], file.base.schema if file.base else None
            ):
                problems.append(wrong)
            else:
                files[slot][file.name] = file
        if not ready:
            problems += [_without_base(slot, path, left, files[slot]) for slot, path in left]
            break
        left = [each for each in left if each not in ready]
    return Available(files, tuple(problems))


def _begins_with(slot: str, path: Path) -> str | None:
    """The option that a file begins with; None where it names a schema, or can't be read."""
    return None if why_unreadable(path) else inherited(path, slot)


def _without_base(
    slot: str, path: Path, left: Sequence[tuple[str, Path]], files: Mapping[str, OptionFile]
) -> str:
    """Why a file can't begin with the option that it names."""
    base = _begins_with(slot, path)
    if any((slot, base) == (other, each.stem) for other, each in left):
        return (
            f"{path}: it begins with {slot}={base}, which can't be read, or begins with it\n"
            "  instead: an option that ships, or a schema"
        )
    near = nearest(str(base), files)
    hint = f"did you mean: {near}" if near else f"there are: {', '.join(files)}"
    return f"{path}: it begins with {slot}={base}, and there is no such option\n  {hint}"


@cache
def shipped_files() -> dict[str, dict[str, OptionFile]]:
    """Every option that ships, by slot and name."""
    return {
        slot: {
            path.stem: OptionFile(slot, path.stem, path)
            for path in sorted((CONF_DIR / slot).glob("*.yaml"))
        }
        for slot in SLOTS
    }


def added_files() -> list[OptionFile]:
    """Those that plug-ins and folders bring, without those that have problems."""
    files, shipped = available().files, shipped_files()
    return [f for slot in SLOTS for name, f in files[slot].items() if name not in shipped[slot]]


def origins(choices: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Where chosen options come from that don't ship, by choice: a distribution and its version, or a file and its hash."""
    return {
        f"{file.slot}={file.name}": file.origin
        for file in added_files()
        if choices.get(file.slot) == file.name
    }


def twice(choice: str, path: Path, other: Path) -> str:
    """Two of one name: neither is silently taken for the other."""
    name = path.with_stem(f"{path.stem}_ours").name
    return f"{choice} is there already\n  it stands in {other}\n  and in {path}\n  instead: another name for the second, such as {name}"


def said_together(problems: tuple[str, ...]) -> str:
    """One message as it stands, several below a line that counts them."""
    if len(problems) == 1:
        return problems[0]
    each = "\n".join(indent(text, "  ") for text in problems)
    return f"{len(problems)} things are wrong with options that folders and plug-ins bring\n{each}"


@cache
def default_options() -> dict[str, str]:
    """The option that each slot has when nobody chooses one, by `config.yaml`."""
    text = (CONF_DIR / "config.yaml").read_text(encoding="utf-8")
    found = dict(re.findall(r"^  - (\w+): (\w+)$", text, re.MULTILINE))
    return {slot: found[slot] for slot in SLOTS}


@cache
def _every_key(found: Found) -> dict[str, tuple[Key, ...]]:
    every: dict[str, list[Key]] = {}
    schemas_by_slot: dict[str, dict[str, type]] = {"generation": {"": Generation}, **schemas()}
    for slot, kinds in schemas_by_slot.items():
        for kind in kinds.values():
            for name, key in keys_of(kind).items():
                every.setdefault(f"{slot}.{name}", []).append(key)
    return {name: tuple(keys) for name, keys in every.items()}


def every_key() -> dict[str, tuple[Key, ...]]:
    """Every key that can be typed, such as `quant.min_in_features`, as each schema that has it declares it."""
    return _every_key(plugins())


def is_literal(typed: str) -> bool:
    """Whether a key's value is taken as it stands."""
    return any(key.literal for key in every_key().get(typed, ()))
