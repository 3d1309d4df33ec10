"""One run from its request to its report: build, first call, what ran, steady state, where time and memory went, quality."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastdiff.config import Bench, Reference
from fastdiff.errors import Status, named_line
from fastdiff.machine.files import write_json
from fastdiff.measuring import exactness, parts, profiling, quality, roofline, syncs
from fastdiff.measuring.budgets import missed, refusal
from fastdiff.measuring.exactness import Captured
from fastdiff.measuring.fields import (
    Caption,
    Error,
    Exactness,
    MeasuredOn,
    MemoryInParts,
    PartTimes,
    Profile,
    Quality,
    Repeatable,
    Report,
    Roofline,
    Syncs,
    Times,
    TimesByCall,
)
from fastdiff.measuring.observing import compile_counters
from fastdiff.measuring.protocol import (
    MEASURED,
    Events,
    ReferencePictures,
    Request,
    says_disk_full,
)
from fastdiff.measuring.report import measured_on
from fastdiff.measuring.warm import WarmRun, called_once
from fastdiff.models.given import modules_of
from fastdiff.passes.effects import Observed

if TYPE_CHECKING:
    from fastdiff.config import RunConfig
    from fastdiff.measuring.timing import Timed
    from fastdiff.planning.plan import Plan

Found = TypeVar("Found")


def run(folder: Path, request: Request, events: Events) -> None:
    """Build, measure, compare, report."""
    with called_once(folder, request, events) as warm:
        if request.only_pictures:
            return
        plan, report = warm.plan, warm.report
        _time(warm, warm.look_at_what_ran())
        write_json(
            folder / MEASURED, report.to_dict()
        )  # what comes now may fail, and takes nothing
        _look_where_it_went(warm, folder)
        report.quality = _quality(warm.built.pipeline, plan, warm.timed, request.reference, events)
        write_json(folder / MEASURED, report.to_dict())
        captured = _captured(warm)
    del warm  # the exactness check wants its memory
    report.exactness = _exactness(captured, plan, events)
    report.environment = _environment(plan, report)
    _judge(report, plan.setting.run)
    report.finished_at = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "report.json", report.to_dict())
    (folder / MEASURED).unlink(missing_ok=True)


def attempted(look: Callable[[], Found], otherwise: Callable[[str], Found], device: str) -> Found:
    """What a look at a run whose times are known finds; where it fails, what stands for it, made of the reason.

    Whatever goes wrong with what comes after the times takes nothing from them: it is in the log, and its own field says
    so. A full disk alone ends the run, which couldn't be written down.
    """
    try:
        return look()
    except Exception as error:
        if says_disk_full(error):
            raise
        traceback.print_exc()
        reason = f"it failed: {named_line(error)}"
    gc.collect()  # what the failed look still held
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
    return otherwise(reason)


def _time(warm: WarmRun, observed: Observed) -> None:
    """The steady state, and all times and peaks up to its end. observed: what ran in the first call."""
    plan, built, timed, report = warm.plan, warm.built, warm.timed, warm.report
    bench = plan.setting.run.bench
    assert isinstance(bench, Bench)
    compiled: list[int] = []
    warm.time_calls(bench, on_warm=lambda: compiled.append(warm.graphs()))
    now = built.observed(compile_counters())
    late = now.graphs - compiled[0]
    report.latency_s = Times.of(timed.latency.to_dict())
    report.device_latency_s = Times.of(timed.device_latency.to_dict())
    report.step_latency_s = TimesByCall.of(timed.step_latency.to_dict())
    report.throughput_images_per_s = len(timed.pictures) / timed.latency.median_s
    report.conditions = timed.conditions
    report.peak_memory_bytes = warm.memory.peaks()
    report.memory_bytes = attempted(
        lambda: warm.memory.parts(
            modules_of(built.pipeline).values(), compiled=observed.graphs > 0
        ),
        lambda reason: MemoryInParts(reasons={"all": reason}),
        plan.device,
    )
    report.compile = replace(report.compile, graphs_while_timing=late, **_cuda_graphs(now))
    report.repeatable = attempted(
        lambda: _repeated(quality.compare(timed.last_pictures, timed.pictures)),
        lambda reason: Repeatable(),
        plan.device,
    )
    moved = report.repeatable.max_abs_difference or 0.0
    report.notices = _notices(plan, late, moved, now) + timed.notices


def _repeated(found: Quality) -> Repeatable:
    return Repeatable(found.identical, found.max_abs_difference)


def _cuda_graphs(observed: Observed) -> dict[str, Any]:
    """The report's fields on them, at the end of the timed calls; null off CUDA."""
    known = observed.cuda_graphs is not None
    return {
        "cuda_graphs": observed.cuda_graphs,
        "cuda_graphs_skipped": observed.cuda_graphs_skipped if known else None,
        "cuda_graphs_reasons": list(observed.cuda_graphs_reasons),
    }


