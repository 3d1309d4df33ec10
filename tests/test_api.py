"""The public functions: names, what they take, that the pipeline is an ordinary one and draws what a run draws, and refusals."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

import fastdiff
from fastdiff import api
from fastdiff.config import SLOTS
from fastdiff.errors import (
    ModelError,
    NoEffectError,
    PlanError,
    RecipeError,
    RunError,
    UsageError,
)
from fastdiff.machine.environment import Gpu, this_machine
from fastdiff.models.hub import Hub
from fastdiff.models.pictures import float32_noise
from fastdiff.models.sources import SHAPES_DIR, Local, Shapes, SingleFile
from fastdiff.passes.effects import Effect

PACKAGE = Path(fastdiff.__file__).parent
PUBLIC = {
    *("load", "plan", "applied"),
    *("Plan", "Step", "Notice", "Problem", "Effect", "Applied"),
    *("FastdiffError", "UsageError", "RecipeError", "RecipeProblem", "ModelError", "PlanError"),
    *("RunError", "NoEffectError", "InvalidOutputError"),
    "__version__",
}
CPU: dict[str, Any] = {"device": "cpu"}


def refusal(kind: type[Exception], **choices: Any) -> str:
    with pytest.raises(kind) as error:
        fastdiff.plan(**{**CPU, **choices})
    assert type(error.value) is kind
    return str(error.value)


def from_folder(folder: Path, dtype: torch.dtype | None = None) -> Any:
    found = DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def draw(pipeline: Any, side: int = 32, steps: int = 2, **more: Any) -> bytes:
    drawn = pipeline(
        "a red circle",
        num_inference_steps=steps,
        height=side,
        width=side,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **more,
    ).images
    return bytes(drawn.tobytes())


# Names -----------------------------------------------------------------------------------------------


def test_the_public_names_are_exactly_these() -> None:
    assert len(fastdiff.__all__) == len(set(fastdiff.__all__))
    assert set(fastdiff.__all__) == set(dir(fastdiff)) == PUBLIC
    assert all(hasattr(fastdiff, name) for name in PUBLIC)


def test_every_error_of_the_tree_is_public() -> None:
    from fastdiff import errors

    tree = {
        name
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, fastdiff.FastdiffError)
    }
    assert tree <= PUBLIC


def test_no_module_has_the_name_of_something_public() -> None:
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert modules & PUBLIC == set()


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="module 'fastdiff' has no attribute 'laod'"):
        fastdiff.laod  # noqa: B018


def test_every_public_function_and_class_is_documented() -> None:
    for name in PUBLIC - {"__version__"}:
        assert getattr(fastdiff, name).__doc__, name
    for name in ("load", "plan", "applied"):
        function = inspect.signature(getattr(fastdiff, name))
        assert all(p.annotation is not p.empty for p in function.parameters.values())
        assert function.return_annotation is not function.empty


def test_importing_fastdiff_imports_nothing_that_it_doesnt_need() -> None:
    heavy = ("omegaconf", "hydra", "yaml", "torch", "diffusers", "transformers", "numpy", "logging")
    code = f"import sys, fastdiff; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    assert run_python(code) == ""


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, fastdiff\n"
        "plan = fastdiff.plan(precision='bf16', device='cpu', compile='regional')\n"
        "print(type(plan).__name__, *sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert run_python(code) == "Plan"


def run_python(code: str) -> str:
    """What it prints; in a process that installed packages add nothing to when it begins (-S)."""
    ended = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    return ended.stdout.strip()


# Arguments -------------------------------------------------------------------------------------------


def test_a_plan_is_printed_as_the_command_line_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    from fastdiff.commands.plan import run

    run(["model=shapes", "quant=int8", "device=cpu"])
    shown = capsys.readouterr().out
    found = fastdiff.plan(**CPU, model="shapes", quant="int8")
    assert f"{found}\n" == f"{found!r}\n" == shown  # repr() is what a notebook shows
    assert max(map(len, shown.splitlines())) <= 80


def test_what_was_applied_is_printed_in_lines(shapes_plan: Callable[..., Any]) -> None:
    effects = (Effect("quant.int8", 82, "linears"), Effect("device", 0, "modules", already=True))
    plan = shapes_plan("quant=int8")
    said = repr(api.Applied(object(), plan, effects, ("attention.sdpa", "compile.regional")))
    head, *lines = said.splitlines()
    assert head.startswith("fastdiff  applied to shapes on cpu, ")
    assert "  applied       quant.int8 82 linears" in lines
    assert "  applied       device already so" in lines
    assert "  first call    attention.sdpa, compile.regional" in lines


def test_a_plan_is_what_the_command_line_plans(shapes_plan: Callable[..., Any]) -> None:
    typed = shapes_plan("precision=bf16", "quant=int8", "quant.min_in_features=64", "qkv=fused")
    found = fastdiff.plan(
        **CPU,
        precision="bf16",
        quant={"option": "int8", "min_in_features": 64},
        qkv="fused",
        generation={"steps": 4},
    )
    assert isinstance(found, fastdiff.Plan)
    assert all(isinstance(step, fastdiff.Step) for step in found.steps)
    assert found.to_dict() == typed.to_dict()
    assert found.setting.run.to_dict() == typed.setting.run.to_dict()


def test_keys_can_be_given_without_an_option_or_with_their_dots() -> None:
    found = [
        fastdiff.plan(**CPU, memory={"vae_slicing": True}, generation={"images_per_prompt": 2}),
        fastdiff.plan(**CPU, **{"memory.vae_slicing": True, "generation.images_per_prompt": 2}),
    ]
    for plan in found:
        assert plan.setting.run.memory.vae_slicing is True  # type: ignore[attr-defined]
        assert plan.setting.run.generation.images_per_prompt == 2
        assert "memory.vae" in [step.pass_.key for step in plan.steps]


def test_an_experiment_can_be_named() -> None:
    found = fastdiff.plan(**CPU, model="shapes", experiment="sdxl_tutorial/fused_qkv")
    assert found.setting.run.choices["qkv"] == "fused"
    assert found.setting.run.choices["experiment"] == "sdxl_tutorial/fused_qkv"


@pytest.mark.parametrize(
    "text", ["a, b", 'it\'s "quoted"', "${oc.env:HOME}", "[x]", "null", "1", "a\\", "{a: b}"]
)
def test_texts_arrive_as_they_are(text: str) -> None:
    found = fastdiff.plan(**CPU, generation={"prompt": text})
    assert found.setting.run.generation.prompt == text


def test_lists_and_paths_arrive_too(tmp_path: Path) -> None:
    cache = tmp_path / "it's, a cache"
    found = fastdiff.plan(
        **CPU,
        generation={"prompt": ("one", "two")},
        compile={"option": "default", "cache_dir": cache, "targets": ["denoiser"]},
    )
    run = found.setting.run
    assert run.generation.prompts == ["one", "two"]
    assert run.compile.cache_dir == str(cache)  # type: ignore[attr-defined]
    assert run.compile.targets == ["denoiser"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "option", "keys"),
    [
        ("shapes", Shapes, {}),
        ({"option": "shapes", "role": "student"}, Shapes, {}),
        (str(SHAPES_DIR), Local, {"path": str(SHAPES_DIR)}),
        (SHAPES_DIR, Local, {"path": str(SHAPES_DIR)}),
        ({"option": "local", "path": SHAPES_DIR}, Local, {"path": str(SHAPES_DIR)}),
    ],
)
def test_a_model_can_be_named_in_many_ways(model: Any, option: type, keys: dict[str, Any]) -> None:
    found = fastdiff.plan(**CPU, model=model).setting.run.model
    assert type(found) is option
    assert {key: getattr(found, key) for key in keys} == keys


@pytest.mark.parametrize(
    ("model", "stands_for"),
    [
        ("checkpoint.safetensors", {"option": "single_file", "path": "checkpoint.safetensors"}),
        (Path("a/b.safetensors"), {"option": "single_file", "path": "a/b.safetensors"}),
        ("org/name", {"option": "hub", "id": "org/name"}),
        ("./org", {"option": "local", "path": "./org"}),
        ("/no/such", {"option": "local", "path": "/no/such"}),
        ("~/models/sd", {"option": "local", "path": "~/models/sd"}),
        (Path("org/name"), {"option": "local", "path": "org/name"}),
        ("sdxl", "sdxl"),
        ("nothing", "nothing"),
        ({"option": "hub", "id": "a/b"}, {"option": "hub", "id": "a/b"}),
    ],
)
def test_what_a_models_name_stands_for(model: Any, stands_for: Any) -> None:
    assert api._model(model) == stands_for


def test_an_option_goes_before_a_folder_and_a_folder_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert api._model("shapes") == "shapes"
    assert api._model("org/name") == {"option": "local", "path": "org/name"}


def test_a_single_file_is_read_as_one(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    assert refusal(ModelError, model=missing).startswith(f"no such file: {missing}\n")
    assert isinstance(SingleFile(path=str(missing)), SingleFile)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_can_be_torchs_own(device: Any) -> None:
    assert fastdiff.plan(device=device).device == "cpu"


# Refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"precision": "bf17"}, "precision has no option 'bf17'\n  did you mean: precision=bf16"),
        ({"quantt": "int8"}, "there is no key 'quantt'\n  did you mean: quant"),
        (
            {"quant": {"option": "int8", "min_in_feature": 3}},
            "quant=int8 has no key 'min_in_feature'\n  did you mean: quant.min_in_features",
        ),
        ({"model": "shape"}, "model has no option 'shape'\n  did you mean: model=shapes"),
        (
            {"precision": "fp32,bf16"},
            "precision takes one option at a time, not 'fp32,bf16'\n"
            "  instead: precision=fp32, or -m precision=fp32,bf16 for a run of each",
        ),
        (
            {"precision": torch.bfloat16},
            "precision can't be torch.bfloat16, which is a dtype\n"
            "  instead: a name, a number, true or false, or a list or mapping of such",
        ),
        (
            {"qkv": True},
            "qkv can't be True: it must be an option's name, or a mapping with `option` and its keys\n"
            "  there are: fused, separate",
        ),
        (
            {"qkv": None},
            "qkv can't be None: it must be an option's name, or a mapping with `option` and its keys\n"
            "  there are: fused, separate",
        ),
        (
            {"bench": "thorough"},
            "bench says how a run is measured, and nothing is measured here\n"
            "  instead: leave out bench, or python -m fastdiff bench=...",
        ),
        (
            {"quality.lpips": True},
            "quality says how a run is measured, and nothing is measured here\n"
            "  instead: leave out quality.lpips, or python -m fastdiff quality=...",
        ),
        (
            {"profile": True},
            "profile says how a run is measured, and nothing is measured here\n"
            "  instead: leave out profile, or python -m fastdiff profile=...",
        ),
        (
            {"hydra.run.dir": "x"},
            "hydra.run.dir is Hydra's own, and no run begins here\n  instead: leave it out",
        ),
        (
            {"hydra/launcher": "ray"},
            "hydra/launcher is Hydra's own, and no run begins here\n  instead: leave it out",
        ),
        (
            {"model": 3},
            'model can\'t be a int\n  instead: an option ("sdxl"), a folder, a .safetensors file or "org/name"; '
            "a pipeline that you have built goes to fastdiff.applied(pipeline, ...)",
        ),
    ],
)
def test_what_cant_be_read(choices: dict[str, Any], said: str) -> None:
    assert refusal(UsageError, **choices) == said


def test_a_recipe_is_a_files_path() -> None:
    with pytest.raises(UsageError) as error:
        fastdiff.plan({"precision": "bf16"})  # type: ignore[arg-type]
    assert str(error.value) == (
        "a recipe is a file's path, not a dict\n"
        '  instead: "team.yaml", or choices by name: precision="bf16"'
    )


def test_a_key_cant_be_added() -> None:
    assert refusal(UsageError, **{"+quant.x": 1}).startswith("+quant.x=1: keys can't be added")


def test_every_problem_comes_at_once() -> None:
    with pytest.raises(PlanError) as error:
        fastdiff.load(**CPU, attention="math", qkv="fused", quant="fp8")
    problems = error.value.problems
    assert [problem.choice for problem in problems] == ["attention=math", "quant=fp8"]
    assert all(isinstance(problem, fastdiff.Problem) for problem in problems)


def test_a_folder_with_code_of_its_own_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": ["pipeline", "Mine"], "_diffusers_version": "0.42.1"})
    )
    (tmp_path / "pipeline.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="custom pipeline: "):
        fastdiff.load(model=tmp_path, **CPU)
    assert not (tmp_path / "ran").exists()


def test_a_hub_models_configuration_is_fetched_and_judged_before_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    fetched: list[str] = []
    monkeypatch.setattr(Hub, "snapshot", lambda self: None)
    monkeypatch.setattr(Hub, "fetch", lambda self: fetched.append(self.id))
    monkeypatch.setattr(api, "build", lambda plan, **_: pytest.fail("weights were asked for"))
    plans: list[Any] = []

    def planned(run: Any, **asked: Any) -> Any:
        if fetched:
            raise ModelError("it holds code")
        plans.append(run)
        return real(run, **asked)

    real = api.planned
    monkeypatch.setattr(api, "planned", planned)
    with pytest.raises(ModelError, match="it holds code"):
        fastdiff.load(model="org/name", **CPU)
    assert (len(plans), fetched) == (1, ["org/name"])


# What load gives -------------------------------------------------------------------------------------


SAME_AS_A_RUN: list[dict[str, Any]] = [
    {},
    {"precision": "bf16", "qkv": "fused", "memory_format": "channels_last"},
    {"quant": "int8_weight_only", "attention": "sdpa_math", "scheduler": "ddim"},
    {"precision": "fp16", "vae": "tiny", "cache": "pyramid_attention"},
    {"attention": "math", "memory": "layerwise"},
]


@pytest.mark.parametrize("choices", SAME_AS_A_RUN, ids=str)
def test_it_draws_what_a_run_draws(choices: dict[str, str], shapes_run: Callable[..., Any]) -> None:
    ran = shapes_run(*(f"{slot}={option}" for slot, option in choices.items()))
    pipeline = fastdiff.load(**CPU, **choices, generation={"steps": 4})
    pipeline.set_progress_bar_config(disable=True)
    generation = ran.generation
    with float32_noise(pipeline):  # a run's noise
        (drawn,) = pipeline(
            generation.prompt,
            num_inference_steps=4,
            guidance_scale=generation.guidance_scale,
            height=generation.height,
            width=generation.width,
            generator=torch.Generator().manual_seed(generation.seed),
        ).images
    assert drawn.tobytes() == ran.pictures[0].tobytes()


def test_it_is_an_ordinary_pipeline(sd_folder: Path) -> None:
    by_hand = DiffusionPipeline.from_pretrained(str(sd_folder), dtype=torch.bfloat16)
    loaded = fastdiff.load(model=sd_folder, precision="bf16", **CPU)
    assert type(loaded) is type(by_hand) is StableDiffusionPipeline
    assert vars(loaded).keys() == vars(by_hand).keys()
    assert loaded.config == by_hand.config
    for name, part in by_hand.components.items():
        assert type(loaded.components[name]) is type(part)
        if isinstance(part, torch.nn.Module):
            other = loaded.components[name]
            assert [vars(m).keys() for m in other.modules()] == [
                vars(m).keys() for m in part.modules()
            ]
            assert not other.training
    for pipeline in (loaded, by_hand):
        pipeline.set_progress_bar_config(disable=True)
    assert draw(loaded) == draw(by_hand)


def test_its_progress_bar_is_as_diffusers_has_it(sd_folder: Path) -> None:
    assert not hasattr(fastdiff.load(model=sd_folder, **CPU), "_progress_bar_config")


def test_nothing_else_of_the_process_changes(
    sd_folder: Path, global_state: Callable[[], dict[str, Any]]
) -> None:
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    def process() -> Any:
        return [
            global_state(),
            dict(os.environ),
            list(warnings.filters),
            (of_diffusers.get_verbosity(), of_transformers.get_verbosity()),
            (logging.getLogger().handlers[:], logging.getLogger("fastdiff").level),
            torch.initial_seed(),
        ]

    before = process()
    pipeline = fastdiff.load(
        model=sd_folder, **CPU, precision="bf16", quant="int8_weight_only", qkv="fused"
    )
    pipeline.set_progress_bar_config(disable=True)
    draw(pipeline)
    assert process() == before


def test_a_run_has_no_bar_of_the_pipelines(shapes_plain: Any) -> None:
    assert shapes_plain.pipeline._progress_bar_config == {"disable": True}


def test_a_pass_that_changes_nothing_is_an_error_unless_that_is_allowed(sd_folder: Path) -> None:
    quant = {"option": "int8_weight_only", "min_in_features": 100_000}
    with pytest.raises(NoEffectError, match=r"quant\.int8_weight_only changed 0 linears"):
        fastdiff.load(model=sd_folder, **CPU, quant=quant)
    pipeline = fastdiff.load(model=sd_folder, **CPU, quant=quant, allow_no_effect=True)
    assert type(pipeline) is StableDiffusionPipeline


def test_what_was_changed_is_told_to_who_listens(
    sd_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choices = {"precision": "fp16", "qkv": "fused", "cache": "pyramid_attention"}
    with caplog.at_level(logging.INFO, logger="fastdiff"):
        fastdiff.load(model=sd_folder, **CPU, **choices)
    messages = [r.message for r in caplog.records if r.name == "fastdiff"]
    (weights,) = [m for m in messages if m.startswith("applied precision.fp16 ")]
    assert weights.endswith(" weights in float16")
    assert messages == [
        "precision=fp16: a CPU computes fp16 slowly; bf16 or fp32 is usually faster",
        weights,
        "applied qkv.fused 10 blocks",
        "applied attention.sdpa at the first call",
        "applied cache.pyramid_attention at the first call",
        "applied device already so",
    ]
    caplog.clear()
    fastdiff.load(model=sd_folder, **CPU, **choices)
    assert [r for r in caplog.records if r.name == "fastdiff"] == []


def test_autocast_is_refused(sd_folder: Path) -> None:
    with torch.autocast("cpu"), pytest.raises(RunError, match="autocast is on"):
        fastdiff.load(model=sd_folder, **CPU)


def test_the_embedded_model_is_the_default() -> None:
    assert type(fastdiff.load(**CPU)) is StableDiffusionXLPipeline


@pytest.mark.slow
@pytest.mark.parametrize("how", ["default", "regional"])
@pytest.mark.exhaustive
def test_compiled_it_draws_what_a_run_draws_and_changes_no_setting(
    how: str,
    request: pytest.FixtureRequest,
    local_run: Callable[..., Any],
    global_state: Callable[[], dict[str, Any]],
) -> None:
    import torch._dynamo

    folder = request.getfixturevalue("smallest_folder" if how == "default" else "sd_folder")
    ran = local_run(folder, f"compile={how}")
    before = global_state()
    torch._dynamo.reset()  # or it would find what the run compiled
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    pipeline = fastdiff.load(model=folder, **CPU, compile=how)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        ran.generation.prompt,
        num_inference_steps=2,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert drawn.tobytes() == ran.pictures[0].tobytes()
    assert global_state() == before


# Recipes ---------------------------------------------------------------------------------------------


RECIPE = """\
format: 2
name: team
made_for:
  model: shapes
  device: cpu
