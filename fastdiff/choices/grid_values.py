"""What one override of a grid stands for: its values, by Hydra's whole grammar for sweeps.

Hydra's own sweeper looks for options among files alone, doesn't look into folders, and makes every value of a range, and every
combination, before anybody has counted them.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from fastdiff.choices.experiments import experiments, ladders
from fastdiff.choices.options import option_files
from fastdiff.config import SLOTS
from fastdiff.errors import UsageError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MOST_CELLS = 10_000
"""Combinations of a grid."""


def check_size(count: int) -> None:
    """Raise UsageError for a grid that nobody can have meant."""
    if count > MOST_CELLS:
        raise UsageError(
            f"this grid has {count} combinations, and a sweep takes {MOST_CELLS} at most\n"
            "  instead: fewer values, or several sweeps"
        )


def every_combination(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every cell of a grid, in the order in which Hydra's sweeper runs them: the last key changes first.

    Raises UsageError for values that can't be counted, HydraException for a grammar that can't be read.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        each = single_overrides(override)
        values[each[0].partition("=")[0]] = each
    check_size(math.prod(map(len, values.values())))
    return [list(cell) for cell in itertools.product(*values.values())]


def single_overrides(override: str) -> list[str]:
    """The overrides of one value each that it stands for, at least one. Raises UsageError and HydraException, as above."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(override)
    key = parsed.get_key_element()
    if not parsed.is_sweep_override():
        return [f"{key}={parsed.get_value_element_as_str()}"]
    return [f"{key}={value}" for value in _values(override, parsed)]


def names_of(key: str) -> list[str]:
    """The names that a slot's, or the experiment's, value can be; none for a key that takes other values."""
    if key == "experiment":
        return list(experiments())
    return list(option_files()[key]) if key in SLOTS else []


def _values(override: str, parsed: Override) -> Iterator[str]:
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep

    values: Any = parsed.value()
    if isinstance(values, Glob):
        yield from _matching(override, parsed.key_or_group, values)
        return
    if isinstance(values, IntervalSweep):
        some = ",".join(names_of(parsed.key_or_group)[:2]) or f"{values.start:g},{values.end:g}"
        raise UsageError(
            f"{override} names no values: between its ends there are as many as one likes\n"
            f"  instead: list them, as in {parsed.key_or_group}={some}"
        )
    if isinstance(values, RangeSweep):
        _check_range(override, values)
    elif isinstance(values, ChoiceSweep) and any(
        isinstance(each, ChoiceSweep | RangeSweep | Glob) for each in values.list
    ):
        raise UsageError(
            f"{override} has a range(...), choice(...) or glob(...) among its values, and stands for no list then\n"
            f"  instead: it alone, or every value by itself: {parsed.key_or_group}=A,B,C"
        )
    yield from parsed.sweep_string_iterator()


def _matching(override: str, key: str, glob: Any) -> list[str]:
    """The options, or experiments, whose names a glob matches; its * goes over the / of an experiment too."""
    names = names_of(key)
    if not names:
        raise UsageError(
            f"{override}: glob(...) picks options of a slot by their names, and {key} has none\n"
            f"  instead: list the values: {key}=A,B,C"
        )
    found: list[str] = glob.filter(names)
    if not found:
        whole = [f"{ladder}/*" for ladder in ladders()] if key == "experiment" else names
        raise UsageError(f"{override} matches nothing\n  there are: {', '.join(whole)}")
    return found


def _check_range(override: str, values: Any) -> None:
    """A range whose values can be counted, and are not more than a grid takes."""
    key = override.partition("=")[0]
    numbers = (values.start, values.stop, values.step)
    if not all(math.isfinite(number) for number in numbers) or values.step == 0:
        raise UsageError(
            f"{override} has no end\n  instead: {key}=range(1,4), which is 1,2,3, or list the values"
        )
    start, stop, step = (Decimal(number) for number in numbers)
    count = math.ceil((stop - start) / step)
    if count < 1:
        raise UsageError(
            f"{override} holds no value: a range goes from its first number to below its second\n"
            f"  instead: {key}=range(1,4), which is 1,2,3, or list the values"
        )
    if count > MOST_CELLS:
        raise UsageError(
            f"{override} stands for {count} values, and a sweep takes {MOST_CELLS} combinations at most\n"
            "  instead: a longer step, its third number, or fewer values"
        )


def why_not_one(override: str) -> str | None:
    """Why an override gives several values where a run takes one; None if it doesn't. Raises HydraException."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return None
    try:
        first = single_overrides(override)[0]
    except UsageError as error:
        return str(error)
    of_hydra = parsed.key_or_group.split(".")[0].split("/")[0] == "hydra"
    each = "" if of_hydra else f", or -m {shlex.quote(override)} for a run of each"
    return (
        f"{override} gives several values, and a run takes one\n"
        f"  instead: {shlex.quote(first)}{each}"
    )
