"""The gate of exact passes: their error against fp64, beside the baseline's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.errors import ModelError
from fastdiff.measuring import exactness
from fastdiff.measuring.exactness import (
    Call,
    Captured,
    baseline_of,
    capture,
    check,
    exact_choices,
    failure,
    judge,
    why_not,
)
from fastdiff.measuring.fields import Exactness
from fastdiff.models.pictures import float32_noise
from fastdiff.models.sources import SHAPES_DIR
from fastdiff.planning.build import Built, build

MakePlan = Callable[..., Any]
Spoil = Callable[[Any], None]


@pytest.fixture(autouse=True)
def _nothing_to_give_back(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models leave room for one another; collecting what nobody holds takes as long as all the rest."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(exactness, "_release", lambda device: None)


def captured_of(plan: Any, spoil: Spoil | None = None) -> Captured:
    """What is captured of a plan's pipeline, changed by `spoil` behind fastdiff's back."""
    built = build(plan)
    if spoil:
        spoil(built.pipeline)
    with float32_noise(built.pipeline):
        return capture(built.pipeline, plan, plan.setting.run.generation)


def checked(plan: Any, spoil: Spoil | None = None, build: Any = build) -> Exactness:
    return check(captured_of(plan, spoil), plan, build)


def off_by_a_percent(pipeline: Any) -> None:
    """As if joining the projections had changed one of them."""
    fused = [m for m in pipeline.unet.modules() if getattr(m, "fused_projections", False)]
    with torch.no_grad():
        for module in fused:
            joined = getattr(module, "to_qkv", None) or module.to_kv
            joined.weight.mul_(1.01)


# What is held to be exact ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "choices"),
    [
        ([], {}),
        (["precision=bf16", "scheduler=euler", "quant=int8"], {}),
        (["attention=math"], {"attention": "attention=math"}),
        (["memory.vae_slicing=true"], {"memory": "memory.vae_slicing=true"}),
        (["memory.vae_tiling=true"], {}),
        (
            ["attention=sdpa_math", "qkv=fused", "compile=regional"],
            {"attention": "attention=sdpa_math", "qkv": "qkv=fused", "compile": "compile=regional"},
        ),
    ],
)
def test_choices_that_claim_to_be_exact(
    shapes_plan: MakePlan, overrides: list[str], choices: dict[str, str]
) -> None:
    assert exact_choices(shapes_plan(*overrides).setting.run) == choices


@pytest.mark.parametrize(
    ("overrides", "lossy"),
    [
        ("", None),
        ("precision=bf16", None),
        ("quant=int8 compile=regional", "quant=int8"),
        ("cache=pyramid_attention qkv=fused", "cache=pyramid_attention"),
        ("memory=layerwise qkv=fused", "memory=layerwise"),
        ("memory.vae_tiling=true qkv=fused", "memory.vae (decode in overlapping tiles)"),
    ],
)
def test_a_run_without_anything_to_check_says_why(
    shapes_plan: MakePlan, overrides: str, lossy: str | None
) -> None:
    plan, reason = shapes_plan(*overrides.split()), "nothing exact was applied"
    if lossy:
        reason = f"{lossy} is lossy: there is no exact value to hold it to"
    assert why_not(plan) == reason
    captured = capture(None, plan, plan.setting.run.generation)  # nothing is called
    result = check(captured, plan, build=pytest.fail)
    assert (result.checked, result.passed, result.reason) == (False, None, reason)
    assert failure(result) is None


def test_mps_has_no_fp64(shapes_plan: MakePlan) -> None:
    plan = shapes_plan("qkv=fused")
    assert why_not(replace(plan, setting=replace(plan.setting, device="mps"))) == "mps has no fp64"


def test_the_baseline_keeps_the_model_and_drops_what_is_checked(shapes_plan: MakePlan) -> None:
    plan = shapes_plan(
        "precision=bf16", "scheduler=euler", "vae=tiny", "qkv=fused", "compile=default"
    )
    before = dict(plan.setting.run.choices)
    baseline = baseline_of(plan)
    assert baseline.setting.run.choices == before | {"qkv": "separate", "compile": "none"}
    assert plan.setting.run.choices == before


# The rule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "baseline", "output_rms", "dtype", "passed"),
    [
        (2e-2, 1e-2, 1.0, "float32", True),
        (2.1e-2, 1e-2, 1.0, "float32", False),
        (3e-2, 1e-2, 1.0, "float16", True),
        (3e-2, 1e-2, 1.0, "bfloat16", True),
        (3.1e-2, 1e-2, 1.0, "bfloat16", False),
        (0.0, 0.0, 1.0, "float32", True),
        (1e-5, 0.0, 1.0, "float32", True),
        (1.1e-5, 0.0, 1.0, "float32", False),
        (1e-3, 0.0, 100.0, "float32", True),  # the slack grows with the output
        (8e-7, 2e-7, 1.0, "float32", True),  # sums in another order
        (5e-4, 2e-7, 1.0, "float32", False),  # what TF32 does
        (float("nan"), 1e-2, 1.0, "float32", False),
        (float("inf"), 1e-2, 1.0, "float32", False),
        (1.0, float("nan"), 1.0, "float16", None),
    ],
)
def test_an_error_is_held_to_the_baselines(
    error: float, baseline: float, output_rms: float, dtype: str, passed: bool | None
) -> None:
    verdict = judge(error, baseline, output_rms, dtype)
    assert verdict.passed is passed
    json.dumps(verdict.to_dict(), allow_nan=False)  # strict JSON
    unknown = "the baseline itself holds NaN or infinite numbers"
    assert verdict.reason == (unknown if passed is None else None)


def test_what_is_allowed_in_all_is_told_beside_the_baselines_error() -> None:
    small = judge(1e-4, 1.9e-7, 1.0, "float32")
    assert small.allowed_ratio == pytest.approx(2 + 1e-5 / 1.9e-7)
    assert small.allowed_ratio == pytest.approx(54.6, abs=0.1)
    assert judge(1.0, 0.0, 1.0, "float32").allowed_ratio is None
    decode = judge(0.0, 0.0, 1.0, "float32")
    wrong = Exactness(choices=["qkv=fused"], passed=False, denoiser=small, decode=decode)
    text = failure(wrong)
    assert text is not None
    assert text.startswith(
        "qkv=fused: the denoiser's error against fp64 is 526.3 times the baseline's, "
        "allowed are 2 times and 1e-5 of the output, here 54.6 times in all\n"
    )


def test_both_parts_can_be_wrong() -> None:
    wrong = judge(0.7, 0.1, 1.0, "bfloat16")
    allowed = "allowed are 3 times and 1e-5 of the output, here 3.0 times in all"
    choices = ["compile=regional", "qkv=fused"]
    result = Exactness(choices=choices, passed=False, denoiser=wrong, decode=wrong)
    assert failure(result) == (
        "compile=regional, qkv=fused: "
        f"the denoiser's error against fp64 is 7.0 times the baseline's, {allowed}; "
        f"the decode's error against fp64 is 7.0 times the baseline's, {allowed}\n"
        "  instead: leave one of them out, or quality.exact=false to measure all the same"
    )


# Real pipelines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice", ["qkv=fused", "attention=math", "attention=sdpa_math", "memory_format=channels_last"]
)
@pytest.mark.parametrize(("precision", "factor"), [("fp32", 2), ("bf16", 3)])
def test_an_exact_pass_is_as_near_to_fp64_as_its_baseline(
    local_plan: MakePlan, sd_folder: Path, choice: str, precision: str, factor: int
) -> None:
    result = checked(local_plan(sd_folder, choice, f"precision={precision}"))
    assert result.checked
    assert result.passed
    assert result.reason is None
    assert result.choices == [choice]
    denoiser = result.denoiser
    assert denoiser.factor == factor
    assert 0 < denoiser.baseline_error_rmse < 0.05 * denoiser.output_rms
    assert denoiser.error_rmse <= denoiser.allowed_rmse
    assert failure(result) is None


def test_denoiser_and_decode_are_both_judged_and_what_is_compared_is_said(
    local_plan: MakePlan, sd_folder: Path
) -> None:
    plan, said = local_plan(sd_folder, "attention=math"), list[str]()
    result = check(captured_of(plan), plan, build, said.append)
    assert result.denoiser.passed
    assert result.decode.passed
    assert result.decode.dtype == "float32"
    assert [text for text in said if not text.startswith("applying")] == [
        "loading the model again, for the baseline of the exactness check",
        "loading local",
        "computing the denoiser in fp64",
        "computing the decode in fp64",
    ]


@pytest.mark.parametrize(
    ("folder", "choice", "decode"),
    [
        ("sd_folder", "attention=sdpa_math", (None, "nothing exact changes the vae")),
        ("flux_folder", "qkv=fused", (True, None)),  # a transformer
        (
            "sd_taesd_folder",
            "memory_format=channels_last",
            (True, None),
        ),  # a tiny VAE is the model's
    ],
)
def test_other_models_are_judged_and_what_no_exact_pass_changes_is_left_out(
    folder: str,
    choice: str,
    decode: tuple[bool | None, str | None],
    local_plan: MakePlan,
    request: pytest.FixtureRequest,
) -> None:
    result = checked(local_plan(request.getfixturevalue(folder), choice))
    assert result.denoiser.passed
    assert (result.decode.passed, result.decode.reason) == decode


def test_slices_are_compared_with_the_whole_batch(local_plan: MakePlan, sd_folder: Path) -> None:
    plan = local_plan(sd_folder, "memory.vae_slicing=true", "generation.images_per_prompt=2")
    result = checked(plan)
    assert result.choices == ["memory.vae_slicing=true"]
    assert result.decode.passed
    assert result.denoiser.reason == "nothing exact changes the unet"


def test_a_vae_that_each_call_converts_to_fp32_is_judged_in_fp32(
    local_plan: MakePlan, tmp_path: Path
) -> None:
    folder = tmp_path / "upcasting"
    shutil.copytree(SHAPES_DIR, folder)
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"force_upcast": True}))
    result = checked(local_plan(folder, "precision=fp16", "attention=math"))
    assert (result.decode.dtype, result.decode.factor) == ("float32", 2)
    assert (result.denoiser.dtype, result.denoiser.factor) == ("float16", 3)
    assert result.decode.error_rmse < 1e-5
    assert result.passed


@pytest.mark.slow
def test_compiled_graphs_are_as_near_to_fp64_as_eager(
    local_plan: MakePlan, smallest_folder: Path
) -> None:
    result = checked(local_plan(smallest_folder, "compile=default", "compile.freezing=true"))
    assert result.denoiser.passed
    assert result.decode.passed


def test_a_fusion_that_changes_a_weight_by_a_percent_fails(
    local_plan: MakePlan, sd_folder: Path
) -> None:
    result = checked(local_plan(sd_folder, "qkv=fused"), off_by_a_percent)
    assert result.checked
    assert result.passed is False
    denoiser, decode = result.denoiser, result.decode
    assert denoiser.passed is False
    assert decode.passed is True
    assert failure(result) == (
        f"qkv=fused: the denoiser's error against fp64 is {denoiser.ratio:.1f} times the baseline's, "
        f"allowed are 2 times and 1e-5 of the output, here {denoiser.allowed_ratio:.1f} times in all\n"
        "  instead: leave it out, or quality.exact=false to measure all the same"
    )
    assert denoiser.ratio > denoiser.allowed_ratio > 2


def test_not_a_number_where_the_baseline_has_one_fails(
    local_plan: MakePlan, sd_folder: Path
) -> None:
    def spoil(pipeline: Any) -> None:
        torch.nn.init.constant_(pipeline.unet.conv_out.bias, float("nan"))

    result = checked(local_plan(sd_folder, "attention=math"), spoil)
    assert result.denoiser.error_rmse is None
    text = failure(result)
    assert text is not None
    assert text.startswith(
        "attention=math: the denoiser's output holds NaN or infinite numbers, the baseline's doesn't"
    )


# Capturing -------------------------------------------------------------------------------------------


def test_only_the_first_step_is_computed_and_nothing_stays_changed(
    local_plan: MakePlan, sd_folder: Path
) -> None:
    plan = local_plan(sd_folder, "attention=sdpa_math", "generation.steps=5")
    pipeline = build(plan).pipeline
    computed, around = [], vars(pipeline.unet)["forward"]  # which the pass put there
    pipeline.unet.conv_in.register_forward_hook(lambda *_: computed.append(1))
    held = set(vars(pipeline.unet)), set(vars(pipeline.vae))
    captured = capture(pipeline, plan, plan.setting.run.generation)
    assert len(computed) == 1
    assert captured.denoiser is not None
    assert captured.decode is not None
    assert (set(vars(pipeline.unet)), set(vars(pipeline.vae))) == held
    assert vars(pipeline.unet)["forward"] is around


def test_arguments_are_kept_as_they_were_before_the_call(
    local_plan: MakePlan, sd_folder: Path
) -> None:
    plan = local_plan(sd_folder, "attention=math")
    pipeline = build(plan).pipeline
    inner = pipeline.unet.forward

    def forward(sample: Any, *args: Any, **kwargs: Any) -> Any:
        output = inner(sample, *args, **kwargs)
        sample.zero_()
        return output

    pipeline.unet.forward = forward
    captured = capture(pipeline, plan, plan.setting.run.generation)
    assert captured.denoiser is not None
    assert captured.denoiser.args[0].abs().max() > 0
    assert check(captured, plan, build).denoiser.passed


# Arithmetic ------------------------------------------------------------------------------------------


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether cuDNN may use TF32, at every convolution of fp32 numbers."""
    seen: list[bool] = []
    inner = torch.nn.Conv2d.forward

    def forward(self: Any, given: Any) -> Any:
        if given.dtype is torch.float32:
            seen.append(torch.backends.cudnn.allow_tf32)
        return inner(self, given)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    assert torch.backends.cudnn.allow_tf32  # as PyTorch sets it
    return seen


