"""Recipes that nobody would write: the reader refuses them with a RecipeError, quickly and in little memory, or reads them."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdiff.choices.keys import direct_keys
from fastdiff.choices.options import option_files
from fastdiff.choices.recipe.checking import problems_of, recipe_from
from fastdiff.choices.recipe.format import (
    CHOOSABLE,
    Measured,
    MeasuredOn,
    MeasuredQuality,
    MeasuredWork,
)
from fastdiff.choices.recipe.reading import parse
from fastdiff.choices.recipe.writing import recipe_text
from fastdiff.config import Generation
from fastdiff.errors import RecipeError

MOST_S = 1.0
MOST_MEMORY_BYTES = 200e6

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30).filter(
    lambda text: "${" not in text
)
numbers = st.floats(0, 1e6)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type that a key is declared to be."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(list(kind.__members__))
    simple = {
        bool: st.booleans(),
        int: st.integers(0, 1000),  # which every key takes
        float: numbers,
        str: st.just("org/name"),
    }
    if kind in simple:
        return simple[kind]
    if kind is Any:
        return st.text("abc 019:#'\"[]{},&*!|>%@-é", min_size=1)
    if origin is list:
        return st.lists(values(inner[0]), max_size=3)
    if is_dataclass(kind) and isinstance(kind, type):
        return keys_of(kind)
    if type(None) in inner:
        return st.one_of(*(values(each) for each in inner if each is not type(None)), st.none())
    return st.just({})


def keys_of(schema: type, left_out: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    kinds = {
        name: key.type
        for name, key in direct_keys(schema).items()
        if not key.place and name not in left_out
    }
    return st.fixed_dictionaries({}, optional={name: values(kind) for name, kind in kinds.items()})


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    found = {}
    for slot in draw(st.lists(st.sampled_from(CHOOSABLE), unique=True)):
        name = draw(st.sampled_from(sorted(option_files()[slot])))
        schema = option_files()[slot][name].schema
        keys = draw(keys_of(schema)) if schema else {}
        found[slot] = {"option": name, **keys} if keys or draw(st.booleans()) else name
    return found


measured = st.builds(
    lambda latency, others, quality, work, on: (
        {"latency_s": latency, **others, "quality": quality, "work": work, "environment": on}
    ),
    numbers,
    keys_of(Measured, ("latency_s", "quality", "work", "environment")),
    *(keys_of(schema) for schema in (MeasuredQuality, MeasuredWork, MeasuredOn)),
)
recipes = st.fixed_dictionaries(
    {
        "format": st.just(2),
        "name": texts.filter(lambda text: text.strip() and text.splitlines() == [text]),
        "made_for": st.fixed_dictionaries(
            {
                "model": st.sampled_from(["shapes", "sdxl", "local", "ours"]),
                "device": st.sampled_from(["cpu", "cuda", "mps"]),
            }
        ),
        "choices": choices(),
    },
    optional={"description": texts, "generation": keys_of(Generation), "measured": measured},
)

quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@quick
@given(recipes)
def test_a_right_recipe_is_read_as_it_was_written(data: dict[str, Any]) -> None:
    document = parse(recipe_text(data).encode(), "x")
    assert document.plain == data
    assert problems_of(document, Path("/")) == []
    recipe = recipe_from(document, Path("/x.yaml"), "", [])
    named = {s: {"option": c} if isinstance(c, str) else c for s, c in data["choices"].items()}
    assert recipe.choices == named
    assert recipe.generation == data.get("generation", {})


def read(content: bytes) -> None:
    """Read bytes as a recipe within the limits; raises nothing but RecipeError."""
    tracemalloc.start()
    began = time.process_time()
    try:
        document = parse(content, "x")
        problems = problems_of(document, Path("/nowhere"))
        recipe_from(document, Path("/nowhere/x.yaml"), "", problems)
        str(RecipeError("x", problems))
    except RecipeError:
        pass
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < MOST_S
    assert peak < MOST_MEMORY_BYTES


PIECES = [
    *("_target_: os.system", "${oc.env:HOME}", "!!python/name:os.system", "&a", "*a", "<<: *a"),
    *("---", "...", "%YAML 1.2", "? ", "- ", ": ", "{", "[", "}", "]", "|", ">", "'", '"', "\\x00"),
    *("\t", "\n", "  ", "..", "/etc/passwd", "~", "1e999", ".nan", "0x", "1:60:60", "9" * 5000),
    *("2026-11-21", "\u2028", "\ufeff", "é", "\U0001f600", "@", "`", "=", "null", "[" * 100, "{a: " * 100),
]  # fmt: skip


@settings(quick, max_examples=300)
@given(recipes, st.data())
def test_a_changed_recipe_is_refused_or_read(data: dict[str, Any], draws: st.DataObject) -> None:
    text = recipe_text(data)
    for _ in range(draws.draw(st.integers(1, 4))):
        at = draws.draw(st.integers(0, len(text)))
        piece = draws.draw(st.sampled_from(PIECES) | st.text(max_size=5))
        text = text[:at] + piece + text[at + draws.draw(st.integers(0, 8)) :]
    read(text.encode("utf-8", "surrogatepass"))


@settings(quick, max_examples=200)
@given(st.binary(max_size=400) | st.text(max_size=400).map(lambda t: t.encode("utf-8", "replace")))
def test_anything_at_all_is_refused_or_read(content: bytes) -> None:
    read(content)


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12) | st.sampled_from(["format", "choices", "made_for", "quant", "option", "generation", "model"]), inner, max_size=4),
    max_leaves=30,
)  # fmt: skip


@settings(quick, max_examples=200)
@given(trees)
def test_any_tree_is_refused_or_read(tree: Any) -> None:
    read(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"))


@pytest.mark.parametrize(
    "content",
    [
        b"a: " + b"[" * 255_000,
        b"a: " + b"{a: " * 60_000,
        b"- " * 120_000,
        b"? " * 120_000,
        b"a: [" + b"1, " * 80_000,
        b"".join(b"k%d: v\n" % n for n in range(20_000)),
        b"a: " + b"9" * 255_000,
        b"a: 0." + b"9" * 255_000,
        b"a: 1:" + b"59:" * 80_000 + b"0",
        b"a: '" + b"x" * 255_000,
        b"#" * 255_000,
        b"\n" * 255_000,
        b"a: |\n" + b" x\n" * 80_000,
        b"a: " + b"x " * 120_000,
        b'a: "' + b"\\x41" * 60_000 + b'"',
        b"!" * 255_000,
        b"&a " * 80_000,
        b"%" * 255_000,
        b"a: " + b"\xff" * 255_000,
        b"\xef\xbb\xbf" * 80_000,
        b"x" * 255_000 + b": 1",
    ],
)
def test_the_worst_that_fits_into_256_kb_is_refused_in_time(content: bytes) -> None:
    read(content)
