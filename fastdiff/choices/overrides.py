"""Choices as layers of data, and values as Hydra's grammar reads them back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdiff.choices.options import is_literal


class Keys(dict[str, Any]):
    """Keys with their values, which may themselves hold keys. Equal where their texts are: 1 is neither 1.0 nor True."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(self))

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)


@dataclass(frozen=True)
class Layer:
    """What an experiment, or a recipe, brings to a run: options by slot, and the keys of slots and beside them.

    name: the experiment's.
    """

    choices: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


def quoted(text: str) -> str:
    """A text in double quotes, as Hydra's grammar and OmegaConf after it read it back."""
    for_omegaconf = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # backslashes count before ${ alone
    for_hydra = re.sub(
        r"(\\*)(\"|\Z)", lambda m: m[1] * 2 + m[2].replace('"', r"\""), for_omegaconf
    )
    return f'"{for_hydra}"'


def written(value: Any) -> str:
    """A value in Hydra's grammar: null, a truth value, a number, a text, or a list or mapping of such."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        inside = (f"{quoted(str(key))}:{written(inner)}" for key, inner in value.items())
        return "{" + ",".join(inside) + "}"
    return "[" + ",".join(written(each) for each in value) + "]"


def quote_literal(override: str) -> str:
    """An override whose value Hydra's grammar will take as it stands, if its key takes texts so.

    A value that is quoted already, `null`, and a [list, of, texts] keep their meaning.
    """
    match = ASSIGNMENT.match(override)
    if match is None or not is_literal(match["key"]):
        return override
    value = match["value"]
    is_list = value.startswith("[") and value.endswith("]") and match["key"] == PROMPT
    if value == "null" or is_list or re.fullmatch(r"'[^'\\]*'|\"[^\"\\]*\"", value):
        return override
    return f"{match['key']}={quoted(value)}"


PROMPT = "generation.prompt"
"""The one literal key that also takes a list of texts."""

ASSIGNMENT = re.compile(r"^(?P<key>[+~]{0,2}[^=]+)=(?P<value>.*)$", re.DOTALL)
"""An override, in two parts."""
