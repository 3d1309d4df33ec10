"""Schedulers: what each is made from, that its picture is right, and where none can take the own one's place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastdiff.choices.compose import compose
from fastdiff.errors import PlanError, RunError
from fastdiff.machine.environment import this_machine
from fastdiff.models.architectures import ARCHITECTURES
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.passes.base import Context, Notice, Setting
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


def scheduler_facts(class_name: str, **config: object) -> ModelFacts:
    """Stable Diffusion with a scheduler of this class, and all that planning asks beside it."""
    parts = dict(ARCHITECTURES["sd1"].facts().components)
    parts["scheduler"] = Component("scheduler", "diffusers", class_name, 0, 0, config)
    return ModelFacts("StableDiffusionPipeline", parts)


def planned(facts: ModelFacts | None, *overrides: str) -> Any:
    return make_plan(compose(["device=cpu", *overrides]), this_machine(), facts, calls=False)


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
    from types import SimpleNamespace

    import diffusers

    blueprint = ARCHITECTURES[architecture].components["scheduler"]
    own = getattr(diffusers, blueprint.class_name)(**blueprint.config)
    pipeline = SimpleNamespace(scheduler=own, vae=object())
    plan = planned(ARCHITECTURES[architecture].facts(), f"scheduler={option}")
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
    from types import SimpleNamespace

    from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

    first = {"ddim": DDIMScheduler, "pndm": PNDMScheduler}[option](**stated)
    own = EulerDiscreteScheduler.from_config(first.config)
    pipeline = SimpleNamespace(scheduler=own, vae=object())
    run = compose(["device=cpu", f"scheduler={option}"])
    setting = Setting(run, this_machine(), "cpu", None)
    effect = run.scheduler.apply(pipeline, Context(setting))

    assert effect.details["set"] == {}
    ((key, value),) = stated.items()
    assert pipeline.scheduler.config[key] is value


def test_a_model_of_pixels_may_clip() -> None:
    """Where there is no VAE the denoiser's range is that of pixels, and DDIM's default is right."""
    from types import SimpleNamespace

    from diffusers import EulerDiscreteScheduler

    pipeline = SimpleNamespace(scheduler=EulerDiscreteScheduler())
    run = compose(["device=cpu", "scheduler=ddim"])
    setting = Setting(run, this_machine(), "cpu", None)
    effect = run.scheduler.apply(pipeline, Context(setting))
    assert effect.details["set"] == {}
    assert pipeline.scheduler.config.clip_sample is True


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["euler", *OTHERS])
def test_flow_matching_is_refused_before_anything_is_loaded(option: str, flux_folder: Path) -> None:
    overrides = ["device=cpu", "model=local", f"model.path={flux_folder}", f"scheduler={option}"]
    run = compose(overrides)
    with pytest.raises(PlanError) as refused:
        make_plan(run, this_machine(), run.model.facts())
    (problem,) = refused.value.problems
    assert problem.choice == f"scheduler={option}"
    assert problem.reason == FOREIGN
    assert problem.instead == "scheduler=default, or scheduler=flow_unipc"


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


@pytest.mark.parametrize(
    "config", [{"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"}]
)
def test_a_scheduler_of_the_family_can_be_set_to_flow_matching(config: dict[str, Any]) -> None:
    """As Sana's is."""
    with pytest.raises(PlanError) as refused:
        planned(scheduler_facts("DPMSolverMultistepScheduler", **config), "scheduler=euler")
    (problem,) = refused.value.problems
    assert problem.reason == (
        "this model's DPMSolverMultistepScheduler is set to flow matching, which this solver doesn't know"
    )


def test_a_pipeline_without_a_scheduler_is_an_error() -> None:
    from types import SimpleNamespace

    run = compose(["device=cpu", "scheduler=euler"])
    setting = Setting(run, this_machine(), "cpu", None)
    with pytest.raises(RunError) as refused:
        run.scheduler.apply(SimpleNamespace(), Context(setting))
    assert str(refused.value) == (
        "scheduler=euler: this model has no scheduler\n  instead: scheduler=default"
    )


# Flow matching --------------------------------------------------------------------------------------------

EULER = "FlowMatchEulerDiscreteScheduler"
FLOW_OPTIONS = ("flow_euler", "flow_heun", "flow_unipc", "flow_dpm_solver")


def flow_facts(pipeline: str, class_name: str = EULER, **config: object) -> ModelFacts:
    """A pipeline of flow matching as far as its scheduler goes, and all that planning asks beside it."""
    return replace(scheduler_facts(class_name, **config), pipeline=pipeline)


def refusals(facts: ModelFacts, *overrides: str) -> list[tuple[str, str, str]]:
    try:
        planned(facts, *overrides)
    except PlanError as error:
        return [(problem.choice, problem.reason, problem.instead) for problem in error.problems]
    return []


