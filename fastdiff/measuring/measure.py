"""One run from its request to its report: build, first call, what ran, steady state, where time and memory went, quality."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastdiff.config import Bench, Reference
from fastdiff.errors import Status, named_line
from fastdiff.latency import Latency
from fastdiff.machine.files import sha256_of, write_json
from fastdiff.machine.software import flags
from fastdiff.measuring.memory import FIRST_CALL, IMPORT, LOAD, STEADY, PeakMemory
from fastdiff.measuring.protocol import MEASURED, Events, Request, says_disk_full
from fastdiff.measuring.report import blank_report, measured_on
from fastdiff.passes.base import Settling
from fastdiff.passes.effects import Observed

if TYPE_CHECKING:
    from fastdiff.config import RunConfig
    from fastdiff.measuring.exactness import Captured
    from fastdiff.measuring.quality import Distance
    from fastdiff.measuring.timing import Timed
    from fastdiff.planning.build import Built
    from fastdiff.planning.plan import Plan

Found = TypeVar("Found")


def run(folder: Path, request: Request, events: Events) -> None:
    """Build, measure, compare, report."""
    from fastdiff.choices.compose import restore

    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    config = restore(request.config)
    plan = plan_with_facts(config, events)
    if request.only_pictures:
        refuse_if_too_large(plan)
        say_what_a_large_reference_costs(plan, events)
    events.say("importing torch and diffusers")
    memory = PeakMemory(plan.device)
    with memory.phase(IMPORT):
        import_s = import_libraries(plan)
    flags_at_start = flags()
    from fastdiff.measuring.compile_times import native_code
    from fastdiff.measuring.observing import note_skipped_cuda_graphs
    from fastdiff.measuring.quality import save_latents
    from fastdiff.measuring.timing import first_call
    from fastdiff.models.pictures import float32_noise
    from fastdiff.planning.build import build

    note_skipped_cuda_graphs()
    code = native_code(plan.setting)
    with memory.phase(LOAD):
        built = build(plan, events.say)
    events.say("compiling" if plan.setting.compiles else "first call")
    with float32_noise(built.pipeline):
        with memory.phase(FIRST_CALL):
            timed = first_call(built.pipeline, config.generation, plan.device, events.tell)
        images = save_pictures(timed, folder)
        save_latents(folder, timed.latents)
        if request.only_pictures:
            return
        report = blank_report(config, plan, request.overrides, started_at).to_dict()
        report |= {
            "images": images,
            "import_s": import_s,
            "flags_at_start": flags_at_start,
        }
        observed, found = what_ran(built, plan, events, code)
        report |= found
        report |= _times(built, timed, plan, observed, memory, events, report["compile"])
        write_json(folder / MEASURED, report)  # what comes now may fail, and takes nothing from it
        report |= _where_it_went(built, timed, plan, folder, events, report["notices"])
        report["quality"] = _quality(built.pipeline, plan, timed, request.reference, events)
        write_json(folder / MEASURED, report)
        captured = _captured(built, plan)
    del built  # the exactness check wants its memory
    report["exactness"] = _exactness(captured, plan, events)
    report |= _environment(plan, report)
    report |= _judgement(report, config)
    report["finished_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "report.json", report)
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


def plan_with_facts(config: RunConfig, events: Events) -> Plan:
    """Plan again where the model is: a hub model's configuration is fetched first, its weights later."""
    from fastdiff.machine.environment import this_machine
    from fastdiff.models.hub import Hub
    from fastdiff.models.sources import model_of
    from fastdiff.planning.plan import make_plan

    model = model_of(config)
    if isinstance(model, Hub) and model.remote:
        if model.snapshot() is None:
            events.say(f"asking the hub for {model.id}")
            model.fetch()
        if not model.complete() and (size := model.download_bytes()):
            events.say(f"downloading {model.id}, {size / 1e9:.1f} GB")
    return make_plan(config, this_machine(), model.facts())


