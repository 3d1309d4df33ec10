"""Another VAE: that it is there and the model's own was never loaded, what other options make of it, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imagined import problems

from fastdiff.choices.compose import compose
from fastdiff.errors import ModelError, NoEffectError
from fastdiff.machine.environment import this_machine
from fastdiff.models.architectures import ARCHITECTURES, TINY_AUTOENCODERS
from fastdiff.models.pictures import draw
from fastdiff.models.sources import SHAPES_DIR, SHAPES_TINY_VAE
from fastdiff.passes.base import Loading
from fastdiff.passes.precision import upcasts_vae
from fastdiff.planning.build import build
from fastdiff.planning.plan import make_plan

TINY_PARAMETERS = 290_663
"""Convolutions of 32 channels: 19 in the encoder (159,204 numbers), 16 in the decoder (131,459)."""

FIX = "madebyollin/sdxl-vae-fp16-fix"


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of the hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))


def planned(*overrides: str) -> Any:
    run: Any = compose(["device=cpu", *overrides])
    return make_plan(run, this_machine(), run.model.facts())


def model_error(act: Callable[..., Any], *given: Any) -> str:
    """What is said where a model can't be had."""
    with pytest.raises(ModelError) as refused:
        act(*given)
    return str(refused.value)


def components(plan: Any, key: str) -> tuple[str, ...]:
    (step,) = [step for step in plan.steps if step.pass_.key == key]
    return tuple(step.components)


# Tiny, on the embedded model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_run(shapes_run: Callable[..., Any]) -> Any:
    return shapes_run("vae=tiny")


def test_the_tiny_autoencoder_is_there_and_draws_nearly_the_same_picture(
    tiny_run: Any, shapes_plain: Any
) -> None:
    from diffusers import AutoencoderTiny

    effect = tiny_run.effects(kernels={"flash": 14})["vae.tiny"]
    assert str(effect) == "vae.tiny 1 component, AutoencoderTiny of 290,663 parameters"
    assert effect.details["parameters"] == TINY_PARAMETERS
    assert effect.details["from"] == SHAPES_TINY_VAE.name
    assert type(tiny_run.pipeline.vae) is AutoencoderTiny
    assert not tiny_run.pipeline.vae.training
    assert 24 < tiny_run.psnr_db(shapes_plain) < 45  # 28.7: sharp edges suffer


@pytest.mark.slow
def test_its_picture_still_shows_what_the_caption_says(shapes_run: Callable[..., Any]) -> None:
    from fastdiff.models.shapes.judging import judge
    from fastdiff.models.shapes.scenes import Scene

    ran = shapes_run("vae=tiny", "generation.steps=25")
    scene = Scene.parse(ran.generation.prompt)
    assert scene is not None
    assert judge(ran.pictures[0], scene).all_right