HANDS_LEVELS = "hands its own noise levels to the scheduler, and"
REFUSED_FLOW = [
    (
        ("FluxPipeline", EULER, {}),
        "flow_heun",
        f"FluxPipeline {HANDS_LEVELS} FlowMatchHeunDiscreteScheduler doesn't take them",
        "flow_unipc",
    ),
    (
        ("FluxPipeline", EULER, {}),
        "flow_dpm_solver",
        "FluxPipeline hands a shift by picture size to the scheduler, which DPMSolverMultistepScheduler takes only "
        "where the model's noise is shifted so",
        "flow_unipc",
    ),
    (
        ("QwenImagePipeline", EULER, {"use_dynamic_shifting": True, "shift_terminal": 0.02}),
        "flow_dpm_solver",
        f"this model's {EULER} has shift_terminal set, which DPMSolverMultistepScheduler can't follow",
        "flow_unipc",
    ),
    (
        ("QwenImagePipeline", EULER, {"use_dynamic_shifting": True}),
        "flow_dpm_solver",
        f"QwenImagePipeline {HANDS_LEVELS} DPMSolverMultistepScheduler doesn't take them",
        "flow_unipc",
    ),
    (
        ("StableDiffusion3Pipeline", EULER, {"use_dynamic_shifting": True}),
        "flow_heun",
        "this model's noise is shifted by picture size, which FlowMatchHeunDiscreteScheduler can't do",
        "flow_unipc",
    ),
    (
        ("MochiPipeline", EULER, {"invert_sigmas": True}),
        "flow_unipc",
        f"this model's {EULER} has invert_sigmas set, which UniPCMultistepScheduler can't follow",
        None,
    ),
    (
        ("ZImagePipeline", EULER, {}),
        "flow_unipc",
        f"ZImagePipeline {HANDS_LEVELS} UniPCMultistepScheduler doesn't take them",
        None,
    ),
    (
        ("CogView4Pipeline", EULER, {}),
        "flow_unipc",
        "CogView4Pipeline hands its own timesteps to the scheduler, and UniPCMultistepScheduler doesn't take them",
        None,
    ),
    (
        ("NobodysPipeline", EULER, {}),
        "flow_unipc",
        "what NobodysPipeline hands to its scheduler isn't known, and UniPCMultistepScheduler doesn't take everything",
        None,
    ),
    (
        ("StableDiffusionXLPipeline", "EulerDiscreteScheduler", {}),
        "flow_euler",
        "this model's EulerDiscreteScheduler is none of flow matching, which this solver alone knows",
        None,
    ),
    (
        ("SanaSprintPipeline", "SCMScheduler", {}),
        "flow_dpm_solver",
        "this model's SCMScheduler is none of flow matching, which this solver alone knows",
        None,
    ),
]


@pytest.mark.parametrize(("of", "option", "reason", "other"), REFUSED_FLOW)
def test_a_solver_that_the_pipeline_couldnt_call_is_refused_by_the_plan(
    of: tuple[str, str, dict[str, Any]], option: str, reason: str, other: str | None
) -> None:
    pipeline, class_name, config = of
    facts = flow_facts(pipeline, class_name, **config)
    instead = "scheduler=default" + (f", or scheduler={other}" if other else "")
    assert refusals(facts, f"scheduler={option}") == [(f"scheduler={option}", reason, instead)]
    if other:
        assert refusals(facts, f"scheduler={other}") == []


def test_a_shift_of_ones_own_takes_the_place_of_the_one_by_picture_size() -> None:
    facts = flow_facts("StableDiffusion3Pipeline", EULER, use_dynamic_shifting=True)
    assert len(refusals(facts, "scheduler=flow_heun")) == 1
    assert refusals(facts, "scheduler=flow_heun", "scheduler.shift=3") == []