def _notices(
    plan: Plan, graphs_while_timing: int, difference: float, observed: Observed
) -> list[str]:
    """What the plan said, and what only the run could find out."""
    notices = [f"{notice.choice}: {notice.text}" for notice in plan.notices]
    if graphs_while_timing:
        notices.append(
            f"{graphs_while_timing} graphs were compiled while calls were timed: the times hold compiling; "
            "a larger bench.warmup leaves it out"
        )
    if skipped := observed.cuda_graphs_skipped:
        why = "; ".join(observed.cuda_graphs_reasons) or "it didn't say why"
        notices.append(
            f"Inductor left CUDA graphs out {skipped} time{'s' * (skipped > 1)}, and what they hold was computed "
            f"without them: {why}"
        )
    if difference > 0:
        notices.append(
            f"the last call's picture differs from the first's by up to {difference:.3f} (of 1): "
            "this run doesn't repeat itself exactly"
        )
    return notices


def _look_where_it_went(warm: WarmRun, folder: Path) -> None:
    """Where a call's time goes, in calls of their own that nobody times, and how near a step comes to the machine's limit."""
    plan, timed, report, say = warm.plan, warm.timed, warm.report, warm.events.say
    run, device, pipeline = plan.setting.run, plan.device, warm.built.pipeline
    drawn = run.generation
    if device == "cuda":
        say("looking for what waits for the GPU in one step")
    report.syncs = attempted(
        lambda: syncs.syncs_of_a_step(pipeline, drawn, device),
        lambda reason: Syncs(reason=reason),
        device,
    )
    say("looking where the time goes")
    looks = parts.calls_for(timed.latency.median_s, len(timed.latency.samples_s))
    report.parts_s = attempted(
        lambda: parts.time_parts(pipeline, drawn, device, looks),
        lambda reason: PartTimes(reason=reason),
        device,
    )
    report.profile = Profile(reason="profile=false")
    if run.profile:
        say("profiling one call")
        report.profile = attempted(
            lambda: profiling.profile_call(pipeline, drawn, device, folder),
            lambda reason: Profile(reason=reason),
            device,
        )
    say("comparing a step with what the machine can do")
    nothing: tuple[str, ...] = ()
    report.roofline, notices = attempted(
        lambda: roofline.roofline(
            pipeline,
            drawn,
            device,
            report.parts_s.step_s,
            caches=plan.setting.skips,
            other_share=timed.conditions.host.other_share if timed.conditions.host else None,
        ),
        lambda reason: (Roofline(reason=reason), nothing),
        device,
    )
    report.notices += notices


def _quality(
    pipeline: Any, plan: Plan, timed: Timed, reference: ReferencePictures, events: Events
) -> Quality:
    """What the pictures are worth: how far from the reference, whether they show what their captions say."""
    from fastdiff.measuring.captions import caption_quality

    run = plan.setting.run
    if reference.pictures:
        events.say("comparing with the reference")
    lpips = isinstance(run.quality, Reference) and run.quality.lpips
    found = attempted(
        lambda: quality.against(reference, timed.pictures, timed.latents, lpips=lpips),
        lambda reason: quality.not_compared(reference, reason),
        plan.device,
    )
    found.caption = attempted(
        lambda: caption_quality(pipeline, run, timed.pictures, events.tell),
        lambda reason: Caption(reason=reason),
        plan.device,
    )
    return found


def _captured(warm: WarmRun) -> Captured:
    """One denoiser call and one decode of the optimized pipeline, for the exactness check."""
    run = warm.plan.setting.run
    if not isinstance(run.quality, Reference):
        return Captured(reason="quality=none")
    if not run.quality.exact:
        return Captured(reason="quality.exact=false")
    return attempted(
        lambda: exactness.capture(warm.built.pipeline, warm.plan, run.generation),
        lambda reason: Captured(reason=reason),
        warm.plan.device,
    )


def _exactness(captured: Captured, plan: Plan, events: Events) -> Exactness:
    from fastdiff.planning.build import build

    return attempted(
        lambda: exactness.check(captured, plan, build, events.say),
        lambda reason: exactness.not_checked(reason, plan),
        plan.device,
    )


def _environment(plan: Plan, report: Report) -> MeasuredOn:
    """The machine as this process sees it; what planning knew of it where that can't be read, and a notice."""

    def as_planned(reason: str) -> MeasuredOn:
        report.notices.append(
            f"the machine is not described in full, because reading what it is failed: {reason}"
        )
        return report.environment

    return attempted(lambda: measured_on(plan.device), as_planned, plan.device)


def _judge(report: Report, run: RunConfig) -> None:
    """Status and error: figures that miss a budget, or an exact pass that isn't, are kept, but the run is no success."""
    budgets = run.quality.budgets() if isinstance(run.quality, Reference) else {}
    report.quality.missed = missed(report.quality, budgets)
    wrong = [refusal(report.quality.missed)] if report.quality.missed else []
    inexact = exactness.failure(report.exactness)
    wrong += [inexact] if inexact else []
    report.status = (Status.INVALID_OUTPUT if wrong else Status.OK).value
    if wrong:
        report.error = Error("\n".join(wrong))
