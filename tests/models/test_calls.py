"""The table of pipeline classes against the installed diffusers, and what it makes of them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest

from fastdiff.models.calls import (
    CALLS,
    SERVED,
    CallFacts,
    call_facts,
    table_version,
    why_no_pictures,
)
from fastdiff.models.reading import read_folder

diffusers: Any = _diffusers


def _exported() -> dict[str, Any]:
    """Every pipeline class that diffusers exports, and its stand-ins for packages that are missing here."""
    found = {}
    for name in dir(diffusers):
        known = getattr(diffusers, name, None)
        if not isinstance(known, type) or known is diffusers.DiffusionPipeline:
            continue
        stands_in = "dummy" in known.__module__ and name.endswith("Pipeline")
        if stands_in or issubclass(known, diffusers.DiffusionPipeline):
            found[name] = known
    return found


EXPORTED = _exported()
HERE = sorted(name for name, known in EXPORTED.items() if "dummy" not in known.__module__)
"""Classes whose packages are all installed."""


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    call = EXPORTED[name].__call__
    if not inspect.isfunction(call):  # a class without a call of its own
        return {}
    known = inspect.signature(call).parameters
    return {key: value for key, value in known.items() if key != "self"}


def test_the_table_holds_every_pipeline_class_of_its_diffusers_and_no_other() -> None:
    assert diffusers.__version__.startswith(f"{table_version()}.")
    names = {name for name in CALLS if "Onnx" not in name}
    assert names >= {name for name in EXPORTED if "Onnx" not in name}
    assert not names - set(EXPORTED)


@pytest.mark.parametrize("name", HERE)
def test_a_row_says_which_arguments_the_call_has_and_which_it_requires(name: str) -> None:
    facts, known = CALLS[name], _parameters(name)
    assert facts.takes == "".join(letter for letter in SERVED if SERVED[letter] in known)
    given = {*SERVED.values(), "generator"}
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [
        key
        for key, value in known.items()
        if value.default is inspect.Parameter.empty and value.kind in positional
    ]
    assert {key for key in required if key not in given} <= set(facts.needs)
    for key in facts.needs:
        assert key in required or known[key].default is None


def _fields(name: str) -> list[tuple[str, ...]]:
    """Fields of the output classes that the call itself makes."""
    call = EXPORTED[name].__call__
    if not inspect.isfunction(call):
        return []
    found = []
    for output in re.findall(r"return (\w+)\(", inspect.getsource(call)):
        made = getattr(sys.modules[EXPORTED[name].__module__], output, None)
        if isinstance(made, type) and dataclasses.is_dataclass(made):
            found.append(tuple(field.name for field in dataclasses.fields(made)))
    return found


@pytest.mark.parametrize("name", HERE)
def test_a_row_says_what_the_call_gives_back(name: str) -> None:
    found = _fields(name)
    if found:
        assert {fields[0] for fields in found} == {CALLS[name].gives}
    elif CALLS[name].gives:
        # A combined pipeline hands on what its last part gives.
        assert "Combined" in name
        assert CALLS[name].gives == "images"


def test_who_draws_from_a_prompt_has_one_scheduler() -> None:
    drawing = [name for name in HERE if why_no_pictures(name) is None]
    assert len(drawing) > 60
    for name in drawing:
        assert "scheduler" in inspect.signature(EXPORTED[name].__init__).parameters, name
        assert "prompt" in _parameters(name)


def test_a_class_outside_the_table_has_no_facts() -> None:
    assert call_facts("BrandNewPipeline") is None
    assert why_no_pictures("BrandNewPipeline") is None
    assert call_facts("DDPMPipeline") == CallFacts("s", "images")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StableDiffusionPipeline", None),
        ("FluxKontextPipeline", None),  # its image may be left out
        ("FluxControlInpaintPipeline", "needs image=, control_image= and mask_image=, which fastdiff doesn't give yet"),
        ("LTXImageToVideoPipeline", "makes frames, not pictures; it needs image=, which fastdiff doesn't give yet"),
        ("StableAudioPipeline", "makes sound, not pictures"),
        ("KandinskyV22PriorPipeline", "makes embeddings for another pipeline, not pictures"),
        ("StableDiffusionUpscalePipeline", "needs image=, which fastdiff doesn't give yet"),
        ("MarigoldDepthPipeline", "makes maps of a picture that it is given, not pictures; it needs image=, which fastdiff doesn't give yet; it takes no prompt"),
        ("Kandinsky5T2IPipeline", "gives .image back, where fastdiff reads .images"),
        ("DDPMPipeline", "takes no prompt"),
        ("DiTPipeline", "needs class_labels=, which fastdiff doesn't give yet; it takes no prompt"),
        ("TextToVideoZeroPipeline", "makes frames, not pictures"),
        ("UnCLIPPipeline", "has a scheduler for each of its three parts, and fastdiff follows one"),
        ("VersatileDiffusionPipeline", "gives something else back, where fastdiff reads .images; it takes no prompt"),
    ],
)  # fmt: skip
def test_why_a_class_gives_no_pictures(name: str, reason: str | None) -> None:
    assert why_no_pictures(name) == reason


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionControlNetPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLImg2ImgPipeline",
    ],
)
def test_a_call_without_what_it_needs_fails(name: str, tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder(name)
    assert why_no_pictures(read_folder(folder).pipeline)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises((TypeError, ValueError)):
        pipeline(prompt="a red circle", num_inference_steps=2)