@pytest.mark.parametrize("option", FLOW_OPTIONS)
def test_what_can_be_followed_is_planned(option: str) -> None:
    """SD3's, Wan's and Sana's own schedulers as published."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    for facts in (
        flow_facts("StableDiffusion3Pipeline", shift=3.0),
        flow_facts("WanPipeline", "UniPCMultistepScheduler", **flow),
        flow_facts("SanaPipeline", "DPMSolverMultistepScheduler", **flow),
    ):
        plan = planned(facts, f"scheduler={option}", "generation.steps=20")
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
    from types import SimpleNamespace

    from diffusers import FlowMatchEulerDiscreteScheduler

    kind = type("StableDiffusion3Pipeline", (SimpleNamespace,), {})
    pipeline = kind(scheduler=FlowMatchEulerDiscreteScheduler(**own))
    run = compose(["device=cpu", f"scheduler={option}", *overrides])
    effect = run.scheduler.apply(pipeline, Context(Setting(run, this_machine(), "cpu", None)))
    made = pipeline.scheduler.config
    assert made.get("flow_shift", made["shift"]) == shift
    if added is None:
        assert (effect.already, effect.changed) == (True, 0)
    else:
        assert (effect.changed, effect.details["set"]) == (1, added)


def test_a_fixed_shift_takes_the_place_of_the_one_by_picture_size() -> None:
    facts = flow_facts("FluxPipeline", use_dynamic_shifting=True)
    assert refusals(facts, "scheduler=flow_dpm_solver") == []
    ((_, reason, _),) = refusals(facts, "scheduler=flow_dpm_solver", "scheduler.shift=3")
    assert reason.startswith("FluxPipeline hands a shift by picture size to the scheduler")
    for option in ("flow_euler", "flow_unipc"):
        assert refusals(facts, f"scheduler={option}", "scheduler.shift=3") == []


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_shift_is_a_number_above_0(value: str) -> None:
    facts = flow_facts("StableDiffusion3Pipeline")
    assert refusals(facts, "scheduler=flow_euler", f"scheduler.shift={value}") == [
        (
            f"scheduler.shift={value}",
            "must be a finite number above 0",
            "scheduler.shift=3, or null for the model's own",
        )
    ]


@pytest.mark.parametrize(
    ("option", "shift", "most"),
    [("flow_unipc", 12.0, 92), ("flow_unipc", 3.0, 333), ("flow_dpm_solver", 12.0, 92)],
)
def test_two_steps_of_one_whole_timestep_are_refused_where_the_scheduler_would_begin_at_the_second(
    option: str, shift: float, most: int
) -> None:
    """The bound is the schedulers' own: at one step more than what is let through their first two are the same."""
    import diffusers

    sd3, flux = flow_facts("StableDiffusion3Pipeline"), flow_facts("FluxPipeline")
    words = (f"scheduler={option}", f"scheduler.shift={shift}")
    kind: Any = OPTIONS[option]
    scheduler = getattr(diffusers, kind.class_name)(**kind().settings(shift))
    for steps in range(2, 500):
        scheduler.set_timesteps(steps)
        first, second = scheduler.timesteps[:2].tolist()
        said = list(
            kind(shift=shift)._equal_timesteps(
                planned_setting(sd3, *words, f"generation.steps={steps}")
            )
        )
        assert bool(said) == (first == second), steps
    ((choice, reason, instead),) = refusals(sd3, *words, "generation.steps=400")
    assert (choice, instead) == (
        "generation.steps=400",
        "fewer steps, or a smaller scheduler.shift",
    )
    assert reason == (
        f"with a shift of {shift:g} the first two fall on the same whole timestep, and {kind.class_name} would begin "
        "at the second"
    )
    if option == "flow_unipc":  # FLUX says where it begins
        assert refusals(flux, *words, "generation.steps=400") == []


def planned_setting(facts: ModelFacts, *overrides: str) -> Setting:
    return Setting(compose(["device=cpu", *overrides]), this_machine(), "cpu", facts)


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


# LCM ------------------------------------------------------------------------------------------------------

UNDISTILLED = Notice(
    "scheduler=lcm",
    "is for models that were distilled for it; this one isn't known to be, and draws poorly without an "
    "adapter: lora=lcm",
)


def test_lcm_says_what_it_needs(shapes_plan: Callable[..., Any]) -> None:
    assert UNDISTILLED in shapes_plan("scheduler=lcm").notices
    assert UNDISTILLED not in shapes_plan("scheduler=ddim").notices
    assert UNDISTILLED in planned(None, "scheduler=lcm", "generation.steps=4").notices


def test_lcm_says_nothing_of_a_model_distilled_for_it() -> None:
    own = scheduler_facts("LCMScheduler")
    pipeline = replace(scheduler_facts("DDIMScheduler"), pipeline="LatentConsistencyModelPipeline")
    for facts in (own, pipeline):
        plan = planned(facts, "scheduler=lcm", "generation.steps=4")
        assert UNDISTILLED not in plan.notices


@pytest.mark.parametrize(("config", "most"), [({}, 50), ({"original_inference_steps": 20}, 20)])
def test_lcm_refuses_more_steps_than_it_was_distilled_from(
    config: dict[str, Any], most: int
) -> None:
    facts = scheduler_facts("LCMScheduler", **config)
    planned(facts, "scheduler=lcm", f"generation.steps={most}")
    with pytest.raises(PlanError) as refused:
        planned(facts, "scheduler=lcm", f"generation.steps={most + 1}")
    (problem,) = refused.value.problems
    assert problem.reason == f"draws in at most {most} steps, and {most + 1} are asked for"
    assert problem.instead == "generation.steps=4"
