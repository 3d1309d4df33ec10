"""One side of a comparison in its own process: warm, then one timed call for each line that it is sent.

    python -m fastdiff.runs.compare.player FOLDER

The folder holds `request.json`. Events go out as a worker's do: `ready` with what was built, applied and drawn, then
`seconds` for each line `go` that comes in, and `ended` when no more come.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.measuring.measure import (
    import_libraries,
    plan_with_facts,
    save_pictures,
    settling,
    what_ran,
)
from fastdiff.measuring.protocol import (
    Events,
    Request,
    describe,
    end_with_parent,
    own_standard_output,
    quiet_and_safe,
)
from fastdiff.measuring.report import measured_on

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdiff.config import Generation
    from fastdiff.measuring.timing import Timed
    from fastdiff.planning.build import Built


def play(folder: Path, request: Request, events: Events, turns: Iterable[str]) -> None:
    """Build, warm up, say what there is, and answer each turn with the seconds of a call."""
    from fastdiff.choices.compose import restore

    config = restore(request.config)
    plan = plan_with_facts(config, events)
    events.say("importing torch and diffusers")
    from fastdiff.measuring.compile_times import native_code
    from fastdiff.measuring.conditions import Watch, this_room
    from fastdiff.measuring.memory import peak_memory_bytes
    from fastdiff.measuring.observing import compile_counters
    from fastdiff.measuring.quality import against, compare, save_latents
    from fastdiff.measuring.timing import first_call, steady_calls
    from fastdiff.models.pictures import float32_noise
    from fastdiff.planning.build import build

    import_s = import_libraries(plan)
    code = native_code(plan.setting)
    built = build(plan, events.say)
    generation, device = config.generation, plan.device
    events.say("compiling" if plan.setting.compiles else "first call")
    with float32_noise(built.pipeline):
        with noted_latents(built.pipeline) as shapes:
            timed = first_call(built.pipeline, generation, device, events.tell)
        images = save_pictures(timed, folder)
        save_latents(folder, timed.latents)
        _, found = what_ran(built, plan, events, code)
        watch = Watch(device)
        steady_calls(
            timed,
            built.pipeline,
            generation,
            _only_warm(config),
            device,
            events.tell,
            watch=watch,
            settling=settling(plan),
        )
        # The parent watches the turns; what the machine did during the one call here says nothing of them.
        timed.notices = [text for text in timed.notices if text not in watch.notices()]
        before = built.observed(compile_counters()).graphs
        found |= _costs(built, timed) | {
            "import_s": import_s,
            "images": images,
            "latents_shape": shapes[0] if shapes else None,
            "quality": against(request.reference, timed.pictures, timed.latents),
            "peak_memory_bytes": peak_memory_bytes(device),
            "environment": measured_on(device).to_dict(),
            "room": asdict(this_room()),
            "gpu_names": _gpu_names(device),
        }
        events.send(ready=found)
        last = timed.last_pictures
        for _ in turns:
            seconds, last = timed_call(built.pipeline, generation, device)
            events.send(seconds=seconds)
    events.send(
        ended={
            "peak_memory_bytes": peak_memory_bytes(device),
            "graphs_while_timing": built.observed(compile_counters()).graphs - before,
            "same_picture": compare(last, timed.pictures).identical,
        }
    )


def timed_call(pipeline: Any, generation: Generation, device: str) -> tuple[float, list[Image]]:
    """One call of a warm pipeline: seconds by the wall clock, the device waited for, and its pictures. Raises RunError if the clock jumped."""
    from fastdiff.measuring.timing import now, seconds_between, synchronize
    from fastdiff.models.pictures import draw

    synchronize(device)
    before = now()
    pictures = draw(pipeline, generation)
    synchronize(device)
    return seconds_between(before, now()), pictures


@contextmanager
def noted_latents(pipeline: Any) -> Iterator[list[list[int]]]:
    """Within it, the shape of the latents that each call starts from is noted.

    With the seed it tells the latents themselves: they are drawn in fp32 on the CPU. Nothing is noted of a pipeline without
    prepare_latents().
    """
    shapes: list[list[int]] = []
    prepare = getattr(pipeline, "prepare_latents", None)
    if prepare is None:
        yield shapes
        return

    def noted(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare(*args, **kwargs)
        latents = prepared[0] if isinstance(prepared, tuple) else prepared
        shapes.append(list(latents.shape))
        return prepared

    pipeline.prepare_latents = noted
    try:
        yield shapes
    finally:
        del pipeline.prepare_latents


def _only_warm(config: Any) -> Any:
    """The run's warm-up, and a single timed call after it: the other calls are made turn by turn."""
    return replace(config.bench, runs=1)


def _gpu_names(device: str) -> list[str]:
    """What the driver may know this run's GPU by; none off CUDA."""
    if device != "cuda":
        return []
    import torch

    from fastdiff.machine.nvml import gpu_names

    return gpu_names(torch.cuda.get_device_properties())


def _costs(built: Built, timed: Timed) -> dict[str, Any]:
    return {
        "load_s": built.load_s,
        "apply_s": built.apply_s,
        "first_call_s": timed.first_call_s,
        "warmup_s": timed.warmup_s,
        "warmup": timed.warmup.to_dict(),
        "notices": timed.notices,
    }


def main() -> int:
    folder = Path(sys.argv[1])
    events = Events(own_standard_output())
    end_with_parent()
    quiet_and_safe()
    try:
        play(folder, Request.read(folder), events, sys.stdin)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()
        events.send(error=describe(error))
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
