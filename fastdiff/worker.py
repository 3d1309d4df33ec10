"""One run in its own process: a run folder in, a report out.

    python -m fastdiff.worker RUN_DIR

The folder holds `request.json`. Standard output carries events, one JSON object a line; everything that libraries
print goes to standard error, which is the run's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastdiff.errors import FastdiffError, InvalidOutputError, ModelError, PlanError
from fastdiff.report import MeasuredOn, blank_report
from fastdiff.result import Latency, Status, read_json, sha256_of, write_json

if TYPE_CHECKING:
    from fastdiff.bench.timing import Timed
    from fastdiff.config import RunConfig
    from fastdiff.engine import Built
    from fastdiff.planning import Plan


PARENT = "FASTDIFF_PARENT"
"""Environment variable with the process id of whoever started the worker."""


@dataclass(frozen=True)
class Request:
    """What a run folder asks for.

    reference: what the pictures are compared with, written by the parent: {"run_id", "pictures", "reason"}.
    only_pictures: draw once and measure nothing, for a reference.
    """

    config: dict[str, Any]
    overrides: list[str]
    reference: dict[str, Any]
    only_pictures: bool = False

    @classmethod
    def read(cls, folder: Path) -> Request:
        return cls(**read_json(folder / "request.json"))

    def write(self, folder: Path) -> None:
        write_json(folder / "request.json", self.__dict__)


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


def main() -> int:
    folder = Path(sys.argv[1])
    events = Events(_own_standard_output())
    _end_with_parent()
    _quiet_and_safe()
    try:
        run(folder, Request.read(folder), events)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()
        events.send(error=describe(error))
        return getattr(error, "exit_code", 1)
    return 0


def _own_standard_output() -> TextIO:
    """Keep the pipe to the parent for events; whoever prints now prints into the log."""
    line = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return line


def _end_with_parent() -> None:
    """On Linux: be ended when the parent is, so that no orphan goes on computing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != int(os.environ.get(PARENT, os.getppid())):
            sys.exit(1)  # it was gone before the signal was asked for


def _quiet_and_safe() -> None:
    """What has to be set before diffusers and the hub's client are imported."""
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def describe(error: BaseException) -> dict[str, Any]:
    """An error as the parent needs it: status, message, exit code."""
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
    return {"status": status.value, "message": text, "exit_code": getattr(error, "exit_code", 1)}


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or any(word in str(error).lower() for word in words)


