"""What pictures are compared with: the plain run, drawn once for all that share it."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdiff.choices.compose import with_option
from fastdiff.choices.options import default_options
from fastdiff.config import (
    NO_EXPERIMENT,
    PROVENANCE,
    Experiment,
    NoQuality,
    Reference,
    RunConfig,
    UsedRecipe,
    fingerprint,
)
from fastdiff.errors import UsageError
from fastdiff.measuring.protocol import LATENTS, ReferencePictures, Request
from fastdiff.measuring.report import run_id
from fastdiff.models.sources import Model, Role, model_of
from fastdiff.planning.plan import Plan
from fastdiff.runs.process import (
    NO_LIMITS,
    Limits,
    Progress,
    Starter,
    draw_reference,
    start,
)

REFERENCES = Path("outputs") / "references"


def find_reference(
    plan: Plan,
    overrides: list[str],
    progress: Progress,
    limits: Limits = NO_LIMITS,
    starter: Starter = start,
    missing: dict[str, str] | None = None,
) -> ReferencePictures:
    """The pictures to compare with; drawn now if nobody has drawn them yet."""
    run = plan.setting.run
    quality = run.quality
    if isinstance(quality, NoQuality):
        return ReferencePictures(reason="quality=none")
    assert isinstance(quality, Reference)
    if quality.reference != "auto":
        picture = _picture(quality.reference)
        return ReferencePictures(pictures=[str(picture)], name=picture.name)
    plain = plain_run(run)
    identity = run_id(plain, plan.device)
    if {**run.to_dict(), **_how_measured(plain)} == plain.to_dict():
        return ReferencePictures.itself(identity)
    folder = _reference_folder(identity, plain)
    if not folder.is_dir():
        if missing and identity in missing:
            return ReferencePictures(identity, None, missing[identity])
        progress.say("drawing the reference picture (fp32)")
        request = Request(plain.to_dict(), [], only_pictures=True)
        reason = draw_reference(request, folder, progress, plan.device, limits, starter)
        if reason is not None:
            if missing is not None:
                missing[identity] = f"no reference: {reason}"
            return ReferencePictures(identity, None, f"no reference: {reason}")
        # A model that had to be downloaded has its commit for a name only now.
        if folder != (named := _reference_folder(identity, plain)):
            folder = folder.rename(named) if not named.exists() else named
    pictures = sorted(folder.glob("image-*.png"), key=lambda p: int(p.stem.split("-")[1]))
    student = isinstance(run.model, Model) and run.model.role is Role.student
    name = "the teacher in fp32" if student else "fp32"
    return ReferencePictures.drawn(pictures, name, identity)


def _reference_folder(identity: str, run: RunConfig) -> Path:
    """Where a reference is kept: by what was asked for, the machine, and the model's own content."""
    holds = ["pictures", LATENTS]  # one that was kept before it held both is drawn again
    return (REFERENCES / fingerprint([identity, model_of(run).identity(), holds])).absolute()


def plain_run(run: RunConfig) -> RunConfig:
    """The run that draws the reference of another one: the same picture, every other slot's default, the teacher itself."""
    options = default_options() | {"bench": "once", "quality": "none"}
    plain = copy.copy(run)
    for slot, option in options.items():
        if slot != "model":
            plain = with_option(plain, slot, option)
    plain.profile = False  # allow_no_effect stays: what the call leaves unread is allowed there too
    assert isinstance(plain.model, Model)
    plain.model = replace(plain.model, role=Role.teacher)
    plain.recipe = UsedRecipe()
    plain.experiment, plain.choices = Experiment(), {**plain.choices, "experiment": NO_EXPERIMENT}
    return plain


def _how_measured(run: RunConfig) -> dict[str, Any]:
    """The part of a run that changes no picture."""
    whole = run.to_dict()
    keys = ("bench", "quality", "allow_no_effect", "profile", *PROVENANCE)
    return {key: whole[key] for key in keys}


def _picture(path: str) -> Path:
    """The picture that a user compares with. Raises UsageError."""
    found = Path(os.path.expanduser(path)).absolute()
    if not found.is_file():
        raise UsageError(
            f"quality.reference={path}: there is no such picture\n"
            "  instead: quality.reference=auto, which draws it, or the path of a PNG"
        )
    return found
