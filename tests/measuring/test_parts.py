"""Which part a second belongs to, and that the pipeline is given back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Clock

from fastdiff.config import Generation
from fastdiff.measuring.fields import PartTimes
from fastdiff.measuring.parts import (
    PARTS,
    around_parts,
    at_first_denoiser_call,
    calls_for,
    denoiser_name,
    methods_of,
    time_parts,
)
from fastdiff.models.pictures import draw

MakePlan = Callable[..., Any]


class Scheduler:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def set_timesteps(self, steps: int) -> None:
        self.clock.now += 0.5

    def step(self) -> None:
        self.clock.now += 0.25


def module(clock: Clock, seconds: float, inner: Any = None) -> Any:
    """A module whose call takes some seconds, and then what another one takes."""
    from torch import nn

    class Taking(nn.Module):
        def forward(self) -> None:
            clock.now += seconds
            if inner is not None:
                inner()

        def decode(self) -> None:
            self.forward()

    return Taking()


class Fake:
    """A pipeline of which each call is a second slower elsewhere than the one before it."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.calls = clock, 0
        self.scheduler = Scheduler(clock)
        self.text_encoder = module(clock, 1.0)
        self.text_encoder_2 = module(clock, 2.0)
        self.unet = module(clock, 4.0, inner=self.scheduler.step)  # inside a part it is the part's
        self.vae = module(clock, 8.0)
        self.tokenizer = SimpleNamespace()

    @property
    def components(self) -> dict[str, Any]:
        names = ("text_encoder", "text_encoder_2", "unet", "vae", "scheduler", "tokenizer")
        return {name: getattr(self, name) for name in names}

    def __call__(
        self,
        prompt: Any,
        num_inference_steps: int = 4,
        generator: Any = None,
    ) -> Any:
        self.clock.now += self.calls
        self.calls += 1
        self.text_encoder()
        self.text_encoder_2()
        self.scheduler.set_timesteps(num_inference_steps)
        for _ in range(num_inference_steps):
            self.unet()
            self.scheduler.step()
        self.vae.decode()
        return SimpleNamespace(images=[])

    def maybe_free_model_hooks(self) -> None:
        return None


STEPS = Generation("a ring", steps=3)


def test_every_second_belongs_to_one_part_of_the_call_in_the_middle(clock: Clock) -> None:
    assert time_parts(Fake(clock), STEPS, "cpu", 3) == PartTimes(
        text_encoders=3.0,
        denoiser=3 * 4.25,
        scheduler=0.5 + 3 * 0.25,
        vae=8.0,
        other=1.0,
        whole=3 + 3 * 4.25 + 0.5 + 3 * 0.25 + 8 + 1,
        denoiser_calls=3,
        calls=3,
        reason=None,
    )