def as_if_on_cuda(plan: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(exactness, "_may_round", lambda plan: True)
    return plan


def test_a_check_holds_both_sides_to_convolutions_in_fp32(
    local_plan: MakePlan, sd_folder: Path, tf32: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = as_if_on_cuda(local_plan(sd_folder, "memory_format=channels_last"), monkeypatch)
    captured = captured_of(plan)
    assert set(tf32) == {False}
    tf32.clear()
    result = check(captured, plan, build)
    assert set(tf32) == {False}
    assert torch.backends.cudnn.allow_tf32
    assert result.passed is True
    assert result.arithmetic == (
        "fp32 convolutions in fp32 for this check alone; the run's own may be in TF32 (cudnn.allow_tf32)"
    )


def rounded_to_tf32(numbers: torch.Tensor) -> torch.Tensor:
    """fp32 with the ten bits of fraction that TF32 has."""
    bits = numbers.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def as_on_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions as an Ampere GPU computes them: in TF32 where weights are channels_last, in fp32 otherwise."""
    inner = torch.nn.functional.conv2d

    def conv2d(given: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        last = weight.is_contiguous(memory_format=torch.channels_last)
        plain = weight.is_contiguous()
        if last and not plain and weight.dtype is torch.float32 and torch.backends.cudnn.allow_tf32:
            given, weight = (
                rounded_to_tf32(t).contiguous(memory_format=torch.channels_last)
                for t in (given, weight)
            )
        return inner(given, weight, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)


@pytest.mark.parametrize("bakes", [False, True])
def test_a_layout_is_not_blamed_for_the_arithmetic_that_it_gets(
    bakes: bool, local_plan: MakePlan, sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager convolutions can be held to fp32; what is compiled has the flag in it, and its baseline is allowed the same."""
    plan = local_plan(sd_folder, "memory_format=channels_last")
    as_on_ampere(monkeypatch)
    unfair = checked(plan)
    assert unfair.denoiser.ratio > 50
    assert unfair.passed is False
    as_if_on_cuda(plan, monkeypatch)
    monkeypatch.setattr(exactness, "_bakes", lambda plan: bakes)
    fair = checked(plan)
    assert fair.passed is True
    assert fair.denoiser.ratio < 2
    said = "as compiled: the baseline's error is the larger one of both memory formats"
    assert (said in fair.arithmetic) == bakes


def test_off_cuda_and_without_tf32_there_is_nothing_to_say(
    local_plan: MakePlan, sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = local_plan(sd_folder, "memory_format=channels_last")
    assert exactness.arithmetic(plan) is None
    on_cuda = replace(plan, setting=replace(plan.setting, device="cuda"))
    assert on_cuda.device == "cuda"
    assert exactness.arithmetic(on_cuda) is not None
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert exactness.arithmetic(on_cuda) is None


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", ["memory_format=channels_last", "compile=default", "compile=reduce_overhead"]
)
def test_on_a_gpu_fp32_choices_that_are_exact_pass(choice: str) -> None:
    """Layouts change which convolutions cuDNN computes in TF32, and that is no fault of theirs."""
    from conftest import plan_of

    result = checked(plan_of("device=cuda", "precision=fp32", "generation.steps=2", choice))
    assert result.passed is True, result
    assert result.arithmetic is not None


# What can't be checked -------------------------------------------------------------------------------


def with_memory(plan: Any, free: int) -> Any:
    environment = replace(plan.setting.environment, available_memory_bytes=free)
    return replace(plan, setting=replace(plan.setting, environment=environment))


def test_fp64_that_does_not_fit_is_not_tried(shapes_plan: MakePlan) -> None:
    plan = with_memory(shapes_plan("qkv=fused"), 10_000_000)
    captured = Captured(denoiser=Call((), {}, torch.zeros(1)))
    result = check(captured, plan, build=pytest.fail)
    assert (result.checked, result.passed) == (False, None)
    assert result.reason == (
        "fp64 doesn't fit: baseline and fp64 need about 0.1 GB, and 0.0 GB are free"
    )
    assert failure(result) is None


def spoiled(change: Spoil) -> Any:
    """`build`, and a change to what it built."""

    def building(plan: Any, say: Any) -> Built:
        built = build(plan, say)
        change(built.pipeline)
        return built

    return building


@pytest.mark.skipif("sys.platform != 'linux'")
def test_a_decode_that_needs_more_memory_than_is_free_ends_the_check_alone(
    local_plan: MakePlan, sd_folder: Path
) -> None:
    plan = with_memory(local_plan(sd_folder, "attention=math"), 4 * 2**30)

    def large(pipeline: Any) -> None:
        pipeline.vae.decode = lambda *_, **__: torch.empty(2**34, dtype=torch.uint8)

    result = checked(plan, build=spoiled(large))
    assert result.denoiser.passed
    assert result.passed
    assert result.decode.reason == "fp64 doesn't fit: memory ran out while it was computed"
    torch.empty(2**34, dtype=torch.uint8)  # the bound is gone


def test_a_part_that_cannot_be_called_again_says_why(local_plan: MakePlan, sd_folder: Path) -> None:
    def refuse(pipeline: Any) -> None:
        def decode(*_: Any, **__: Any) -> Any:
            raise RuntimeError('"gelu" not implemented for "Double"\nlong story')

        pipeline.vae.decode = decode

    result = checked(local_plan(sd_folder, "attention=math"), build=spoiled(refuse))
    assert result.decode.reason == (
        'it can\'t be called again in fp64: "gelu" not implemented for "Double"'
    )
    assert result.decode.passed is None
    assert result.passed is True


def test_a_decode_that_draws_random_numbers_is_not_compared(
    local_plan: MakePlan, sd_folder: Path
) -> None:
    def noisy(pipeline: Any) -> None:
        inner = pipeline.vae.decode

        def decode(latents: Any, *args: Any, **kwargs: Any) -> Any:
            return inner(latents + torch.randn(latents.shape), *args, **kwargs)

        pipeline.vae.decode = decode

    result = checked(local_plan(sd_folder, "attention=math"), noisy)
    assert result.decode.reason == "it draws random numbers, and fp64 would draw others"
    assert result.passed is True


def test_a_model_that_is_gone_is_a_reason(local_plan: MakePlan, sd_folder: Path) -> None:
    def gone(plan: Any, say: Any) -> Any:
        raise ModelError("there is no pipeline in models/gone", instead="model=shapes")

    result = checked(local_plan(sd_folder, "qkv=fused"), build=gone)
    assert result.reason == ("the baseline can't be built: there is no pipeline in models/gone")
    assert (result.checked, result.passed, result.denoiser) == (False, None, None)