choices:
  precision: bf16
  quant:
    option: int8
    min_in_features: 64
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "it's team.yaml"
    file.write_text(RECIPE)
    return file


def test_a_recipe_brings_its_choices_and_its_model(recipe: Path) -> None:
    for named in (recipe, str(recipe)):
        run = fastdiff.plan(named, **CPU).setting.run
        assert (run.choices["model"], run.choices["precision"]) == ("shapes", "bf16")
        assert run.quant.min_in_features == 64  # type: ignore[attr-defined]
        assert run.recipe.name == "team"


def test_what_is_chosen_beside_it_wins(recipe: Path, sd_folder: Path) -> None:
    run = fastdiff.plan(recipe, model=sd_folder, precision="fp32", **CPU).setting.run
    assert (run.choices["model"], run.choices["precision"]) == ("local", "fp32")
    assert run.choices["quant"] == "int8"


def test_a_pipeline_from_a_recipe_is_the_one_of_its_choices(recipe: Path) -> None:
    pipelines = [
        fastdiff.load(recipe, **CPU, scheduler="ddim"),
        fastdiff.load(
            **CPU,
            precision="bf16",
            quant={"option": "int8", "min_in_features": 64},
            scheduler="ddim",
        ),
    ]
    first, second = (draw(each, 64) for each in pipelines)
    assert first == second


