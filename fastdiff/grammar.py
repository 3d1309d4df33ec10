"""Values as Hydra's grammar reads them back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


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