def test_on_mps_the_device_is_waited_for_at_the_ends_of_each_part(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is told at once; the GPU goes on, until somebody waits for it."""
    import torch

    gpu = Clock()
    monkeypatch.setattr(
        torch.mps, "synchronize", lambda: setattr(clock, "now", max(clock.now, gpu.now))
    )

    class Queueing(Fake):
        def __init__(self) -> None:
            super().__init__(clock)
            for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
                part = getattr(self, name)
                part.forward = self._queued(part, name)
                part.decode = part.forward

        def _queued(self, part: Any, name: str) -> Any:
            seconds = {"unet": 4.0, "vae": 8.0}.get(name, 1.0)

            def forward() -> None:
                gpu.now = max(gpu.now, clock.now) + seconds

            return forward

    found = time_parts(Queueing(), STEPS, "mps", 1)
    assert (found.text_encoders, found.denoiser, found.vae) == (2.0, 12.0, 8.0)
    assert found.scheduler == 0.5 + 3 * 0.25
    assert found.whole == 2 + 12 + 8 + 0.5 + 3 * 0.25


def test_a_pipeline_without_text_encoders_has_no_seconds_of_them(clock: Clock) -> None:
    class Bare(Fake):
        @property
        def components(self) -> dict[str, Any]:
            return {"unet": self.unet, "scheduler": self.scheduler}

    found = time_parts(Bare(clock), STEPS, "cpu", 1)
    assert (found.text_encoders, found.vae) == (0.0, 0.0)
    assert (found.denoiser, found.other) == (3 * 4.25, 3.0 + 8.0)


def test_long_calls_are_looked_at_once() -> None:
    assert [calls_for(seconds, 5) for seconds in (0.4, 5.0, 5.1, 300.0)] == [3, 3, 1, 1]
    assert [calls_for(0.4, runs) for runs in (1, 2, 3)] == [1, 2, 3]


def attributes(pipeline: Any) -> dict[str, Any]:
    """What the objects of a pipeline have themselves, by name."""
    return {
        f"{name}.{key}": value
        for name, part in pipeline.components.items()
        if hasattr(part, "__dict__")
        for key, value in vars(part).items()
        if key in {method.name for method in methods_of(pipeline)}
    }


def test_everything_is_put_back_also_after_an_error(clock: Clock) -> None:
    pipeline = Fake(clock)

    def compiled() -> None:
        raise ZeroDivisionError

    pipeline.vae.decode = compiled  # what compiling puts there is an attribute of the object
    before = attributes(pipeline)
    assert before == {"vae.decode": compiled}
    with pytest.raises(ZeroDivisionError):
        time_parts(pipeline, STEPS, "cpu", 1)
    assert attributes(pipeline) == before


def test_a_parts_context_is_left_when_the_part_fails(clock: Clock) -> None:
    pipeline, seen = Fake(clock), []

    @contextmanager
    def enter(part: str) -> Iterator[None]:
        seen.append(part)
        yield

    pipeline.text_encoder_2.forward = lambda: 1 / 0
    for _ in range(2):  # the second time, nobody is still inside of a part
        with pytest.raises(ZeroDivisionError), around_parts(pipeline, enter):
            draw(pipeline, STEPS)
    assert seen == ["text_encoders", "text_encoders"] * 2


@pytest.mark.parametrize("folder", ["sd_folder", "flux_folder"])
def test_real_pipelines_of_two_families_spend_time_in_every_part(
    folder: str, request: pytest.FixtureRequest, local_plan: MakePlan, built: Any
) -> None:
    pipeline, generation = built(local_plan(request.getfixturevalue(folder)))
    before = attributes(pipeline)
    found = time_parts(pipeline, generation, "cpu", 1)
    assert all(getattr(found, name) > 0 for name in (*PARTS, "other"))
    assert sum(getattr(found, name) for name in (*PARTS, "other")) == pytest.approx(found.whole)
    assert found.denoiser_calls == 2
    assert attributes(pipeline) == before
    assert denoiser_name(pipeline) in ("unet", "transformer")
    assert denoiser_name(SimpleNamespace(components={})) is None


def test_the_embedded_model_has_two_text_encoders(shapes_plain: Any) -> None:
    found = [(method.part, method.name) for method in methods_of(shapes_plain.pipeline)]
    assert found == [
        *[("text_encoders", "forward")] * 2,
        ("denoiser", "forward"),
        *[("scheduler", name) for name in ("set_timesteps", "scale_model_input", "step")],
        *[("vae", name) for name in ("encode", "decode")],
    ]


def test_a_call_is_left_at_the_denoiser(clock: Clock) -> None:
    pipeline = Fake(clock)
    freed: list[bool] = []
    pipeline.maybe_free_model_hooks = lambda: freed.append(True)  # type: ignore[method-assign]
    started = clock.now
    given = at_first_denoiser_call(
        pipeline, "unet", STEPS, lambda call, args, kwargs: (args, kwargs)
    )
    assert given == ((), {})
    assert clock.now - started == 3.5  # text encoders and timesteps
    assert freed == [True]
    assert attributes(pipeline) == {}


def test_a_pipeline_that_never_calls_its_denoiser_shows_nothing(clock: Clock) -> None:
    none = Generation("a ring", steps=0)
    assert at_first_denoiser_call(Fake(clock), "unet", none, lambda *given: given) is None


@pytest.mark.slow
def test_looking_at_the_parts_compiles_nothing_again(
    smallest_folder: Path, local_plan: MakePlan, built: Any
) -> None:
    from fastdiff.measuring.observing import compile_counters
    from fastdiff.measuring.profiling import profile_call

    plan = local_plan(smallest_folder, "compile=default", "generation.steps=6")
    pipeline, generation = built(plan)
    draw(pipeline, generation)
    forward, graphs = pipeline.unet.forward, compile_counters().graphs
    time_parts(pipeline, generation, "cpu", 2)
    found = profile_call(pipeline, generation, "cpu", smallest_folder)
    assert graphs > 0
    assert found.steps == 5
    assert compile_counters().graphs == graphs
    assert pipeline.unet.forward is forward


@pytest.mark.gpu
def test_on_a_gpu_the_parts_are_the_devices_time(shapes_run: Callable[..., Any]) -> None:
    ran = shapes_run("device=cuda", "generation.steps=10")
    found = time_parts(ran.pipeline, ran.generation, "cuda", 3)
    assert all(getattr(found, name) > 0 for name in PARTS)
    assert sum(getattr(found, name) for name in PARTS) <= found.whole * 1.01


@pytest.mark.gpu
def test_model_offload_brings_components_while_they_are_timed(
    shapes_run: Callable[..., Any],
) -> None:
    ran = shapes_run("device=cuda", "memory=model_offload")
    found = time_parts(ran.pipeline, ran.generation, "cuda", 1)
    assert all(getattr(found, name) > 0 for name in PARTS)
    assert next(ran.pipeline.unet.parameters()).device.type == "cpu"