def test_a_recipe_that_cant_be_read_is_an_error_of_its_own(recipe: Path) -> None:
    recipe.write_text(RECIPE + "hydra: {run: {dir: /}}\n")
    with pytest.raises(RecipeError) as error:
        fastdiff.load(recipe, **CPU)
    assert "hydra" in [problem.key for problem in error.value.problems]
    assert all(isinstance(problem, fastdiff.RecipeProblem) for problem in error.value.problems)


def test_one_recipe_at_a_time(recipe: Path) -> None:
    with pytest.raises(UsageError, match="a run takes one recipe, not 2"):
        fastdiff.plan(recipe, recipe=str(recipe))


# A given pipeline ------------------------------------------------------------------------------------


APPLIED: list[dict[str, Any]] = [
    {},
    {"precision": "bf16", "memory_format": "channels_last"},
    {"precision": "fp16", "scheduler": "ddim"},
    {"quant": "int8_weight_only", "qkv": "fused"},
    {"attention": "math"},
    {"memory": {"option": "layerwise", "vae_slicing": True}},
    {"cache": {"option": "pyramid_attention", "timestep_skip_range": [0, 1000]}},
]


@pytest.mark.parametrize("choices", APPLIED, ids=str)
def test_applied_it_draws_what_a_loaded_one_draws(choices: dict[str, Any], sd_folder: Path) -> None:
    own = from_folder(sd_folder)
    before = draw(own)
    with fastdiff.applied(own, **choices) as found:
        inside = draw(found.pipeline)
    loaded = fastdiff.load(model=sd_folder, **CPU, **choices)
    loaded.set_progress_bar_config(disable=True)
    assert inside == draw(loaded)
    assert draw(own) == before


