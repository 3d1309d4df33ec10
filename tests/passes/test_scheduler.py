"""Schedulers: what each is made from, that its picture is right, and where none can take the own one's place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from imagined import planned, problems

from fastdiff.choices.compose import compose
from fastdiff.errors import PlanError, RunError
from fastdiff.machine.environment import this_machine
from fastdiff.models.architectures import ARCHITECTURES
from fastdiff.passes.base import Context, Setting
from fastdiff.passes.scheduler import FAMILY, FLOW_FAMILY, OPTIONS, FlowScheduler, Scheduler
from fastdiff.planning.plan import make_plan

FOREIGN = (
    "this model's FlowMatchEulerDiscreteScheduler follows another kind of noise schedule (flow matching, for "
    "one), and its configuration says nothing to this solver"
)
OTHERS = ("ddim", "pndm", "dpm_solver", "lcm")


@pytest.fixture(scope="module")
def euler_25(shapes_run: Callable[..., Any]) -> Any:
    """The embedded model's own scheduler, at the model's own 25 steps."""
    return shapes_run("generation.steps=25")


def applied(pipeline: Any, *overrides: str) -> Any:
    """The effect on a pipeline of which nothing is known beforehand."""
    run: Any = compose(["device=cpu", *overrides])
    return run.scheduler.apply(pipeline, Context(Setting(run, this_machine(), "cpu", None)))


def test_the_family_is_diffusers_own_and_lcm() -> None:
    from diffusers.schedulers import KarrasDiffusionSchedulers

    assert set(FAMILY) == {*KarrasDiffusionSchedulers.__members__, "LCMScheduler"}
    solvers = [kind for kind in OPTIONS.values() if issubclass(kind, Scheduler)]
    classes = {kind.class_name for kind in solvers if not issubclass(kind, FlowScheduler)}
    assert classes < set(FAMILY)


def test_flow_matching_is_what_diffusers_has_of_it() -> None:
    import diffusers

    known = dir(diffusers.schedulers)
    assert {n for n in known if n.startswith("FlowMatch") and n.endswith("Scheduler")} == {
        *FLOW_FAMILY
    }
    flow = {kind.class_name for kind in OPTIONS.values() if issubclass(kind, FlowScheduler)}
    assert flow < {*FLOW_FAMILY, *FAMILY}


# Made from the model's own configuration -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "summary", "calls", "least_psnr_db"),
    [
        # Without noise of its own DDIM is Euler's method: the same picture, to the last bit but one.
        ("ddim", "DDIMScheduler for EulerDiscreteScheduler, clip_sample=False", 25, 50),  # the same
        ("pndm", "PNDMScheduler for EulerDiscreteScheduler, skip_prk_steps=True", 26, 25),  # 30.9
        ("dpm_solver", "DPMSolverMultistepScheduler for EulerDiscreteScheduler", 25, 29),  # 34.5
        (
            "lcm",
            "LCMScheduler for EulerDiscreteScheduler",
            25,
            10,
        ),  # 14.4: no model distilled for it
    ],
)
def test_each_draws_what_euler_draws_in_25_steps(
    shapes_run: Callable[..., Any],
    euler_25: Any,
    option: str,
    summary: str,
    calls: int,
    least_psnr_db: float,
) -> None:
    """Bounds are 4 dB below what was measured, in brackets."""
    ran = shapes_run(f"scheduler={option}", "generation.steps=25")
    effect = ran.effects(kernels={"flash": 14})[f"scheduler.{option}"]
    scheduler = ran.pipeline.scheduler

    assert str(effect) == f"scheduler.{option} 1 scheduler, {summary}"
    assert effect.details["before"] == "EulerDiscreteScheduler"
    assert effect.details["after"] == type(scheduler).__name__
    assert len(scheduler.timesteps) == calls
    assert ran.psnr_db(euler_25) > least_psnr_db
    # The noise that the model was trained with stays.
    kept = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    assert {key: scheduler.config[key] for key in kept} == kept
    assert scheduler.config.steps_offset == 1
    assert scheduler.config.timestep_spacing == "leading"


@pytest.mark.slow
def test_the_classs_own_default_would_spoil_ddims_picture(
    shapes_run: Callable[..., Any], euler_25: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why clip_sample is set: latents clipped to the range of pixels gave 10.4 dB."""
    monkeypatch.setattr(OPTIONS["ddim"], "needed", lambda self, pipeline: {})
    ran = shapes_run("scheduler=ddim", "generation.steps=25")
    assert ran.pipeline.scheduler.config.clip_sample is True
    assert ran.psnr_db(euler_25) < 15