_CUDA_CONTEXT_BYTES = 700_000_000
_LARGE_REFERENCE_BYTES = 20_000_000_000


def refuse_if_too_large(plan: Plan) -> None:
    """Raise MemoryError if a reference in fp32 would not fit where it is made, or where it is loaded first."""
    facts, environment = plan.setting.facts, plan.setting.environment
    parameters = facts.parameters if facts else None
    if parameters is None:
        return
    weights = parameters * 4
    needed = weights + max(weights // 5, decoding_bytes(plan))
    free, room = environment.available_memory_bytes, environment.room_bytes(plan.device)
    if plan.device == "cuda" and environment.gpus and environment.gpus[0].memory_bytes:
        needed += _CUDA_CONTEXT_BYTES
        if free is not None and weights > free:
            raise MemoryError(
                f"the reference in fp32 is loaded into the host's memory first, needs about {weights / 1e9:.1f} GB "
                f"there, and {free / 1e9:.1f} GB are free"
            )
    if room is not None and needed > room:
        raise MemoryError(
            f"the reference in fp32 needs about {needed / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free"
        )


def decoding_bytes(plan: Plan) -> int:
    """What decoding a call's pictures in fp32 needs beside the weights, about.

    The last level of a VAE's decoder is the largest: it holds about four tensors of twice its first level's channels at
    every pixel (a residual, a normalized one, a convolution's input and output).
    """
    run, vae, denoiser = plan.setting.run, plan.setting.vae, plan.setting.denoiser
    asked = run.generation
    side = denoiser.config.get("sample_size") if denoiser else None
    usual = 8 * side if isinstance(side, int) else 1024
    channels = vae.config.get("block_out_channels") if vae else None
    widest = 2 * (channels[0] if isinstance(channels, (list, tuple)) and channels else 128)
    pictures = len(asked.prompts) * asked.images_per_prompt
    return pictures * (asked.height or usual) * (asked.width or usual) * 4 * widest * 4


def say_what_a_large_reference_costs(plan: Plan, events: Events) -> None:
    """That it takes minutes before anything is measured, and what leaves it out."""
    facts = plan.setting.facts
    weights = 4 * (facts.parameters or 0) if facts else 0
    if weights > _LARGE_REFERENCE_BYTES:
        events.say(
            f"a reference in fp32 first: {weights / 1e9:.0f} GB of weights, minutes of loading; quality=none leaves it out"
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


def save_pictures(timed: Timed, folder: Path) -> list[dict[str, Any]]:
    """Write the pictures as PNG; names and hashes for the report."""
    saved = []
    for index, picture in enumerate(timed.pictures):
        path = folder / f"image-{index}.png"
        picture.save(path)
        saved.append({"path": path.name, "sha256": sha256_of(path)})
    return saved


def what_ran(
    built: Built, plan: Plan, events: Events, code: frozenset[str]
) -> tuple[Observed, dict[str, Any]]:
    """What was seen of the first call and of one step, and what the report says of it.

    code: native code in the compile cache before the first call.
    A pass without effect ends the run here, before anything is timed. Raises NoEffectError.
    """
    from fastdiff.measuring.compile_times import compile_times
    from fastdiff.measuring.observing import attention_kernels, compile_counters

    run, denoiser = plan.setting.run, plan.setting.denoiser
    observed = compile_counters()
    if denoiser is not None:
        events.say("looking at the kernels of one step")
        seen = attention_kernels(built.pipeline, denoiser.name, run.generation)
        observed = replace(observed, kernels=seen.kernels, kernels_hidden=seen.hidden)
    observed = built.observed(observed)
    effects = built.effects(observed, allow_no_effect=run.allow_no_effect)
    return observed, {
        "effects": [effect.to_dict() for effect in effects],
        "applied": [str(effect) for effect in effects],
        "compile_s": observed.compile_s,
        "compile": {
            "graphs": observed.graphs,
            "graph_breaks": observed.graph_breaks,
            "recompiles": observed.recompiles,
            "reasons": list(observed.break_reasons),
            "cuda_graphs": observed.cuda_graphs,
            **compile_times(plan.setting, observed, built.outcomes, code),
        },
    }


def _times(
    built: Built,
    timed: Timed,
    plan: Plan,
    observed: Observed,
    memory: PeakMemory,
    events: Events,
    compiled: dict[str, Any],
) -> dict[str, Any]:
    """The steady state, and all times and peaks up to its end."""
    from fastdiff.measuring.memory import memory_not_told
    from fastdiff.measuring.observing import compile_counters
    from fastdiff.measuring.quality import compare
    from fastdiff.measuring.timing import steady_calls
    from fastdiff.models.given import modules_of

    run = plan.setting.run
    assert isinstance(run.bench, Bench)
    warm: list[int] = []

    def on_warm() -> None:
        warm.append(built.observed(compile_counters()).graphs)

    with memory.phase(STEADY):
        steady_calls(
            timed,
            built.pipeline,
            run.generation,
            run.bench,
            plan.device,
            events.tell,
            on_warm=on_warm,
            settling=settling(plan),
        )
    now = built.observed(compile_counters())
    late = now.graphs - warm[0]
    identical, difference = attempted(
        lambda: _repeated(compare(timed.last_pictures, timed.pictures)),
        lambda reason: (None, None),
        plan.device,
    )
    latency: Latency = timed.latency
    modules = modules_of(built.pipeline).values()
    return {
        "load_s": built.load_s,
        "apply_s": built.apply_s,
        "first_call_s": timed.first_call_s,
        "warmup_s": timed.warmup_s,
        "warmup": timed.warmup.to_dict(),
        "latency_s": latency.to_dict(),
        "device_latency_s": timed.device_latency.to_dict(),
        "step_latency_s": timed.step_latency.to_dict(),
        "throughput_images_per_s": len(timed.pictures) / latency.median_s,
        "conditions": timed.conditions,
        "peak_memory_bytes": memory.to_dict(),
        "memory_bytes": attempted(
            lambda: memory.parts(modules, compiled=observed.graphs > 0),
            memory_not_told,
            plan.device,
        ),
        "compile": {**compiled, "graphs_while_timing": late, **_cuda_graphs(now)},
        "repeatable": {"identical": identical, "max_abs_difference": difference},
        "notices": _notices(plan, late, difference or 0.0, now) + timed.notices,
    }


def _repeated(found: Distance) -> tuple[bool | None, float | None]:
    return found.identical, found.max_abs_difference


def settling(plan: Plan) -> Settling:
    """The latest of what the plan's passes say of when calls are alike."""
    said = [step.pass_.settles(plan.setting) for step in plan.steps]
    return max(said, key=lambda each: each.calls, default=Settling(1))


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


def _where_it_went(
    built: Built, timed: Timed, plan: Plan, folder: Path, events: Events, notices: list[str]
) -> dict[str, Any]:
    """Where a call's time goes, in calls of their own that nobody times, and how near a step comes to the machine's limit."""
    from fastdiff.measuring.parts import calls_for, not_timed, time_parts
    from fastdiff.measuring.profiling import not_profiled, profile_call
    from fastdiff.measuring.roofline import no_roofline, roofline
    from fastdiff.measuring.syncs import not_counted, syncs_of_a_step

    run, device, pipeline = plan.setting.run, plan.device, built.pipeline
    if device == "cuda":
        events.say("looking for what waits for the GPU in one step")
    syncs = attempted(
        lambda: syncs_of_a_step(pipeline, run.generation, device), not_counted, device
    )
    events.say("looking where the time goes")
    looks = calls_for(timed.latency.median_s, len(timed.latency.samples_s))
    parts = attempted(
        lambda: time_parts(pipeline, run.generation, device, looks), not_timed, device
    )
    profile = not_profiled()
    if run.profile:
        events.say("profiling one call")
        profile = attempted(
            lambda: profile_call(pipeline, run.generation, device, folder), not_profiled, device
        )
    events.say("comparing a step with what the machine can do")
    calls = parts["denoiser_calls"]
    step_s = parts["denoiser"] / calls if calls else None
    others = timed.conditions["host"]["other_share"]
    nothing: tuple[str, ...] = ()
    found, more = attempted(
        lambda: roofline(
            pipeline, run.generation, device, step_s, caches=plan.setting.skips, other_share=others
        ),
        lambda reason: (no_roofline(reason), nothing),
        device,
    )
    return {
        "syncs": syncs,
        "parts_s": parts,
        "profile": profile,
        "roofline": found,
        "notices": [*notices, *more],
    }


def _quality(
    pipeline: Any, plan: Plan, timed: Timed, reference: dict[str, Any], events: Events
) -> dict[str, Any]:
    """What the pictures are worth: how far from the reference, whether they show what their captions say."""
    from fastdiff.measuring.captions import caption_quality, not_judged
    from fastdiff.measuring.quality import against, not_compared

    run = plan.setting.run

    if reference.get("pictures"):
        events.say("comparing with the reference")
    lpips = isinstance(run.quality, Reference) and run.quality.lpips
    found = attempted(
        lambda: against(reference, timed.pictures, timed.latents, lpips=lpips),
        lambda reason: not_compared(reference, reason),
        plan.device,
    )
    caption = attempted(
        lambda: caption_quality(pipeline, run, timed.pictures, events.tell), not_judged, plan.device
    )
    return found | {"caption": caption}


def _captured(built: Built, plan: Plan) -> Captured:
    """One denoiser call and one decode of the optimized pipeline, for the exactness check."""
    from fastdiff.measuring.exactness import Captured, capture

    run = plan.setting.run
    if not isinstance(run.quality, Reference):
        return Captured(reason="quality=none")
    if not run.quality.exact:
        return Captured(reason="quality.exact=false")
    return attempted(
        lambda: capture(built.pipeline, plan, run.generation),
        lambda reason: Captured(reason=reason),
        plan.device,
    )


def _exactness(captured: Captured, plan: Plan, events: Events) -> dict[str, Any]:
    from fastdiff.measuring.exactness import check, not_checked
    from fastdiff.planning.build import build

    return attempted(
        lambda: check(captured, plan, build, events.say),
        lambda reason: not_checked(reason, plan),
        plan.device,
    )


def _environment(plan: Plan, report: dict[str, Any]) -> dict[str, Any]:
    """The machine as this process sees it; what planning knew of it where that can't be read, and a notice."""
    return attempted(
        lambda: {"environment": measured_on(plan.device).to_dict()},
        lambda reason: {
            "notices": [
                *report["notices"],
                f"the machine is not described in full, because reading what it is failed: {reason}",
            ]
        },
        plan.device,
    )


def _judgement(report: dict[str, Any], run: RunConfig) -> dict[str, Any]:
    """Status and error: figures that miss a budget, or an exact pass that isn't, are kept, but the run is no success."""
    from fastdiff.measuring.budgets import missed, refusal
    from fastdiff.measuring.exactness import failure

    budgets = run.quality.budgets() if isinstance(run.quality, Reference) else {}
    report["quality"]["missed"] = missed(report["quality"], budgets)
    wrong = [refusal(report["quality"]["missed"])] if report["quality"]["missed"] else []
    inexact = failure(report["exactness"])
    wrong += [inexact] if inexact else []
    if not wrong:
        return {"status": Status.OK.value}
    error = {"message": "\n".join(wrong), "log": "log.txt", "log_tail": []}
    return {"status": Status.INVALID_OUTPUT.value, "error": error}