def run(folder: Path, request: Request, events: Events) -> None:
    """Build, measure, compare, report."""
    from fastdiff.composition import restore

    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    config = restore(request.config)
    plan = _plan_with_facts(config, events)
    if request.only_pictures:
        refuse_if_too_large(plan)
    events.say("importing torch and diffusers")
    from fastdiff.bench.pictures import float32_noise
    from fastdiff.bench.timing import first_call
    from fastdiff.engine import build

    import_s = import_libraries(plan)
    built = build(plan, events.say)
    generation, device = config.generation, plan.device
    events.say("compiling" if config.choices["compile"] != "none" else "first call")
    with float32_noise(built.pipeline):
        timed = first_call(built.pipeline, generation, device, events.tell)
        images = _save(timed, folder)
        if request.only_pictures:
            return
        report = blank_report(config, plan, request.overrides, started_at)
        report |= _measure(built, timed, plan, events) | {"import_s": import_s}
    report["quality"] = _quality(timed, request.reference, events)
    report["images"] = images
    report["environment"] = MeasuredOn(device).to_dict()
    report["status"] = Status.OK.value
    report["finished_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "report.json", report)


def _plan_with_facts(config: RunConfig, events: Events) -> Plan:
    """Plan again where the model is: a hub model's configuration is fetched first, its weights later."""
    from fastdiff.environment import this_machine
    from fastdiff.models.hub import Hub
    from fastdiff.models.sources import model_of
    from fastdiff.planning import make_plan

    model = model_of(config)
    if isinstance(model, Hub) and model.remote:
        if model.snapshot() is None:
            events.say(f"asking the hub for {model.id}")
            model.fetch()
        if not model.complete() and (size := model.download_bytes()):
            events.say(f"downloading {model.id}, {size / 1e9:.1f} GB")
    return make_plan(config, this_machine(), model.facts())


def refuse_if_too_large(plan: Plan) -> None:
    """Raise MemoryError if a reference in fp32 would not fit where it is made."""
    facts, environment = plan.setting.facts, plan.setting.environment
    parameters = facts.parameters if facts else None
    if parameters is None:
        return
    needed = round(parameters * 4 * 1.2)
    gpu = plan.device == "cuda" and environment.gpus
    room = environment.gpus[0].memory_bytes if gpu else environment.available_memory_bytes
    if room is not None and needed > room:
        raise MemoryError(
            f"the reference in fp32 needs about {needed / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free"
        )


def import_libraries(plan: Plan) -> float:
    """Import what loading would import, so that `load_s` is loading alone; returns the seconds it took."""
    started = time.perf_counter()
    import diffusers
    import transformers

    if plan.setting.facts:
        getattr(diffusers, plan.setting.facts.pipeline, None)
    # Progress bars are the parent's business.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return time.perf_counter() - started


def _save(timed: Timed, folder: Path) -> list[dict[str, Any]]:
    """Write the pictures as PNG; names and hashes for the report."""
    saved = []
    for index, picture in enumerate(timed.pictures):
        path = folder / f"image-{index}.png"
        picture.save(path)
        saved.append({"path": path.name, "sha256": sha256_of(path)})
    return saved


def _measure(built: Built, timed: Timed, plan: Plan, events: Events) -> dict[str, Any]:
    """Look at what ran in the first call, so that a pass without effect ends here, then time the steady state."""
    from fastdiff.bench.observing import attention_kernels, compile_counters, peak_memory_bytes
    from fastdiff.bench.quality import compare
    from fastdiff.bench.syncs import syncs_of_a_step
    from fastdiff.bench.timing import steady_calls
    from fastdiff.config import Bench

    config, device = plan.setting.run, plan.device
    assert isinstance(config.bench, Bench)
    observed = compile_counters()
    denoiser = plan.setting.denoiser
    if denoiser is not None:
        events.say("looking at the kernels of one step")
        kernels = attention_kernels(built.pipeline, denoiser.name, config.generation)
        observed = replace(observed, kernels=kernels)
    observed = built.observed(observed)
    effects = built.effects(observed, allow_no_effect=config.allow_no_effect)
    before = built.observed(compile_counters())
    steady_calls(timed, built.pipeline, config.generation, config.bench, device, events.tell)
    late = built.observed(compile_counters()).graphs - before.graphs
    memory = peak_memory_bytes(device)
    if device == "cuda":
        events.say("looking for what waits for the GPU in one step")
    syncs = syncs_of_a_step(built.pipeline, config.generation, device)
    repeated = compare(timed.last_pictures, timed.pictures)
    pictures = len(timed.pictures)
    latency: Latency = timed.latency
    return {
        "effects": [effect.to_dict() for effect in effects],
        "applied": [str(effect) for effect in effects],
        "load_s": built.load_s,
        "apply_s": built.apply_s,
        "first_call_s": timed.first_call_s,
        "compile_s": observed.compile_s,
        "warmup_s": timed.warmup_s,
        "latency_s": latency.to_dict(),
        "step_latency_s": timed.step_latency.to_dict(),
        "throughput_images_per_s": pictures / latency.median_s,
        "peak_memory_bytes": memory,
        "compile": {
            "graphs": observed.graphs,
            "graph_breaks": observed.graph_breaks,
            "recompiles": observed.recompiles,
            "reasons": list(observed.break_reasons),
            "cache": observed.cache,
            "graphs_while_timing": late,
        },
        "syncs": syncs,
        "repeatable": {
            "identical": repeated.identical,
            "max_abs_difference": repeated.max_abs_difference,
        },
        "notices": _notices(plan, late, repeated.max_abs_difference),
    }


def _notices(plan: Plan, graphs_while_timing: int, difference: float) -> list[str]:
    """What the plan said, and what only the run could find out."""
    notices = [f"{notice.choice}: {notice.text}" for notice in plan.notices]
    if graphs_while_timing:
        notices.append(
            f"{graphs_while_timing} graphs were compiled while calls were timed: the times hold compiling; "
            "a larger bench.warmup leaves it out"
        )
    if difference > 0:
        notices.append(
            f"the last call's picture differs from the first's by up to {difference:.3f} (of 1): "
            "this run doesn't repeat itself exactly"
        )
    return notices


def _quality(timed: Timed, reference: dict[str, Any], events: Events) -> dict[str, Any]:
    """The distance from the reference, or null with the reason."""
    nothing = {"identical": None, "psnr_db": None, "ssim": None, "max_abs_difference": None}
    known = {
        "reference_run_id": reference.get("run_id"),
        "reference": reference.get("name"),
        "reason": reference.get("reason"),
    }
    paths = reference.get("pictures")
    if not paths:
        return known | nothing
    events.say("comparing with the reference")
    from PIL import Image

    from fastdiff.bench.quality import compare

    if paths == "own":
        return known | compare(timed.pictures, timed.pictures).to_dict()
    try:
        with contextlib.ExitStack() as stack:
            references = [stack.enter_context(Image.open(path)).convert("RGB") for path in paths]
            return known | compare(timed.pictures, references).to_dict()
    except (OSError, ValueError) as error:
        return known | nothing | {"reason": str(error)}


if __name__ == "__main__":
    sys.exit(main())
