"""Where the host waits for the GPU within one denoising step, as torch's own debug mode reports it.

The mode warns at every operation that waits. It is process-wide, so it holds from the end of the first step to the end of
the second one, in a call of its own that nobody times.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fastdiff.config import Generation
from fastdiff.measuring.fields import Syncs, WaitingPlace
from fastdiff.models.pictures import draw

_WAITED = "called a synchronizing CUDA operation"
_PROTOTYPE = "Synchronization debug mode is a prototype"


def syncs_of_a_step(pipeline: Any, generation: Generation, device: str) -> Syncs:
    """Draw once more and count the second step's waits, as the report has them: by place, most frequent first.

    `per_step` is None, with the reason, where there is no CUDA device or no second step.
    """
    if device != "cuda":
        return Syncs(reason=f"no CUDA device: device={device}")
    found: Counter[str] = Counter()
    ended = 0
    with ExitStack() as second_step:

        def on_step(index: int, latents: Any) -> None:
            nonlocal ended
            ended += 1
            if ended == 1:
                second_step.enter_context(_counting(found))
            elif ended == 2:
                second_step.close()

        draw(pipeline, generation, on_step)
    if ended < 2:
        return Syncs(reason=f"a second step is needed, and the pipeline told of {ended}")
    places = [WaitingPlace(place, count) for place, count in found.most_common()]
    return Syncs(found.total(), places, reason=None)


@contextmanager
def _counting(found: Counter[str]) -> Iterator[None]:
    """Within it, every wait for the GPU is counted under its place; mode and warnings are restored afterwards."""
    import torch

    with warnings.catch_warnings():
        show = warnings.showwarning

        def noted(message: Any, category: Any, filename: str, line: int, *rest: Any) -> None:
            if _WAITED in str(message):
                found[_place(filename, line)] += 1
            else:
                show(message, category, filename, line, *rest)

        warnings.showwarning = noted  # type: ignore[assignment]
        warnings.filterwarnings("always", message=_WAITED)
        warnings.filterwarnings("ignore", message=_PROTOTYPE)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _place(filename: str, line: int) -> str:
    """The innermost code outside torch that is running, `diffusers/schedulers/scheduling_ddim.py:342`.

    filename, line: what the warning itself says, for where there is no such code.
    """
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and module.partition(".")[0] not in ("torch", "warnings"):
            return _shortened(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return _shortened(filename, line)


def _shortened(filename: str, line: int) -> str:
    """A path as one would import it; the file's name alone for code that was generated."""
    path = Path(filename)
    roots = (Path(entry) for entry in sys.path if entry)
    inside = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    return f"{min(inside, key=lambda p: len(p.parts), default=Path(path.name)).as_posix()}:{line}"
