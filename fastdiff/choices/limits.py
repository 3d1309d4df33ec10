"""The most that a number can be: one table for every key, and what is said of a number beyond it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fastdiff.config import RunConfig
from fastdiff.errors import Problem, UsageError

LARGEST_SEED = 2**63 - 1
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 3.4e38

_LIMITS: Mapping[str, tuple[int, str]] = {
    "generation.steps": (10_000, "no schedule has so many noise levels"),
    "generation.height": (16_384, "no model draws such a picture"),
    "generation.width": (16_384, "no model draws such a picture"),
    "generation.images_per_prompt": (1_000, "they are drawn as one batch"),
    "generation.seed": (LARGEST_SEED, "the largest that a generator takes"),
    "model.weights_seed": (LARGEST_SEED, "the largest that a generator takes"),
    "bench.runs": (100_000, "more say nothing more of a median"),
    "bench.warmup": (100_000, "nothing gets faster after so many"),
    "bench.most_warmup": (100_000, "nothing gets faster after so many"),
    "quality.captions": (10_000, "more say nothing more of a score"),
    "compare.pairs": (100_000, "more say nothing more of a ratio"),
    "compare.lives": (10_000, "more say nothing more of a ratio"),
    "compare.seed": (LARGEST_SEED, "the largest that a generator takes"),
    "ladder.rounds": (10_000, "more say nothing more of a median"),
    "ladder.seed": (LARGEST_SEED, "the largest that a generator takes"),
    "ladder.limit_s": (10**9, "that is thirty years"),
    "sweep.timeout_s": (10**9, "that is thirty years"),
    "sweep.memory_limit_gb": (10**9, "no machine has so much"),
}
"""The most of a key, and why no more. Others take what 32 bits hold."""


def most_of(key: str, noise_levels: int | None = None) -> tuple[float, str]:
    """The most that a key takes, and why. noise_levels: of the model's scheduler, if that is known."""
    if key == "generation.steps" and noise_levels is not None:
        return noise_levels, "the model knows so many noise levels"
    return _LIMITS.get(key, (LARGEST_INT, "the largest that 32 bits hold"))


def beyond(key: str, value: float, noise_levels: int | None = None) -> tuple[str, str] | None:
    """Why a number can't be had at all, and one that can; None for one within its limit."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number", "1"
    if isinstance(value, float) and key not in _LIMITS:
        if abs(value) <= LARGEST_FLOAT:
            return None
        return f"must be within {LARGEST_FLOAT:g}, the largest that fp32 holds", "1"
    most, why = most_of(key.rstrip("[]"), noise_levels)
    if value > most:
        return f"must be at most {most}: {why}", f"{most}"
    if value < -LARGEST_INT:
        return f"must be at least {-LARGEST_INT}, the least that 32 bits hold", "1"
    return None


def check_own_key(key: str, value: float) -> None:
    """Raise UsageError for a number of a command's own key that is beyond its limit."""
    if found := beyond(key, value):
        raise UsageError(f"{key}={_shown(value)} {found[0]}\n  instead: {key}={found[1]}")


def out_of_bounds(run: RunConfig, noise_levels: int | None) -> Iterator[Problem]:
    """Every number of a run that is beyond its limit."""
    for key, value in _numbers(run):
        if found := beyond(key, value, noise_levels):
            bare = key.rstrip("[]")
            way_out = f"{key}={found[1]}" if key == bare else "a smaller number there"
            shown = _shown(value) if key == bare else f"[...{_shown(value)}...]"
            yield Problem(f"{bare}={shown}", found[0], way_out)


def within_64_bits(run: RunConfig) -> RunConfig:
    """The run with every whole number beyond 64 bits, with which nothing could calculate, put at the most of 32.

    So what else is wrong with it can be told.
    """
    if all(abs(value) <= LARGEST_SEED for _, value in _numbers(run) if isinstance(value, int)):
        return run
    tame = copy.deepcopy(run)
    for _, _, option in tame.options():
        _tame(option)
    _tame(tame.generation)
    return tame


def _numbers(run: RunConfig) -> Iterator[tuple[str, float]]:
    """Every number that was chosen, by key. What a model draws by default is `generation`'s."""
    parts: list[tuple[str, Any]] = [(slot, option) for slot, _, option in run.options()]
    for root, part in [*parts, ("generation", run.generation)]:
        for key, value in numbers_in(root, part):
            if not key.startswith("model.generation."):
                yield key, value


def numbers_in(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in plain data, or in an option, each with its key; of a list's with [] behind it."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield key, value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from numbers_in(f"{key}[]", each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from numbers_in(f"{key}.{field.name}", getattr(value, field.name))


def _tame(part: Any) -> None:
    for field in fields(part):
        setattr(part, field.name, _tamed(getattr(part, field.name)))


def _tamed(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_SEED:
        return LARGEST_INT if value > 0 else -LARGEST_INT
    if isinstance(value, list):
        return [_tamed(each) for each in value]
    return value


def _shown(value: float) -> str:
    """A number as it was typed, or its beginning and its length: nobody reads a thousand digits."""
    if isinstance(value, float):
        return f"{value:g}"
    if value.bit_length() > 10_000:
        return "(a number of more than 3000 digits)"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"