def test_what_it_gives(sd_folder: Path) -> None:
    own = from_folder(sd_folder)
    with fastdiff.applied(own, qkv="fused", compile="regional") as found:
        assert isinstance(found, fastdiff.Applied)
        assert found.pipeline is own
        assert found.plan.device == "cpu"
        assert found.plan.setting.run.choices["model"] == "given"
        assert [str(effect) for effect in found.effects][1:] == [
            "qkv.fused 10 blocks",
            "device already so",
        ]
        assert found.pending == ("attention.sdpa", "compile.regional")


def test_a_recipe_is_applied_to_a_pipeline_of_ones_own(recipe: Path, sd_folder: Path) -> None:
    recipe.write_text(RECIPE.replace("min_in_features: 64", "min_in_features: 17"))
    own = from_folder(sd_folder)
    with fastdiff.applied(own, recipe, device="cpu") as found:
        assert own.unet.dtype == torch.bfloat16
        assert [e.name for e in found.effects][:2] == ["precision.bf16", "quant.int8"]
        assert not any("made for" in notice.text for notice in found.plan.notices)
    assert own.unet.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_its_weights_keep_their_formats_unless_a_precision_is_named(
    dtype: torch.dtype, sd_folder: Path
) -> None:
    own = from_folder(sd_folder, dtype)
    own.vae.to(torch.float32)
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    with fastdiff.applied(own, memory_format="channels_last") as found:
        assert found.plan.setting.run.choices["precision"] == name
        assert (own.unet.dtype, own.vae.dtype) == (dtype, torch.float32)
    with fastdiff.applied(own, precision="fp32"):
        assert (own.unet.dtype, own.vae.dtype) == (torch.float32, torch.float32)
    assert (own.unet.dtype, own.vae.dtype) == (dtype, torch.float32)