def test_a_scheduler_that_the_model_has_is_left_as_it_is(
    shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    ran = shapes_run("scheduler=euler")
    effect = ran.effects(kernels={"flash": 14})["scheduler.euler"]
    assert str(effect) == "scheduler.euler already so"
    assert not effect.empty
    assert ran.psnr_db(shapes_plain) > 100


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
@pytest.mark.parametrize("option", ["euler", *OTHERS])
def test_published_configurations_keep_their_noise(option: str, architecture: str) -> None:
    """Stable Diffusion 1.x has PNDM and says so much; SDXL has Euler and doesn't say what DDIM and PNDM need."""
    import diffusers

    blueprint = ARCHITECTURES[architecture].components["scheduler"]
    own = getattr(diffusers, blueprint.class_name)(**blueprint.config)
    pipeline = SimpleNamespace(scheduler=own, vae=object())
    plan: Any = planned(f"scheduler={option}", model={"like": architecture})
    (step,) = [step for step in plan.steps if step.pass_.key == f"scheduler.{option}"]
    assert step.components == ("scheduler",)
    effect = step.pass_.apply(pipeline, Context(plan.setting))

    assert effect.already == (type(own) is type(pipeline.scheduler))
    assert (
        plan.setting.facts.components["scheduler"].class_name == type(pipeline.scheduler).__name__
    )
    for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "steps_offset"):
        assert pipeline.scheduler.config[key] == own.config[key]
    assert pipeline.scheduler.config.get("clip_sample", False) is False
    assert pipeline.scheduler.config.get("skip_prk_steps", True) is True
    pipeline.scheduler.set_timesteps(10)
    calls = 11 if option == "pndm" else 10
    assert len(pipeline.scheduler.timesteps) == calls


@pytest.mark.parametrize(
    ("option", "stated"), [("ddim", {"clip_sample": True}), ("pndm", {"skip_prk_steps": False})]
)
def test_what_the_model_states_itself_is_kept(option: str, stated: Mapping[str, bool]) -> None:
    """diffusers keeps settings that the present class doesn't know, for the class that does."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

    first = {"ddim": DDIMScheduler, "pndm": PNDMScheduler}[option](**stated)
    own = EulerDiscreteScheduler.from_config(first.config)
    pipeline = SimpleNamespace(scheduler=own, vae=object())
    effect = applied(pipeline, f"scheduler={option}")

    assert effect.details["set"] == {}
    ((key, value),) = stated.items()
    assert pipeline.scheduler.config[key] is value


def test_a_model_of_pixels_may_clip() -> None:
    """Where there is no VAE the denoiser's range is that of pixels, and DDIM's default is right."""
    from diffusers import EulerDiscreteScheduler

    pipeline = SimpleNamespace(scheduler=EulerDiscreteScheduler())
    effect = applied(pipeline, "scheduler=ddim")
    assert effect.details["set"] == {}
    assert pipeline.scheduler.config.clip_sample is True


# Refusals -------------------------------------------------------------------------------------------------


def test_flow_matching_that_is_only_known_once_loaded_is_refused_in_the_same_words(
    flux_folder: Path,
) -> None:
    """A single file says nothing of its scheduler."""
    from fastdiff.planning.build import build

    overrides = ["device=cpu", "model=local", f"model.path={flux_folder}", "scheduler=ddim"]
    run = compose(overrides)
    facts = run.model.facts()
    rest = {name: part for name, part in facts.components.items() if name != "scheduler"}
    plan = make_plan(run, this_machine(), replace(facts, components=rest))
    with pytest.raises(RunError) as refused:
        build(plan)
    assert str(refused.value) == (
        f"scheduler=ddim: {FOREIGN}\n  instead: scheduler=default, or scheduler=flow_unipc"
    )


def test_a_hub_model_is_refused_before_its_weights_are_downloaded(
    flux_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its files the cache holds the configurations alone, as after a run's first question to the hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    snapshot = tmp_path / "hub" / "models--org--flux" / "snapshots" / "main"
    shutil.copytree(flux_folder, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    run = compose(["device=cpu", "model=hub", "model.id=org/flux", "scheduler=ddim"])
    facts = run.model.facts()
    assert facts.components["scheduler"].parameters == 0
    assert not run.model.complete()
    with pytest.raises(PlanError) as refused:
        make_plan(run, this_machine(), facts)
    (problem,) = refused.value.problems
    assert problem.reason == FOREIGN


def test_a_pipeline_without_a_scheduler_is_an_error() -> None:
    with pytest.raises(RunError) as refused:
        applied(SimpleNamespace(), "scheduler=euler")
    assert str(refused.value) == (
        "scheduler=euler: this model has no scheduler\n  instead: scheduler=default"
    )


# Flow matching --------------------------------------------------------------------------------------------

EULER = "FlowMatchEulerDiscreteScheduler"
FLOW_OPTIONS = ("flow_euler", "flow_heun", "flow_unipc", "flow_dpm_solver")


def flow(pipeline: str, class_name: str = EULER, **config: object) -> dict[str, Any]:
    """A pipeline of flow matching as far as its scheduler goes, and all that planning asks beside it."""
    return {"like": "sd1", "pipeline": pipeline, "scheduler": {class_name: config}}


@pytest.mark.parametrize("option", FLOW_OPTIONS)
def test_what_can_be_followed_is_planned(option: str) -> None:
    """SD3's, Wan's and Sana's own schedulers as published."""
    set_to = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    for model in (
        flow("StableDiffusion3Pipeline", shift=3.0),
        flow("WanPipeline", "UniPCMultistepScheduler", **set_to),
        flow("SanaPipeline", "DPMSolverMultistepScheduler", **set_to),
    ):
        plan: Any = planned(f"scheduler={option} generation.steps=20", model=model)
        made = plan.setting.facts.components["scheduler"].class_name
        assert made == OPTIONS[option].class_name  # type: ignore[attr-defined]
    step = next(step for step in plan.steps if step.pass_.key == f"scheduler.{option}")
    assert ("; two denoiser calls in each step but the last" in step.does) == (
        option == "flow_heun"
    )


