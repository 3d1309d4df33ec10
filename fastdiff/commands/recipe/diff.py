"""`recipe diff`: what two recipes choose differently, whatever their texts look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from textwrap import wrap
from typing import Any

from fastdiff.choices.options import default_options, option_files
from fastdiff.choices.recipe.checking import read_recipe
from fastdiff.choices.recipe.format import CHOOSABLE, Recipe
from fastdiff.commands.words import Words, print_json
from fastdiff.config import Generation, plain
from fastdiff.display import words
from fastdiff.display.layout import table


def run(asked: Words) -> int:
    """`recipe diff A B`."""
    a, b = asked.files
    found = difference(a, b)
    if "--json" in asked.flags:
        print_json(found)
    else:
        print(difference_text(a, b, found))
    return 0


def difference(a: str, b: str) -> dict[str, Any]:
    """Both recipes' choices where they differ: key → {"a", "b"}, and what was measured of each. Raises RecipeError.

    A key that one of them leaves at its option's default is compared by that default, where both have the option.
    """
    ours, theirs = read_recipe(a), read_recipe(b)
    sides = (_chosen(ours), _chosen(theirs))
    choices = {
        key: {"a": one, "b": other}
        for key in dict.fromkeys([*sides[0], *sides[1]])
        if (one := _value(sides[0], sides[1], key)) != (other := _value(sides[1], sides[0], key))
    }
    measured = {
        key: {"a": ours.measured.get(key), "b": theirs.measured.get(key)}
        for key in ("latency_s", "compile_s", "peak_memory_bytes")
        if key in {*ours.measured, *theirs.measured}
    }
    return {"a": ours.name, "b": theirs.name, "choices": choices, "measured": measured}


def _chosen(recipe: Recipe) -> dict[str, Any]:
    """What a recipe chooses: every slot's option, and the keys that it says."""
    found: dict[str, Any] = {"device": recipe.device}
    slots = {slot: {"option": default_options()[slot]} for slot in CHOOSABLE}
    for slot, choice in {
        "model": recipe.model or {"option": None},
        **slots,
        **recipe.choices,
    }.items():
        found[slot] = choice["option"]
        found |= {f"{slot}.{key}": value for key, value in choice.items() if key != "option"}
    return found | {f"generation.{key}": value for key, value in recipe.generation.items()}


def _value(side: Mapping[str, Any], other: Mapping[str, Any], key: str) -> Any:
    """A side's value; where it says none, the default of the option that both have."""
    slot, _, name = key.partition(".")
    if key in side or not name:
        return side.get(key)
    if slot == "generation":
        return getattr(Generation(), name)
    option = side[slot]
    if option is None or option != other[slot] or option not in option_files()[slot]:
        return None
    value: Any = getattr(option_files()[slot][option].option(), name)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else plain(value)


def difference_text(a: str, b: str, found: Mapping[str, Any]) -> str:
    """The difference for people, 80 columns."""
    lines = [f"fastdiff  recipe diff, A -> B\n  A  {a} ({found['a']})\n  B  {b} ({found['b']})"]
    if not found["choices"]:
        lines.append("  both choose the same")
    else:
        lines.append("  choices")
        width = max(map(len, found["choices"]))
        for key, pair in found["choices"].items():
            lines += wrap(
                f"{_shown(pair['a'])} -> {_shown(pair['b'])}",
                80,
                initial_indent=f"    {key:<{width}}  ",
                subsequent_indent=" " * (width + 6),
            )
    if found["measured"]:
        rows = [
            words.compared(key, pair["a"], pair["b"]) for key, pair in found["measured"].items()
        ]
        right = ("A", "B", "ratio")
        lines.append(table(("measured", *right), rows, right=right))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
