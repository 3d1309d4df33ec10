"""Values as Hydra's grammar reads them back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastdiff.choices.options import is_literal


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
