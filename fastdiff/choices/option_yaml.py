"""An option's YAML: what it says, and what is wrong with one that doesn't ship with fastdiff."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from fastdiff.choices.folder_contents import SCHEMA
from fastdiff.choices.keys import flat, keys_of
from fastdiff.config import CONF_DIR, Slot
from fastdiff.errors import did_you_mean, first_line


@cache
def content(path: Path) -> dict[str, Any]:
    """What a YAML of an option or an experiment says, as plain data. Not to be changed: it is read once.

    Raises ValueError where it holds no keys, and what OmegaConf raises for what is no YAML.
    """
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(found, dict):
        raise ValueError("it holds no keys")
    return cast(dict[str, Any], found)


def why_unreadable(path: Path) -> str | None:
    """Why nothing can be read in a YAML, and the way out; None if it can."""
    import yaml

    try:
        content(path)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return f"{path}{where}: {error.problem or error.context}\n  instead: mend that line"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"{path} can't be read: {first_line(error, 1000)}\n  instead: a YAML like those in {CONF_DIR}"
    return None


_INHERITED = re.compile(r"(?:/(\w+)/)?([A-Za-z][\w-]*)(?:@_here_)?")
"""How an option's file names another option of its slot, to begin with."""


def inherited(path: Path, slot: str) -> str | None:
    """The option that a file that can be read begins with: `defaults: [sdxl, _self_]`; None where it names a schema."""
    defaults = content(path).get("defaults")
    first, *others = defaults if isinstance(defaults, list) and defaults else [None]
    found = _INHERITED.fullmatch(first) if isinstance(first, str) and others == ["_self_"] else None
    return found[2] if found and found[1] in (None, slot) else None


def fault(
    path: Path, slot: str, known: Mapping[str, type[Slot]], base: type[Slot] | None = None
) -> str | None:
    """Why a file of a team's folder can't be an option of a slot, and the way out; None if it can.

    known: the slot's schemas by name. base: the schema of the option that it begins with.
    """
    unreadable = why_unreadable(path) or (None if base else _schema_fault(path, slot, known))
    if unreadable:
        return unreadable
    said = dict(content(path))
    first = said.pop("defaults")[0]
    if base is None:
        found = SCHEMA.fullmatch(first)
        assert found is not None
        base = known[found[2]]
    schema = base
    for key, hint in _unknown_keys(said, schema):
        return f"{path}: {slot}={path.stem} has no key '{key}'\n  {hint}"
    return _value_fault(path, schema, said)


def foreign_interpolation(value: object) -> str | None:
    """The first interpolation among values that isn't of an environment variable: the whole run says what it means."""
    if isinstance(value, str):
        found = re.search(r"\$\{(?!oc\.env:)[^}]*\}?", value)
        return found[0] if found else None
    inside: Iterable[object] = ()
    if isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, list):
        inside = value
    return next(filter(None, map(foreign_interpolation, inside)), None)


def _value_fault(path: Path, schema: type[Slot], said: dict[str, Any]) -> str | None:
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

    try:
        OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), said))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        if isinstance(error, InterpolationResolutionError) and foreign_interpolation(said):
            return None  # a whole run says whether it can be looked up
        key = getattr(error, "full_key", None)
        where = f"{path}: {key}" if key else f"{path}"
        return f"{where}: {first_line(error, 1000)}\n  instead: a value of that key's type"
    return None


def _schema_fault(path: Path, slot: str, known: Mapping[str, type[Slot]]) -> str | None:
    """What is wrong with how a file names its schema."""
    names = f"{slot} has the schemas {', '.join(known)}"
    line = f"defaults: [/schema/{slot}/{next(iter(known))}@_here_, _self_]"
    if re.search(r"^#\s*@package", path.read_text(encoding="utf-8"), re.MULTILINE):
        return f"{path}: an option can't say @package\n  instead: leave that line out"
    defaults = content(path).get("defaults")
    first, *others = defaults if isinstance(defaults, list) and defaults else [None]
    named = SCHEMA.fullmatch(first) if isinstance(first, str) else None
    if named is None or others != ["_self_"]:
        return f"{path}: its `defaults` must name its schema, or an option to begin with, and nothing else\n  for example: {line}; {names}"
    if named[1] != slot:
        return (
            f"{path}: it lies in {slot}/, and its schema is one of {named[1]}\n"
            f"  instead: {line}, or the folder {named[1]}/"
        )
    if named[2] not in known:
        hint = did_you_mean(named[2], known, f"/schema/{slot}/{{}}@_here_", names)
        return f"{path}: {slot} has no schema '{named[2]}'\n  {hint}"
    return None


def _unknown_keys(values: Mapping[str, Any], schema: type) -> Iterator[tuple[str, str]]:
    """Keys that a schema hasn't got, each with what may have been meant."""
    known = keys_of(schema)
    for name, _ in flat(values, schema):
        if name not in known:
            held, dot, bare = name.rpartition(".")
            beside = [k.bare for k in known.values() if k.name == f"{held}{dot}{k.bare}"]
            it_has = f"it has: {', '.join(beside)}" if beside else "it has no keys"
            yield name, did_you_mean(bare, beside, f"{held}{dot}{{}}", it_has)
