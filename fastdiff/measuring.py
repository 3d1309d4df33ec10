"""One run from its request to its report: build, first call, what ran, steady state, quality."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.protocol import Events, Request
from fastdiff.report import MeasuredOn, blank_report
from fastdiff.result import Latency, Status, sha256_of, write_json

if TYPE_CHECKING:
    from fastdiff.bench.timing import Timed
    from fastdiff.config import RunConfig
    from fastdiff.engine import Built
    from fastdiff.planning import Plan


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
