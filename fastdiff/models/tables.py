"""Tables that lie as JSON beside this module: read when a row is first asked for, and once in a process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


class Table(Mapping[str, Row], Generic[Row]):
    """One table of a file: rows by name, each made by `row` from what the file holds for it."""

    def __init__(self, file: str, name: str, row: Callable[[Any], Row]) -> None:
        self._file, self._name, self._row = file, name, row

    @cached_property
    def _rows(self) -> dict[str, Row]:
        return {name: self._row(held) for name, held in read(self._file)[self._name].items()}

    def learn(self, name: str, row: Row) -> None:
        """A row that the file doesn't have, for as long as this process lives."""
        self._rows.setdefault(name, row)

    def __getitem__(self, name: str) -> Row:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def names(name: str) -> tuple[str, ...]:
    """A list of classes that diffusers.json holds, in its order."""
    return tuple(read("diffusers")[name])


@cache
def read(file: str) -> dict[str, Any]:
    """The tables of a file by name."""
    content = Path(__file__).with_name(f"{file}.json").read_text(encoding="utf-8")
    return dict(json.loads(content))
