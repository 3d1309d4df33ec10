"""Tables of what is typed and what is said, kept as YAML beside the tests that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml


def table(test: str, name: str) -> Any:
    """What stands in the YAML file of this name beside a test (`__file__`)."""
    return yaml.safe_load((Path(test).parent / name).read_text())


def cases(test: str, name: str, section: str | None = None) -> list[Any]:
    """The rows of a table (or of one of its sections) as parameters, called by their first value."""
    rows = table(test, name)
    if section is not None:
        rows = rows[section]
    return [pytest.param(row, id=str(next(iter(row.values())))) for row in rows]
