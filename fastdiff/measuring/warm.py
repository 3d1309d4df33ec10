"""The beginning that a measured run and a player of a comparison share: from a request to calls that are alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Bench
from fastdiff.machine.files import sha256_of
from fastdiff.machine.software import flags
from fastdiff.measuring.compile_times import compile_times, native_code
from fastdiff.measuring.conditions import Watch
from fastdiff.measuring.fields import PassEffect, Picture, Report
from fastdiff.measuring.memory import FIRST_CALL, IMPORT, LOAD, STEADY, PeakMemory
from fastdiff.measuring.observing import (
    attention_kernels,
    compile_counters,
    note_skipped_cuda_graphs,
)
from fastdiff.measuring.parts import replaced
from fastdiff.measuring.protocol import Events, Request
from fastdiff.measuring.quality import save_latents
from fastdiff.measuring.report import blank_report
from fastdiff.measuring.timing import Timed, first_call, steady_calls
from fastdiff.passes.base import Settling
from fastdiff.passes.effects import Observed

if TYPE_CHECKING:
    from fastdiff.config import RunConfig
    from fastdiff.planning.build import Built
    from fastdiff.planning.plan import Plan


@dataclass
class WarmRun:
    """A pipeline that was built and called once, and its report as far as it goes.

    native_code: in the compile cache before the first call.
    latents_shape: of the latents that the first call began with; with the seed it tells them: they are drawn in fp32 on
        the CPU. None of a pipeline without prepare_latents().
    """

    events: Events
    plan: Plan
    built: Built
    timed: Timed
    memory: PeakMemory
    report: Report
    native_code: frozenset[str]
    latents_shape: list[int] | None

    def look_at_what_ran(self) -> Observed:
        """What was seen of the first call and of one step. A pass without effect ends the run here. Raises NoEffectError."""
        setting, report = self.plan.setting, self.report
        observed = compile_counters()
        if setting.denoiser is not None:
            self.events.say("looking at the kernels of one step")
            seen = attention_kernels(
                self.built.pipeline, setting.denoiser.name, setting.run.generation
            )
            observed = replace(observed, kernels=seen.kernels, kernels_hidden=seen.hidden)
        observed = self.built.observed(observed)
        effects = self.built.effects(observed, allow_no_effect=setting.run.allow_no_effect)
        report.effects = [PassEffect.of(effect.to_dict()) for effect in effects]
        report.applied = [str(effect) for effect in effects]
        report.compile_s = observed.compile_s
        report.compile = replace(
            compile_times(setting, observed, self.built.outcomes, self.native_code),
            graphs=observed.graphs,
            graph_breaks=observed.graph_breaks,
            recompiles=observed.recompiles,
            reasons=list(observed.break_reasons),
            cuda_graphs=observed.cuda_graphs,
        )
        return observed

    def time_calls(
        self,
        bench: Bench,
        watch: Watch | None = None,
        on_warm: Callable[[], None] = lambda: None,
    ) -> None:
        """Warm up, then time calls."""
        with self.memory.phase(STEADY):
            steady_calls(
                self.timed,
                self.built.pipeline,
                self.plan.setting.run.generation,
                bench,
                self.plan.device,
                self.events.tell,
                watch=watch,
                on_warm=on_warm,
                settling=settling(self.plan),
            )
        self.report.warmup_s, self.report.warmup = self.timed.warmup_s, self.timed.warmup

    def graphs(self) -> int:
        """How many were compiled so far."""
        return self.built.observed(compile_counters()).graphs


@contextmanager
def called_once(folder: Path, request: Request, events: Events) -> Iterator[WarmRun]:
    """What a request asks for, built and called once, its pictures kept; within it noise is drawn in fp32, as in that call."""
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
    from fastdiff.models.pictures import float32_noise
    from fastdiff.planning.build import build

    note_skipped_cuda_graphs()
    code = native_code(plan.setting)
    with memory.phase(LOAD):
        built = build(plan, events.say)
    events.say("compiling" if plan.setting.compiles else "first call")
    with float32_noise(built.pipeline):
        with memory.phase(FIRST_CALL), _noted_latents(built.pipeline) as shapes:
            timed = first_call(built.pipeline, config.generation, plan.device, events.tell)
        report = blank_report(config, plan, request.overrides, started_at)
        report.flags_at_start = flags_at_start
        report.import_s, report.load_s, report.apply_s = import_s, built.load_s, built.apply_s
        report.first_call_s = timed.first_call_s
        report.images = save_pictures(timed, folder)
        save_latents(folder, timed.latents)
        shape = shapes[0] if shapes else None
        yield WarmRun(events, plan, built, timed, memory, report, code, shape)


@contextmanager
def _noted_latents(pipeline: Any) -> Iterator[list[list[int]]]:
    """Within it, the shape of the latents that each call starts from is noted."""
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

    with replaced(pipeline, "prepare_latents", noted):
        yield shapes


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


def save_pictures(timed: Timed, folder: Path) -> list[Picture]:
    """Write the pictures as PNG; names and hashes for the report."""
    saved = []
    for index, picture in enumerate(timed.pictures):
        path = folder / f"image-{index}.png"
        picture.save(path)
        saved.append(Picture(path.name, sha256_of(path)))
    return saved


def settling(plan: Plan) -> Settling:
    """The latest of what the plan's passes say of when calls are alike."""
    said = [step.pass_.settles(plan.setting) for step in plan.steps]
    return max(said, key=lambda each: each.calls, default=Settling(1))