def test_its_configuration_is_what_is_planned_with(
    sd_taesd_folder: Path, flux_folder: Path
) -> None:
    with (
        pytest.raises(PlanError, match=r"FluxTransformer2DModel has no exchangeable default"),
        fastdiff.applied(from_folder(flux_folder), attention="math"),
    ):
        pytest.fail("Flux has other processors")
    with (
        pytest.raises(
            PlanError, match=r"this StableDiffusionPipeline has an AutoencoderTiny, which no"
        ),
        fastdiff.applied(from_folder(sd_taesd_folder), vae={"option": "fp16_fix", "path": "x"}),
    ):
        pytest.fail("it has another VAE")


def refused(pipeline: Any, kind: type[Exception] = UsageError, **choices: Any) -> Any:
    with pytest.raises(kind) as error, fastdiff.applied(pipeline, **choices):
        pytest.fail("it was applied")
    return error.value


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (
            {"model": "sdxl"},
            "model can't be chosen: the pipeline is given\n"
            "  instead: leave it out, or fastdiff.load(model=...)",
        ),
        (
            {"model.role": "student"},
            "model.role can't be chosen: the pipeline is given\n"
            "  instead: leave it out, or fastdiff.load(model=...)",
        ),
        (
            {"bench": "quick"},
            "bench says how a run is measured, and nothing is measured here\n"
            "  instead: leave out bench, or python -m fastdiff bench=...",
        ),
        ({"quant": "imt8"}, "quant has no option 'imt8'\n  did you mean: quant=int8"),
    ],
)
def test_what_cant_be_chosen_for_it(choices: dict[str, Any], said: str, sd_folder: Path) -> None:
    assert str(refused(from_folder(sd_folder), **choices)) == said