@pytest.mark.parametrize(
    ("option", "own", "overrides", "added", "shift"),
    [
        ("flow_euler", {"shift": 3.0}, [], None, 3.0),
        ("flow_euler", {"shift": 3.0}, ["scheduler.shift=3"], None, 3.0),
        ("flow_euler", {"shift": 3.0}, ["scheduler.shift=5"], {"shift": 5.0}, 5.0),
        (
            "flow_euler",
            {"use_dynamic_shifting": True},
            ["scheduler.shift=5"],
            {"shift": 5.0, "use_dynamic_shifting": False},
            5.0,
        ),
        ("flow_heun", {"shift": 3.0}, [], {}, 3.0),
        (
            "flow_unipc",
            {"shift": 3.0},
            [],
            {"flow_shift": 3.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
            3.0,
        ),
        (
            "flow_dpm_solver",
            {"shift": 3.0},
            ["scheduler.shift=1.5"],
            {"flow_shift": 1.5, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
            1.5,
        ),
    ],
)
def test_the_models_shift_is_kept_or_the_one_asked_for_set(
    option: str,
    own: dict[str, Any],
    overrides: list[str],
    added: dict[str, Any] | None,
    shift: float,
) -> None:
    """added: what is set beside the model's own configuration; None where its own scheduler stays."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    kind = type("StableDiffusion3Pipeline", (SimpleNamespace,), {})
    pipeline = kind(scheduler=FlowMatchEulerDiscreteScheduler(**own))
    effect = applied(pipeline, f"scheduler={option}", *overrides)
    made = pipeline.scheduler.config
    assert made.get("flow_shift", made["shift"]) == shift
    if added is None:
        assert (effect.already, effect.changed) == (True, 0)
    else:
        assert (effect.changed, effect.details["set"]) == (1, added)


@pytest.mark.parametrize(
    ("option", "shift", "most"),
    [("flow_unipc", 12.0, 92), ("flow_unipc", 3.0, 333), ("flow_dpm_solver", 12.0, 92)],
)
def test_two_steps_of_one_whole_timestep_are_refused_where_the_scheduler_would_begin_at_the_second(
    option: str, shift: float, most: int
) -> None:
    """The bound is the schedulers' own: at one step more than what is let through their first two are the same."""
    import diffusers

    sd3, typed = flow("StableDiffusion3Pipeline"), f"scheduler={option} scheduler.shift={shift}"
    kind: Any = OPTIONS[option]
    scheduler = getattr(diffusers, kind.class_name)(**kind().settings(shift))
    setting = planned(typed, model=sd3).setting
    for steps in range(2, 500):
        scheduler.set_timesteps(steps)
        first, second = scheduler.timesteps[:2].tolist()
        setting.run.generation.steps = steps
        said = list(kind(shift=shift)._equal_timesteps(setting))
        assert bool(said) == (first == second), steps
    assert problems(planned, f"{typed} generation.steps=400", model=sd3) == [
        (
            "generation.steps=400",
            f"with a shift of {shift:g} the first two fall on the same whole timestep, and {kind.class_name} would "
            "begin at the second",
            "fewer steps, or a smaller scheduler.shift",
        )
    ]
    if option == "flow_unipc":  # FLUX says where it begins
        flux = flow("FluxPipeline")
        assert not problems(planned, f"{typed} generation.steps=400", model=flux)


def test_flow_euler_is_what_flux_has(flux_folder: Path, local_run: Callable[..., Any]) -> None:
    ran = local_run(flux_folder, "scheduler=flow_euler")
    assert str(ran.effects()["scheduler.flow_euler"]) == "scheduler.flow_euler already so"


def test_flow_unipc_draws_what_euler_draws_and_says_what_it_did(
    flux_folder: Path, local_run: Callable[..., Any]
) -> None:
    plain = local_run(flux_folder, "generation.steps=20")
    ran = local_run(flux_folder, "scheduler=flow_unipc", "generation.steps=20")
    assert str(ran.effects()["scheduler.flow_unipc"]) == (
        "scheduler.flow_unipc 1 scheduler, UniPCMultistepScheduler for FlowMatchEulerDiscreteScheduler, "
        "use_flow_sigmas=True, prediction_type=flow_prediction"
    )
    assert ran.psnr_db(plain) > 30
