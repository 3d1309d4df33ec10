"""What a run asks of its pipeline's call, held to what the pipeline's class can do: pure, before anything is loaded.

A run of its own calls the pipeline; `fastdiff.load` and `fastdiff.applied` leave the call to their user, who may give it
whatever it needs, and ask nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastdiff.errors import Problem, nearest
from fastdiff.models import library
from fastdiff.models.calls import (
    GIVEN,
    KEYS,
    negative_prompt_unread,
    scale_unread,
    why_no_pictures,
)
from fastdiff.models.library import PIPELINE_CLASSES, PipelineClass
from fastdiff.models.sides import drops_the_rest, side_multiple, taken_for
from fastdiff.models.sources import Model
from fastdiff.passes.base import Notice, Setting

_BY_HAND = "fastdiff.load(...) in Python, which optimizes this one and leaves the call to you"

_ARGUMENTS = {
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "height": "height",
    "width": "width",
    "images_per_prompt": "num_images_per_prompt",
}
"""Keys of `generation` and the arguments that carry them."""


def call_findings(setting: Setting) -> Iterator[Problem | Notice]:
    """Why the call can't be made, or what it would leave unread."""
    if setting.facts is None:
        return
    facts = PIPELINE_CLASSES.get(setting.facts.pipeline)
    if facts is None:
        yield from _unknown(setting, setting.facts.pipeline)
    elif reason := why_no_pictures(setting.facts.pipeline, setting.run.generation.call):
        yield Problem(
            setting.chosen("model"),
            f"{setting.facts.pipeline} {reason}",
            f"a model that draws from a prompt alone, or {_BY_HAND}",
        )
    else:
        yield from _not_taken(setting, facts)
        yield from _others(setting, setting.facts.pipeline, facts)
        yield from _sides(setting)
        yield from _unread(setting)


def _unknown(setting: Setting, pipeline: str) -> Iterator[Problem | Notice]:
    """A class outside the table: one that the installed diffusers lacks, or one that came after the table."""
    choice = setting.chosen("model")
    version = setting.environment.versions.get("diffusers", "")
    if version.rpartition(".")[0] == library.version().rpartition(".")[0]:
        near = nearest(pipeline, PIPELINE_CLASSES)
        meant = f"`_class_name` {near} in model_index.json, or " if near else ""
        yield Problem(
            choice,
            f"its pipeline {pipeline} is not in diffusers {version}, and fastdiff runs no code that comes with a model",
            f"{meant}a pipeline whose class is in diffusers",
        )
    else:
        yield Notice(
            choice,
            f"{pipeline} is not known to fastdiff: whether a prompt is enough shows in the run",
        )


def _asked(setting: Setting) -> Iterator[tuple[str, object]]:
    """Keys of `generation` that somebody chose, with their values: neither null nor the model's own default."""
    run = setting.run
    own = run.model.generation if isinstance(run.model, Model) else None
    for key in _ARGUMENTS:
        value = getattr(run.generation, key)
        usual = 1 if key == "images_per_prompt" else getattr(own, key, None)
        if value is not None and value != usual:
            yield key, value


def _not_taken(setting: Setting, facts: PipelineClass) -> Iterator[Problem]:
    """What the call has no argument for, the model's own defaults included: the call would fail."""
    for key, argument in _ARGUMENTS.items():
        value = getattr(setting.run.generation, key)
        if value is None or (key == "images_per_prompt" and value == 1):
            continue
        if argument not in facts.arguments:
            assert setting.facts
            yield Problem(
                f"generation.{key}={value}",
                f"{setting.facts.pipeline} takes no {argument}",
                f"generation.{key}={1 if key == 'images_per_prompt' else 'null'}",
            )


def _others(setting: Setting, pipeline: str, facts: PipelineClass) -> Iterator[Problem | Notice]:
    """Arguments of `generation.call` that the call doesn't have, that have a key of their own, or that nothing reads."""
    for name, value in setting.run.generation.call.items():
        choice, drop = f"generation.call.{name}={value}", f"generation.call.{name}=null"
        if not _is_plain(value):
            yield Problem(choice, "takes texts, numbers, true, false, and lists of them", drop)
        elif name in KEYS:
            yield Problem(choice, "has a key of its own", f"{KEYS[name]}={value}")
        elif name in GIVEN:
            yield Problem(choice, "is what fastdiff itself takes pictures and steps by", drop)
        elif name not in facts.arguments:
            near = nearest(name, [each for each in facts.arguments if each not in (*KEYS, *GIVEN)])
            meant = f"generation.call.{near}={value}" if near else drop
            yield Problem(choice, f"{pipeline}'s call has no such argument", meant)
        elif name in facts.unread and not setting.run.allow_no_effect:
            reason = f"changes nothing: {pipeline}'s call takes it, and nothing in it reads it"
            yield Problem(choice, reason, f"{drop}, or allow_no_effect=true")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float)


def _sides(setting: Setting) -> Iterator[Problem]:
    """Sides that the call would refuse, round, or take for others."""
    assert setting.facts
    facts, asked = setting.facts, setting.run.generation
    multiple = side_multiple(facts)
    for key in ("height", "width"):
        value = getattr(asked, key)
        if multiple is None or value is None or value % multiple == 0 or value % 8:
            continue
        drawn = max(multiple, value // multiple * multiple)
        rounds = f", and it would draw {drawn}" if drops_the_rest(facts.pipeline) else ""
        yield Problem(
            f"generation.{key}={value}",
            f"{facts.pipeline}'s sides are multiples of {multiple}{rounds}",
            f"generation.{key}={drawn}",
        )
    taken = taken_for(facts.pipeline, asked.height, asked.width)
    if taken is not None:
        given = [f"generation.{k}={v}" for k in ("height", "width") if (v := getattr(asked, k))]
        high, wide = taken
        yield Problem(
            " ".join(given),
            f"{facts.pipeline} keeps the sides' ratio only, and would draw {wide} x {high}",
            f"generation.height={high} generation.width={wide}",
        )


def _unread(setting: Setting) -> Iterator[Problem | Notice]:
    """What the call takes and wouldn't look at, so that the picture is the same without it."""
    assert setting.facts
    asked, generation = dict(_asked(setting)), setting.run.generation
    unread = {
        "guidance_scale": scale_unread(setting.facts),
        "negative_prompt": negative_prompt_unread(
            setting.facts, generation.guidance_scale, generation.call
        ),
    }
    for key, why in unread.items():
        if why is None or key not in asked:
            continue
        reason, instead = f"changes nothing: {why[0]}", why[1]
        choice = f"generation.{key}={asked[key]}"
        if setting.run.allow_no_effect:
            yield Notice(choice, reason)
        else:
            yield Problem(choice, reason, f"{instead}, or allow_no_effect=true")
