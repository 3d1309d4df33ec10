"""`recipe show`: what a recipe resolves to, and what was measured of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastdiff.choices.recipe.format import CHOOSABLE, Recipe
from fastdiff.commands.recipe.check import Checked, check, refusal
from fastdiff.commands.words import Words
from fastdiff.display import words
from fastdiff.display.layout import labelled
from fastdiff.display.plan import plan_text


def run(asked: Words) -> int:
    """`recipe show FILE`."""
    found = check(asked.files[0], asked.overrides)
    if not found.right:
        raise refusal(found)
    print(show_text(found))
    return 0


def show_text(found: Checked) -> str:
    """Every slot with its option and all of its keys, the plan, and what the recipe says was measured."""
    assert found.plan is not None
    config = found.plan.setting.run.to_dict()
    lines = [plan_text(found.plan) if found.model_named else _unplanned(found), "", "  resolved"]
    lines += [labelled(slot, resolved(config[slot])) for slot in CHOOSABLE]
    lines.append(labelled("model", resolved(config["model"])))
    if found.recipe.measured:
        lines += ["", "  measured"]
        lines += [labelled(label, text) for label, text in measured_in_words(found.recipe)]
    return "\n".join(lines)


def _unplanned(found: Checked) -> str:
    steps = found.plan.steps if found.plan else ()
    rows = [labelled(s.stage.name.lower(), f"{s.pass_.key}: {s.does}") for s in steps]
    return "\n".join([f"fastdiff  plan for a model that you name: {found.recipe.name}", *rows])


def resolved(choice: Mapping[str, Any]) -> str:
    """`int8: min_in_features=17, skip_shapes=[]`; of a mapping's keys, those of its parts with dots."""
    keys = ", ".join(f"{key}={value}" for key, value in _flat(choice) if key != "option")
    return f"{choice['option']}: {keys}" if keys else str(choice["option"])


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", "null" if value is None else value


def measured_in_words(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Label and text of what the recipe says was measured."""
    measured = recipe.measured
    yield "latency", words.seconds(measured["latency_s"])
    if measured.get("step_latency_s"):
        yield "one step", words.seconds(measured["step_latency_s"])
    if measured.get("compile_s"):
        yield "compile", words.seconds(measured["compile_s"])
    if measured.get("peak_memory_bytes"):
        yield "peak memory", words.size(measured["peak_memory_bytes"])
    for label in ("quality", "work", "environment"):
        part = measured.get(label) or {}
        if part:
            yield label, ", ".join(f"{key}={value}" for key, value in part.items())