def test_the_models_own_vae_is_not_loaded(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model's own VAE was loaded")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", refuse)
    assert type(build(shapes_plan("vae=tiny")).pipeline.vae).__name__ == "AutoencoderTiny"


def test_a_pipeline_that_kept_its_own_vae_is_an_error(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another version of diffusers might, without a word."""
    from diffusers import AutoencoderKL

    from fastdiff.models.sources import Shapes

    load = Shapes.load

    def ignoring(self: Any, dtype: Any, parts: Any) -> Any:
        return load(self, dtype, {})

    monkeypatch.setattr(Shapes, "load", ignoring)
    with pytest.raises(NoEffectError, match=r"vae.tiny changed 0 component"):
        build(shapes_plan("vae=tiny"))
    ran = build(shapes_plan("vae=tiny", "allow_no_effect=true"))
    assert type(ran.pipeline.vae) is AutoencoderKL
    assert not next(e for e in ran.outcomes if getattr(e, "name", "") == "vae.tiny").changed


@pytest.mark.slow
def test_other_options_work_on_the_vae_that_is_there(
    shapes_run: Callable[..., Any], tiny_run: Any
) -> None:
    """It has 35 convolutions and no attention; the UNet has 36, and 14 attentions."""
    fused = shapes_run("vae=tiny", "qkv=fused", "memory_format=channels_last", "quant=int8")
    effects = fused.effects(kernels=fused.kernels())
    assert effects["qkv.fused"].details["components"] == {"unet": 14}
    assert effects["memory_format.channels_last"].details["components"] == {"unet": 36, "vae": 35}
    assert effects["quant.int8"].changed > 60
    assert fused.psnr_db(tiny_run) > 20

    math = shapes_run("vae=tiny", "attention=math")
    assert math.effects(kernels={"math": 14})["attention.math"].changed == 14
    assert math.psnr_db(tiny_run) > 45


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_computes_in_the_runs_precision(shapes_plan: Callable[..., Any], precision: str) -> None:
    import torch

    pipeline = build(shapes_plan("vae=tiny", f"precision={precision}")).pipeline
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert {weight.dtype for weight in pipeline.vae.parameters()} == {dtype}


def test_other_options_plan_with_it(shapes_plan: Callable[..., Any]) -> None:
    plan = shapes_plan("vae=tiny", "qkv=fused", "compile=default", "memory_format=channels_last")
    assert components(plan, "vae.tiny") == ("vae",)
    assert components(plan, "qkv.fused") == ("unet",)
    assert components(plan, "compile.default") == ("unet", "vae")
    assert components(plan, "memory_format.channels_last") == ("unet", "vae")
    assert components(shapes_plan("vae=tiny", "attention=math"), "attention.math") == ("unet",)
    assert plan.setting.vae.parameters == TINY_PARAMETERS


def test_the_embedded_models_student_has_the_same_tiny_vae() -> None:
    from fastdiff.models.sources import Shapes, ShapesStudent

    assert ShapesStudent().own_tiny_vae() == Shapes().own_tiny_vae() == SHAPES_TINY_VAE


# From a folder --------------------------------------------------------------------------------------------


def test_a_folder_takes_the_place_of_a_saved_pipelines_vae(
    sd_folder: Path, sd_taesd_folder: Path, local_run: Callable[..., Any]
) -> None:
    """Two pipelines that differ in nothing but the VAE: with the other one's they draw alike."""
    folder = sd_taesd_folder / "vae"
    ran = local_run(sd_folder, "vae=tiny", f"vae.path={folder}")
    by_model = local_run(sd_folder, "vae=tiny", f"model.tiny_vae={folder}")
    effect = ran.effects(kernels={"flash": 1})["vae.tiny"]

    numbers = sum(weight.numel() for weight in ran.pipeline.vae.parameters())
    assert effect.details["parameters"] == numbers == ran.plan.setting.vae.parameters
    assert type(ran.pipeline.vae).__name__ == "AutoencoderTiny"
    assert ran.psnr_db(by_model) > 100
    assert ran.psnr_db(local_run(sd_folder)) < 60


@pytest.fixture
def fixed_vae(sd_folder: Path, tmp_path: Path) -> Path:
    """The VAE of `sd_folder` that no longer asks for fp32."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(sd_folder / "vae")
    vae.register_to_config(force_upcast=False)
    vae.save_pretrained(tmp_path / "fixed")
    return tmp_path / "fixed"


def test_a_repaired_vae_takes_the_models_place(
    sd_folder: Path, fixed_vae: Path, local_run: Callable[..., Any]
) -> None:
    """It has the very weights of the model's own here, so the picture must not move."""
    ran = local_run(sd_folder, "vae=fp16_fix", f"vae.path={fixed_vae}")
    effect = ran.effects(kernels={"flash": 1})["vae.fp16_fix"]
    assert effect.changed == 1
    assert effect.details["class"] == "AutoencoderKL"
    assert ran.pipeline.vae.config.force_upcast is False
    assert ran.psnr_db(local_run(sd_folder)) > 100
    (notice,) = [n.text for n in ran.plan.notices if n.choice == "vae=fp16_fix"]
    assert notice == (
        "is for precision=fp16, where the model's own VAE decodes in fp32; precision=fp32 gains nothing"
    )


def test_a_vae_that_asks_for_fp32_itself_is_no_repair(sd_folder: Path) -> None:
    model = ("model=local", f"model.path={sd_folder}")
    assert problems(planned, *model, "vae=fp16_fix", f"vae.path={sd_folder / 'vae'}") == [
        (
            "vae=fp16_fix",
            "vae asks for fp32 itself (force_upcast), so it would decode as the model's own does",
            "a VAE made for this model's latents, or vae=default",
        )
    ]


def test_a_repair_for_latents_of_another_scale_is_refused(sd_folder: Path, fixed_vae: Path) -> None:
    """Stable Diffusion 1.x and SDXL have the same architecture and scale their latents differently."""
    config = json.loads((fixed_vae / "config.json").read_text()) | {"scaling_factor": 0.13025}
    (fixed_vae / "config.json").write_text(json.dumps(config))
    model = ("model=local", f"model.path={sd_folder}")
    ((_, reason, _),) = problems(planned, *model, "vae=fp16_fix", f"vae.path={fixed_vae}")
    assert reason == (
        "fixed is made for latents scaled by 0.13025, and this model's are scaled by 0.18215"
    )


# SDXL, planned and with random weights --------------------------------------------------------------------


def test_in_fp16_a_repaired_or_tiny_vae_need_not_be_converted() -> None:
    """The published one moves to fp32 in every call; then neither CUDA graphs nor frozen weights hold."""
    sdxl = ("model=sdxl", "precision=fp16")
    assert upcasts_vae(planned(*sdxl).setting)
    for vae in ("tiny", "fp16_fix"):
        plan = planned(*sdxl, f"vae={vae}", "compile=default", "compile.freezing=true")
        assert not upcasts_vae(plan.setting)
        assert components(plan, "compile.default") == ("unet", "vae")


def test_the_plan_says_which_repair_is_taken() -> None:
    plan = planned("model=sdxl", "precision=fp16", "vae=fp16_fix")
    (step,) = [step for step in plan.steps if step.pass_.key == "vae.fp16_fix"]
    assert step.does == f"put a VAE that decodes in fp16 in the place of the model's own: {FIX}"


def test_random_weights_come_without_a_download() -> None:
    plan = planned("model=sdxl", "model.weights=random", "vae=tiny")
    assert not [n for n in plan.notices if n.choice == "vae=tiny"]
    vae = made_vae(plan)
    assert type(vae).__name__ == "AutoencoderTiny"
    assert (
        sum(weight.numel() for weight in vae.parameters())
        == TINY_AUTOENCODERS["madebyollin/taesd"].parameters
    )


@pytest.mark.slow
def test_a_random_repair_has_the_random_weights_of_the_models_own_vae() -> None:
    import torch

    from fastdiff.models.random_weights import build_component

    vae = made_vae(
        planned("model=sdxl", "model.weights=random", "model.weights_seed=3", "vae=fp16_fix")
    )
    own = build_component(ARCHITECTURES["sdxl"].components["vae"], 3, "vae", None)
    assert (own.config.force_upcast, vae.config.force_upcast) == (True, False)
    assert vae.config.scaling_factor == 0.13025
    ours, theirs = vae.state_dict(), own.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def made_vae(plan: Any) -> Any:
    """What the plan puts into the pipeline, without the pipeline."""
    loading = Loading(plan.setting)
    for step in plan.steps:
        step.pass_.prepare(loading)
    return loading.parts["vae"](loading.dtype)


def test_flux_tiny_autoencoder_has_sixteen_channels() -> None:
    vae = made_vae(planned("model=flux_schnell", "model.weights=random", "vae=tiny"))
    assert (type(vae).__name__, vae.config.latent_channels) == ("AutoencoderTiny", 16)
    assert (
        sum(weight.numel() for weight in vae.parameters())
        == TINY_AUTOENCODERS["madebyollin/taef1"].parameters
    )


# Refusals -------------------------------------------------------------------------------------------------

OTHER_LATENTS = "a VAE made for this model's latents, or vae=default"


def test_a_model_that_names_none_needs_one_named(sd_folder: Path) -> None:
    model = ("model=local", f"model.path={sd_folder}")
    instead = "vae.id=org/name or vae.path=DIR, or vae=default"
    reason = "no tiny autoencoder of tiny-sd is known"
    assert problems(planned, *model, "vae=tiny") == [("vae=tiny", reason, instead)]


def test_a_folder_that_holds_something_else_is_refused() -> None:
    assert model_error(planned, "vae=tiny", f"vae.path={SHAPES_DIR / 'vae'}") == (
        f"vae=tiny needs an AutoencoderTiny, and {SHAPES_DIR / 'vae'} holds an AutoencoderKL\n"
        "  instead: vae.path=DIR or vae.id=org/name of one, or vae=default"
    )


def test_a_folder_that_is_not_there_is_refused() -> None:
    missing = SHAPES_TINY_VAE.with_name("vae_tyni")
    assert model_error(planned, "vae=tiny", f"vae.path={missing}") == (
        f"no such folder: {missing}\n"
        f"  why: {missing.parent} holds no such name\n"
        f"  instead: vae.path={SHAPES_TINY_VAE}"
    )


def test_a_whole_pipelines_folder_is_refused_with_the_one_inside_it_if_that_fits(
    tmp_path: Path,
) -> None:
    shutil.copytree(SHAPES_TINY_VAE, tmp_path / "vae")
    assert model_error(planned, "vae=tiny", f"vae.path={tmp_path}") == (
        f"no single component: {tmp_path}\n  why: it has no config.json\n"
        f"  instead: vae.path={tmp_path / 'vae'}"
    )
    assert model_error(planned, "vae=tiny", f"vae.path={SHAPES_DIR}") == (
        f"no single component: {SHAPES_DIR}\n  why: it has no config.json\n"
        "  instead: name a folder that a model's own save_pretrained() wrote"
    )


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    shutil.copy(SHAPES_TINY_VAE / "config.json", tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"not opened")
    assert model_error(planned, "vae=tiny", f"vae.path={tmp_path}").startswith(
        f"component vae has only pickled weights: {tmp_path / 'diffusion_pytorch_model.bin'}\n"
    )


# The hub --------------------------------------------------------------------------------------------------


def test_what_the_hubs_cache_holds_is_read_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned with its real size, without a word of downloads, and allowed without a network."""
    repository = tmp_path / "hub-home" / "hub" / "models--org--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(SHAPES_TINY_VAE, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = planned("vae=tiny", "vae.id=org/tiny")
    assert plan.setting.vae.parameters == TINY_PARAMETERS
    assert not [n for n in plan.notices if n.choice == "vae=tiny"]


@pytest.fixture
def on_the_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """What the hub answers when it is asked for a tiny autoencoder's configuration."""
    from diffusers import AutoencoderTiny

    def answer(content: Any) -> None:
        def load_config(*args: object, **kwargs: object) -> Any:
            if isinstance(content, Exception):
                raise content
            return content

        def from_pretrained(*args: object, **kwargs: object) -> None:
            raise AssertionError("its weights were downloaded")

        monkeypatch.setattr(AutoencoderTiny, "load_config", load_config)
        monkeypatch.setattr(AutoencoderTiny, "from_pretrained", from_pretrained)

    return answer


def test_a_vae_for_other_latents_is_refused_before_its_weights_are_downloaded(
    on_the_hub: Callable[[Any], None],
) -> None:
    plan = planned("vae=tiny", "vae.id=org/name")
    on_the_hub({"_class_name": "AutoencoderTiny", "latent_channels": 16})
    assert model_error(made_vae, plan) == (
        "vae=tiny: org/name decodes latents of 16 channels, and this model's have 4\n"
        f"  instead: {OTHER_LATENTS}"
    )
    on_the_hub({"_class_name": "AutoencoderKL"})
    assert model_error(made_vae, plan) == (
        "vae=tiny needs an AutoencoderTiny, and org/name holds an AutoencoderKL\n"
        "  instead: vae.path=DIR or vae.id=org/name of one, or vae=default"
    )


def test_the_hubs_errors_are_in_plain_words(on_the_hub: Callable[[Any], None]) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    plan = planned("vae=tiny", "vae.id=org/name")
    on_the_hub(LocalEntryNotFoundError("no connection"))
    assert model_error(made_vae, plan) == (
        "org/name is not on this machine, and the hub can't be reached\n"
        "  instead: vae.path=DIR, or vae=default"
    )
    on_the_hub(OSError("Cannot access gated repo for url https://huggingface.co/org/name"))
    assert model_error(made_vae, plan).endswith(
        "  instead: accept it on https://huggingface.co/org/name, then set HF_TOKEN to your token, "
        "or vae.path=DIR, or vae=default"
    )
    on_the_hub(ZeroDivisionError("not the hub's"))
    with pytest.raises(ZeroDivisionError):
        made_vae(plan)


def test_nothing_stays_changed_in_the_process(
    shapes_plan: Callable[..., Any], global_state: Any
) -> None:
    before = global_state()
    plan = shapes_plan("vae=tiny", "scheduler=ddim", "generation.steps=1")
    draw(build(plan).pipeline, plan.setting.run.generation)
    assert global_state() == before