def test_what_is_no_pipeline_is_refused(sd_folder: Path) -> None:
    assert str(refused(from_folder(sd_folder).unet, qkv="fused")) == (
        "a UNet2DConditionModel is no pipeline of diffusers\n"
        "  instead: the whole pipeline, or fastdiff.load(model=...) for one that isn't built yet"
    )


def test_the_embedded_models_own_things_are_not_a_given_pipelines(sd_folder: Path) -> None:
    (problem,) = refused(from_folder(sd_folder), PlanError, vae="tiny").problems
    assert problem.reason == "no tiny autoencoder of this StableDiffusionPipeline is known"


def test_a_format_that_no_precision_has_is_refused(sd_folder: Path) -> None:
    own = from_folder(sd_folder, torch.float64)
    assert str(refused(own, qkv="fused")) == (
        "the pipeline's weights are in none of fp32, fp16 and bf16\n"
        '  instead: precision="bf16", which casts them until the end of the block'
    )
    with fastdiff.applied(own, qkv="fused", precision="fp32"):
        assert own.unet.dtype == torch.float32
    assert own.unet.dtype == torch.float64


def test_a_pipeline_on_several_devices_is_refused(sd_folder: Path) -> None:
    own = from_folder(sd_folder)
    own.text_encoder.to("meta")
    assert str(refused(own, qkv="fused")) == (
        "the pipeline's weights are on cpu and meta, and passes are planned for one device\n"
        '  instead: device="cuda" or device="cpu", which moves them all until the end of the block'
    )


