"""One side of a comparison in its own process: warm, then one timed call for each line that it is sent.

    python -m fastdiff.runs.compare.player FOLDER

The folder holds `request.json`. Events go out as a worker's do: `ready` with what was built, applied and drawn, then
`seconds` for each line `go` that comes in, and `ended` when no more come.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Bench
from fastdiff.measuring.child import carry_out
from fastdiff.measuring.conditions import Watch, this_room
from fastdiff.measuring.protocol import Events, Request
from fastdiff.measuring.quality import against, compare
from fastdiff.measuring.report import measured_on
from fastdiff.measuring.timing import now, seconds_between, synchronize
from fastdiff.measuring.warm import called_once
from fastdiff.models.pictures import draw

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdiff.config import Generation


def play(folder: Path, request: Request, events: Events, turns: Iterable[str]) -> None:
    """Build, warm up, say what there is, and answer each turn with the seconds of a call."""
    with called_once(folder, request, events) as warm:
        pipeline, device, timed, report = (
            warm.built.pipeline,
            warm.plan.device,
            warm.timed,
            warm.report,
        )
        run = warm.plan.setting.run
        assert isinstance(run.bench, Bench)
        warm.look_at_what_ran()
        watch = Watch(device)
        # A single timed call: the other ones are made turn by turn.
        warm.time_calls(replace(run.bench, runs=1), watch)
        before = warm.graphs()
        # The parent watches the turns; what the machine did during the one call here says nothing of them.
        report.notices = [text for text in timed.notices if text not in watch.notices()]
        report.quality = against(request.reference, timed.pictures, timed.latents)
        report.peak_memory_bytes = warm.memory.peaks()
        report.environment = measured_on(device)
        ready = report.to_dict() | {
            "latents_shape": warm.latents_shape,
            "room": asdict(this_room()),
            "gpu_names": _gpu_names(device),
        }
        events.send(ready=ready)
        last = timed.last_pictures
        for _ in turns:
            seconds, last = timed_call(pipeline, run.generation, device)
            events.send(seconds=seconds)
        events.send(
            ended={
                "peak_memory_bytes": warm.memory.peaks().to_dict(),
                "graphs_while_timing": warm.graphs() - before,
                "same_picture": compare(last, timed.pictures).identical,
            }
        )


def timed_call(pipeline: Any, generation: Generation, device: str) -> tuple[float, list[Image]]:
    """One call of a warm pipeline: seconds by the wall clock, the device waited for, and its pictures. Raises RunError if the clock jumped."""
    synchronize(device)
    before = now()
    pictures = draw(pipeline, generation)
    synchronize(device)
    return seconds_between(before, now()), pictures


def _gpu_names(device: str) -> list[str]:
    """What the driver may know this run's GPU by; none off CUDA."""
    if device != "cuda":
        return []
    import torch

    from fastdiff.machine.nvml import gpu_names

    return gpu_names(torch.cuda.get_device_properties())


def main() -> int:
    return carry_out(lambda folder, request, events: play(folder, request, events, sys.stdin))


if __name__ == "__main__":
    sys.exit(main())
