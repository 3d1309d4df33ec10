"""The line between a run's process and whoever started it: what is asked, and what is told.

A run folder holds `request.json`. Standard output carries events, one JSON object a line; everything that libraries
print goes to standard error, which is the run's log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from fastdiff.errors import FastdiffError, InvalidOutputError, ModelError, PlanError, Status
from fastdiff.machine.files import read_json, write_json

MEASURED = "measured.json"
"""File of a run that goes on: its report as far as it is known, for a run that ends before its report is whole."""

LATENTS = "latents.safetensors"
"""The file beside a run's pictures that holds the latents of its last step."""


@dataclass(frozen=True)
class ReferencePictures:
    """What a run's pictures are compared with: pictures, `own` if the run is its own reference, or the reason why there are none.

    run_id: of the run that drew them. name: what a person calls them, `fp32` for those that fastdiff draws.
    latents: the file that their last step's latents are in, which is missing where their pipeline tells none.
    """

    run_id: str | None = None
    pictures: list[str] | str | None = None
    reason: str | None = None
    name: str | None = None
    latents: str | None = None

    @classmethod
    def drawn(cls, pictures: Sequence[Path], name: str, run_id: str | None = None) -> Self:
        """Those that a run left in its folder, with the latents beside them."""
        paths = [path.absolute() for path in pictures]
        latents = str(paths[0].parent / LATENTS) if paths else None
        return cls(run_id, [*map(str, paths)], None, name, latents)

    @classmethod
    def itself(cls, run_id: str | None = None) -> Self:
        return cls(run_id, "own", name="itself")


@dataclass(frozen=True)
class Request:
    """What a run folder asks for. only_pictures: draw once and measure nothing, for a reference."""

    config: dict[str, Any]
    overrides: list[str]
    reference: ReferencePictures = ReferencePictures()
    only_pictures: bool = False

    @classmethod
    def read(cls, folder: Path) -> Self:
        asked = read_json(folder / "request.json")
        return cls(**{**asked, "reference": ReferencePictures(**asked["reference"])})

    def write(self, folder: Path) -> None:
        write_json(folder / "request.json", asdict(self))


class Events:
    """The worker's side of the line to its parent."""

    def __init__(self, line: TextIO) -> None:
        self._line = line

    def send(self, **event: Any) -> None:
        # The parent may be gone; the run goes on to its report all the same.
        with contextlib.suppress(BrokenPipeError):
            self._line.write(json.dumps(event) + "\n")
            self._line.flush()

    def say(self, message: str) -> None:
        self.send(say=message)

    def tell(self, phase: str, done: int, of: int) -> None:
        self.send(phase=phase, done=done, of=of)


def describe(error: BaseException) -> dict[str, Any]:
    """An error as the parent needs it: status, message, exit code, and whether the disk is full."""
    status = Status.FAILED
    text = str(error).strip() or type(error).__name__
    if isinstance(error, InvalidOutputError):
        status = Status.INVALID_OUTPUT
    elif isinstance(error, (ModelError, PlanError)):
        status = Status.INCOMPATIBLE
    elif _is_out_of_memory(error):
        status = Status.OOM
    if not isinstance(error, FastdiffError):
        text = f"{type(error).__name__}: {text}"
    return {
        "status": status.value,
        "message": text,
        "exit_code": getattr(error, "exit_code", 1),
        "disk_full": says_disk_full(error),
    }


def says_disk_full(error: BaseException) -> bool:
    """Whether an error, or what led to it, is that the disk or the user's part of it is full."""
    led_to: BaseException | None = error
    while led_to is not None:
        if getattr(led_to, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(led_to):  # as torch's own files say it
            return True
        led_to = led_to.__cause__ or led_to.__context__
    return False


def _is_out_of_memory(error: BaseException) -> bool:
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or speaks_of_memory(str(error))


_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc"),
    *("memoryerror", "failed to map segment"),
)


def speaks_of_memory(text: str) -> bool:
    """Whether a library's words say that it got no memory."""
    return any(word in text.lower() for word in _OF_MEMORY)