def test_another_gpu_than_the_first_is_refused(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = from_folder(sd_folder)
    monkeypatch.setattr(api, "devices_of", lambda pipeline: {torch.device("cuda:1")})
    assert str(refused(own, qkv="fused")) == (
        "the pipeline is on cuda:1, and fastdiff works on the first GPU that it sees\n"
        "  instead: CUDA_VISIBLE_DEVICES=1 in the process's environment"
    )


def test_its_own_device_is_what_is_planned_for(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with a GPU, a pipeline on the CPU stays there."""
    gpu = replace(this_machine(), gpus=(Gpu("GPU", (9, 0), 2**30),), torch_cuda="12.8")
    monkeypatch.setattr("fastdiff.machine.environment.this_machine", lambda: gpu)
    with fastdiff.applied(from_folder(sd_folder), qkv="fused") as found:
        assert found.plan.device == "cpu"
    assert fastdiff.plan().device == "cuda"


INSTEAD = "all of it in one fastdiff.applied(), on the pipeline as it was before"


@pytest.mark.parametrize(
    ("outer", "inner", "choice", "reason"),
    [
        ({"qkv": "fused"}, {"qkv": "fused"}, "qkv=fused", "has joined projections"),
        (
            {"quant": "int8_weight_only"},
            {"qkv": "fused"},
            "qkv=fused",
            "has quantized weights",
        ),
        (
            {"quant": "int8_weight_only"},
            {"quant": "int8"},
            "quant=int8",
            "has quantized weights",
        ),
        (
            {"quant": "int8_weight_only"},
            {"precision": "bf16"},
            "precision=bf16",
            "has quantized weights",
        ),
        (
            {"compile": "regional"},
            {"qkv": "fused"},
            "qkv=fused",
            "has something around its forward",
        ),
        (
            {"compile": "default"},
            {"attention": "math"},
            "attention=math",
            "has something around its forward",
        ),
        (
            {"memory": "layerwise"},
            {"memory_format": "channels_last"},
            "memory_format=channels_last",
            "casts its weights layer by layer",
        ),
        (
            {"attention": "sdpa_math"},
            {"compile": "default"},
            "compile=default",
            "has something around its forward",
        ),
    ],
    ids=str,
)
def test_what_comes_earlier_in_a_plan_comes_too_late(
    outer: dict[str, Any], inner: dict[str, Any], choice: str, reason: str, sd_folder: Path
) -> None:
    own = from_folder(sd_folder)
    with fastdiff.applied(own, **outer):
        problems = refused(own, PlanError, **inner).problems
    first = problems[0]
    assert first.choice == choice
    assert first.reason == f"comes too late: the pipeline's unet {reason} already"
    assert first.instead == INSTEAD


def test_what_comes_later_doesnt(sd_folder: Path) -> None:
    own = from_folder(sd_folder)
    with (
        fastdiff.applied(own, qkv="fused", quant="int8_weight_only"),
        fastdiff.applied(own, scheduler="ddim", memory={"vae_slicing": True}),
        fastdiff.applied(own, compile="regional"),
    ):
        assert type(own.scheduler).__name__ == "DDIMScheduler"


def test_what_was_compiled_by_hand_comes_too_early(sd_folder: Path) -> None:
    own = from_folder(sd_folder)
    own.unet = torch.compile(own.unet)
    (problem,) = refused(own, PlanError, quant="int8_weight_only").problems
    assert (problem.choice, problem.instead) == ("quant=int8_weight_only", INSTEAD)
    assert problem.reason == "comes too late: the pipeline's unet is compiled already"
    with fastdiff.applied(own, scheduler="ddim"):
        pass


def test_an_adapter_has_to_be_fused_first(sd_folder: Path) -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig

    own = from_folder(sd_folder)
    own.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    (problem,) = refused(own, PlanError, qkv="fused").problems
    assert problem.reason == (
        "comes too late: the pipeline's unet has an adapter that isn't fused into its weights already"
    )
    assert problem.instead == (
        "pipeline.fuse_lora() and pipeline.unload_lora_weights() first, or lora=file"
    )


def test_a_loaded_pipeline_can_be_given_too(sd_folder: Path) -> None:
    own = fastdiff.load(model=sd_folder, **CPU, qkv="fused")
    with fastdiff.applied(own, quant="int8_weight_only") as found:
        assert found.effects[1].name == "quant.int8_weight_only"


def test_every_slot_can_be_named(sd_folder: Path) -> None:
    """Neither function has a list of slots of its own that could go stale."""
    from fastdiff.choices.options import default_options

    defaults = default_options()
    choices = {slot: defaults[slot] for slot in SLOTS if slot not in ("model", "bench", "quality")}
    assert fastdiff.plan(**CPU, **choices).setting.run.choices["quant"] == "none"
    with fastdiff.applied(from_folder(sd_folder), **choices) as found:
        assert [step.pass_.key for step in found.plan.steps] == [
            "precision.fp32",
            "attention.sdpa",
            "device",
        ]
