"""Numbers of a run that are beyond what their keys take."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from fastdiff.choices.keys import Key, keys_of, numbers_in, shown
from fastdiff.config import LARGEST_INT, LARGEST_SEED, RunConfig
from fastdiff.errors import Problem


def out_of_bounds(run: RunConfig, noise_levels: int | None) -> Iterator[Problem]:
    """Every number of a run that is beyond its limit. noise_levels: of the model's scheduler, if that is known."""
    for key, value in _chosen(run):
        if key.name == "generation.steps" and noise_levels is not None:
            key = key.at_most(noise_levels, "the model knows so many noise levels")
        for number in numbers_in(value):
            if found := key.beyond(number):
                in_list = isinstance(value, list | dict)
                ends = "{}" if isinstance(value, dict) else "[]"
                said = shown(number)
                said = f"{ends[0]}...{said}...{ends[1]}" if in_list else said
                way_out = "a smaller number there" if in_list else f"{key.name}={found[1]}"
                yield Problem(f"{key.name}={said}", found[0], way_out)


def within_64_bits(run: RunConfig) -> RunConfig:
    """The run with every whole number beyond 64 bits, with which nothing could calculate, put at the most of 32.

    So what else is wrong with it can be told.
    """
    numbers = (number for _, value in _chosen(run) for number in numbers_in(value))
    if all(abs(number) <= LARGEST_SEED for number in numbers if isinstance(number, int)):
        return run
    tame = copy.deepcopy(run)
    parts: list[Any] = [*(option for _, _, option in tame.options()), tame.generation]
    for part in parts:
        for f in fields(part):
            setattr(part, f.name, _tamed(getattr(part, f.name)))
    return tame


def _chosen(run: RunConfig) -> Iterator[tuple[Key, Any]]:
    """Every value that was chosen, with its key as it is typed. What a model draws by default is `generation`'s."""
    parts: list[tuple[str, Any]] = [(slot, option) for slot, _, option in run.options()]
    for root, part in [*parts, ("generation", run.generation)]:
        for name, key in keys_of(type(part)).items():
            if not (root == "model" and name.startswith("generation.")):
                yield replace(key, name=f"{root}.{name}"), key.value_in(part)


def _tamed(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_SEED:
        return LARGEST_INT if value > 0 else -LARGEST_INT
    if isinstance(value, dict):
        return {name: _tamed(each) for name, each in value.items()}
    return [_tamed(each) for each in value] if isinstance(value, list) else value
