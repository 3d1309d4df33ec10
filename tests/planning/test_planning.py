"""Every rule of planning, on machines and models that nobody needs to have."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fastdiff.choices.compose import compose, with_option
from fastdiff.choices.options import option_files
from fastdiff.config import RunConfig
from fastdiff.errors import MachineProblem, PlanError, Problem, UsageError
from fastdiff.machine.environment import TOOLS, Environment, Gpu, Unusable
from fastdiff.models.architectures import ARCHITECTURES
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.sources import Shapes
from fastdiff.passes import OPTIONS, allocator
from fastdiff.passes.base import Option, Pass, Setting, Stage
from fastdiff.passes.quant import Granularity
from fastdiff.planning.plan import Plan, make_plan
from fastdiff.planning.rules import lpips_weights

GIB = 2**30


def machine(gpu: Gpu | None = None, **facts: Any) -> Environment:
    """A machine with these facts; bf16 arithmetic and every package unless they say otherwise."""
    known: dict[str, Any] = {
        "python": "3.12.1",
        "os": "Linux 6.1 x86_64",
        "cpu": "Some CPU",
        "cpu_flags": frozenset({"avx512f", "avx512_bf16"}),
        "threads": 8,
        "memory_bytes": 64 * GIB,
        "available_memory_bytes": 60 * GIB,
        "gpus": (gpu,) if gpu else (),
        "torch_cuda": "12.8" if gpu else None,
        "versions": {"torch": "2.13.0"},
        "modules": {"torchao": True, "xformers": True, "peft": True, "triton": True},
        "tools": TOOLS,
    }
    return Environment(**(known | facts))


H100 = machine(Gpu("NVIDIA H100", (9, 0), 80 * GIB))
L4 = machine(Gpu("NVIDIA L4", (8, 9), 24 * GIB))
A100 = machine(Gpu("NVIDIA A100", (8, 0), 40 * GIB))
T4 = machine(Gpu("Tesla T4", (7, 5), 16 * GIB))
CPU = machine()
OLD_CPU = machine(cpu_flags=frozenset({"avx2"}))
MAC = machine(has_mps=True)


def model(pipeline: str, **classes: str) -> ModelFacts:
    """Facts of a pipeline by the class names of its components."""
    parts = {name: Component(name, "diffusers", kind, None, None) for name, kind in classes.items()}
    return ModelFacts(pipeline, parts)


SHAPES = Shapes().facts()
FLUX = model("FluxPipeline", transformer="FluxTransformer2DModel", vae="AutoencoderKL")
SD3 = model("StableDiffusion3Pipeline", transformer="SD3Transformer2DModel", vae="AutoencoderKL")
SANA = model("SanaPipeline", transformer="SanaTransformer2DModel", vae="AutoencoderDC")
LUMINA = model("Lumina2Pipeline", transformer="Lumina2Transformer2DModel", vae="AutoencoderKL")
HUNYUAN_VIDEO = model(
    "HunyuanVideoPipeline",
    transformer="HunyuanVideoTransformer3DModel",
    vae="AutoencoderKLHunyuanVideo",
)
TINY_VAE = model("StableDiffusionPipeline", unet="UNet2DConditionModel", vae="AutoencoderTiny")
UNKNOWN = model("SomeNewPipeline", transformer="SomeNewTransformer", vae="AutoencoderKL")


@cache
def plain() -> RunConfig:
    return compose([])


def a_run(*choices: str, **keys: Any) -> RunConfig:
    """A run with these choices (`quant=int8`); keys change an option (`quant={...}`), `generation` or a scalar."""
    run = copy.deepcopy(plain())
    for choice in choices:
        run = with_option(run, *choice.split("=", 1))
    for name, value in keys.items():
        if name == "generation":
            run.generation = copy.copy(run.generation)
            for key, changed in value.items():
                setattr(run.generation, key, changed)
        elif isinstance(value, dict):
            option = option_files()[name][run.choices[name]].option(**value)
            setattr(run, name, option)
        else:
            setattr(run, name, value)
    return run


def plan(run: RunConfig, on: Environment, facts: ModelFacts | None = SHAPES) -> Plan:
    return make_plan(run, on, facts)


def problems(
    run: RunConfig, on: Environment, facts: ModelFacts | None = SHAPES, *, calls: bool = True
) -> list[tuple[str, str, str]]:
    """Choice, reason and way out of every problem; nothing if the run could start."""
    try:
        make_plan(run, on, facts, calls=calls)
    except PlanError as error:
        return [(p.choice, p.reason, p.instead) for p in error.problems]
    return []


def notices(run: RunConfig, on: Environment) -> list[tuple[str, str]]:
    return [(notice.choice, notice.text) for notice in plan(run, on).notices]


# What the machine must have ------------------------------------------------------------------------

NEEDS_80 = "needs compute capability 8.0 or newer; here: 7.5"


@pytest.mark.parametrize(
    ("choices", "on", "expected"),
    [
        (
            ["precision=tf32"],
            CPU,
            (
                "precision=tf32",
                "needs an NVIDIA GPU of compute capability 8.0 or newer; device=cpu",
                "precision=bf16, or precision=fp32",
            ),
        ),
        (
            ["precision=tf32"],
            T4,
            ("precision=tf32", NEEDS_80, "precision=bf16, or precision=fp32"),
        ),
        (
            ["precision=bf16"],
            T4,
            (
                "precision=bf16",
                "this GPU has no bf16 arithmetic (compute capability below 8.0)",
                "precision=fp16",
            ),
        ),
        (
            ["attention=sdpa_efficient"],
            CPU,
            (
                "attention=sdpa_efficient",
                "needs an NVIDIA GPU; device=cpu",
                "attention=sdpa",
            ),
        ),
        (
            ["attention=sdpa_cudnn", "precision=bf16"],
            CPU,
            (
                "attention=sdpa_cudnn",
                "needs an NVIDIA GPU of compute capability 8.0 or newer; device=cpu",
                "attention=sdpa",
            ),
        ),
        (
            ["attention=sdpa_cudnn", "precision=fp16"],
            T4,
            ("attention=sdpa_cudnn", NEEDS_80, "attention=sdpa"),
        ),
        (
            ["attention=xformers"],
            MAC,
            ("attention=xformers", "needs an NVIDIA GPU; device=mps", "attention=sdpa"),
        ),
        (
            ["quant=fp8", "precision=bf16"],
            CPU,
            (
                "quant=fp8",
                "needs an NVIDIA GPU of compute capability 8.9 or newer; device=cpu",
                "quant=int8",
            ),
        ),
        (
            ["quant=fp8", "precision=bf16"],
            A100,
            (
                "quant=fp8",
                "needs compute capability 8.9 or newer; here: 8.0",
                "quant=int8",
            ),
        ),
    ],
)
def test_a_machine_that_lacks_what_an_option_needs(
    choices: list[str], on: Environment, expected: tuple[str, str, str]
) -> None:
    assert problems(a_run(*choices), on) == [expected]


@pytest.mark.parametrize(
    ("choices", "on"),
    [
        (["precision=tf32"], A100),
        (["precision=bf16"], A100),
        (["precision=fp16"], T4),
        (["attention=sdpa_efficient"], T4),
        (["attention=sdpa_flash", "precision=fp16"], A100),
        (["attention=sdpa_flash"], CPU),
        (["attention=sdpa_cudnn", "precision=bf16"], A100),
        (["attention=xformers"], T4),
        (["quant=fp8", "precision=bf16"], L4),
        (["quant=fp8", "precision=bf16"], H100),
        (["quant=int8"], MAC),
    ],
)
def test_a_machine_that_has_what_an_option_needs(choices: list[str], on: Environment) -> None:
    assert problems(a_run(*choices), on) == []


@pytest.mark.parametrize("quant", ["int8", "int8_weight_only", "fp8_weight_only"])
def test_a_missing_package_is_named_with_the_way_to_install_it(quant: str) -> None:
    without = machine(modules={"torchao": False})
    assert problems(a_run(f"quant={quant}"), without) == [
        (
            f"quant={quant}",
            "needs the package torchao, which is not installed",
            "pip install torchao, or quant=none",
        )
    ]


def test_xformers_without_its_package() -> None:
    without = machine(H100.gpus[0], modules={"xformers": False})
    assert problems(a_run("attention=xformers"), without) == [
        (
            "attention=xformers",
            "needs the package xformers, which is not installed",
            "pip install xformers, or attention=sdpa",
        )
    ]


def test_several_unmet_needs_of_one_option_all_come() -> None:
    nothing = machine(modules={"xformers": False, "torchao": False})
    assert [reason for _, reason, _ in problems(a_run("attention=xformers"), nothing)] == [
        "needs an NVIDIA GPU; device=cpu",
        "needs the package xformers, which is not installed",
    ]


# The device ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "device"), [(H100, "cuda"), (CPU, "cpu"), (MAC, "mps")], ids=["gpu", "cpu", "mac"]
)
def test_auto_is_the_best_device_of_the_machine(on: Environment, device: str) -> None:
    assert plan(a_run(), on).device == device


def test_a_gpu_without_a_cuda_build_of_torch_is_not_used() -> None:
    assert plan(a_run(), machine(H100.gpus[0], torch_cuda=None)).device == "cpu"


def test_the_cpu_of_a_machine_with_a_gpu_can_be_asked_for() -> None:
    assert plan(a_run(device="cpu"), H100).device == "cpu"
    assert problems(a_run("quant=fp8", "precision=bf16", device="cpu"), H100) == [
        (
            "quant=fp8",
            "needs an NVIDIA GPU of compute capability 8.9 or newer; device=cpu",
            "quant=int8",
        )
    ]


@pytest.mark.parametrize(
    ("asked", "on", "expected"),
    [
        (
            "gpu",
            CPU,
            ("device=gpu", "is none of auto, cpu, cuda, mps", "device=cuda"),
        ),
        (
            "cuda:1",
            H100,
            (
                "device=cuda:1",
                "is none of auto, cpu, cuda, mps",
                "CUDA_VISIBLE_DEVICES=1 with device=cuda",
            ),
        ),
        ("tpu", CPU, ("device=tpu", "is none of auto, cpu, cuda, mps", "device=auto")),
        (
            "cuda",
            CPU,
            (
                "device=cuda",
                "the installed torch 2.13.0 is built without CUDA",
                "device=cpu, or a CUDA build of torch",
            ),
        ),
        (
            "cuda",
            machine(torch_cuda="12.8"),
            ("device=cuda", "no NVIDIA GPU is visible on this machine", "device=cpu"),
        ),
        (
            "mps",
            H100,
            ("device=mps", "this is not an Apple-silicon Mac", "device=cpu"),
        ),
    ],
)
def test_a_device_that_is_not_there(
    asked: str, on: Environment, expected: tuple[str, str, str]
) -> None:
    assert problems(a_run(device=asked), on) == [expected]


def test_a_gpu_that_cannot_be_used_is_told_to_who_asks_for_it_and_who_leaves_it_open() -> None:
    reason = "there is an NVIDIA driver here, but no GPU is visible to this process"
    on = machine(torch_cuda="13.0", gpu_unusable=Unusable(reason, "unset that variable"))
    assert problems(a_run(device="cuda"), on) == [
        ("device=cuda", reason, "device=cpu, or unset that variable")
    ]
    assert notices(a_run(device="auto"), on) == [
        ("device=auto", f"takes the processor: {reason}; instead: unset that variable")
    ]
    assert notices(a_run(device="cpu"), on) == []
    needs = "needs an NVIDIA GPU of compute capability 8.9 or newer; device=cpu"
    fp8 = ("quant=fp8", "precision=bf16")
    assert problems(a_run(*fp8), on) == [("quant=fp8", f"{needs}, for {reason}", "quant=int8")]
    assert problems(a_run(*fp8, device="cpu"), on) == [("quant=fp8", needs, "quant=int8")]


@pytest.mark.parametrize(
    ("order", "gpus", "said"),
    [
        ("PCI_BUS_ID", 2, False),
        ("FASTEST_FIRST", 2, True),
        ("FASTEST_FIRST", 1, False),
    ],
)
def test_an_order_of_gpus_that_is_not_the_plans_is_told(order: str, gpus: int, said: bool) -> None:
    both = (Gpu("NVIDIA L4", (8, 9), 24 * GIB), Gpu("NVIDIA H100", (9, 0), 80 * GIB))
    on = machine(gpus=both[:gpus], torch_cuda="13.0", cuda_order=order)
    expected = (
        "CUDA_DEVICE_ORDER=FASTEST_FIRST",
        "CUDA may compute on another GPU than the NVIDIA L4 that is planned for; instead: unset it, or "
        "CUDA_VISIBLE_DEVICES=GPU-..., one UUID of nvidia-smi -L",
    )
    assert notices(a_run(), on) == [expected] * said


def test_a_gpu_of_unknown_capability_is_used_but_not_for_what_needs_a_known_one() -> None:
    on = machine(Gpu("NVIDIA GPU", None, None))
    assert problems(a_run("compile=default", "precision=bf16"), on) == []
    assert problems(a_run("quant=fp8", "precision=bf16"), on) == [
        (
            "quant=fp8",
            "needs compute capability 8.9 or newer; here: unknown",
            "quant=int8",
        )
    ]


# What is drawn and measured ------------------------------------------------------------------------


def test_a_seed_has_63_bits() -> None:
    assert problems(a_run(generation={"seed": 2**63 - 1}), CPU) == []
    assert problems(a_run(generation={"seed": 2**63}), CPU) == [
        (
            "generation.seed=9223372036854775808",
            "must be at most 9223372036854775807: the largest that a generator takes",
            "generation.seed=9223372036854775807",
        )
    ]


def test_a_negative_prompt_is_no_list() -> None:
    assert problems(a_run(generation={"negative_prompt": '["blurry", ugly]'}), CPU) == [
        (
            'generation.negative_prompt=["blurry", ugly]',
            "is one text for every picture, not a list of texts",
            "generation.negative_prompt='blurry, ugly'",
        )
    ]
    assert problems(a_run(generation={"negative_prompt": "[blurry], [ugly]"}), CPU) == []


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_picture_to_compare_with_begins_like_one(start: bytes, tmp_path: Path) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(start + b"...")
    assert problems(a_run(quality={"reference": str(picture)}), CPU) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text.png", "is neither a PNG nor a JPEG"),
        ("nope.png", "there is no such picture"),
        (".", "there is no such picture"),
        ("text.png/nope.png", "there is no such picture"),
    ],
)
def test_what_is_no_picture_to_compare_with(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("GIF89a")
    path = tmp_path / name
    assert problems(a_run(quality={"reference": str(path)}), CPU) == [
        (
            f"quality.reference={path}",
            reason,
            "quality.reference=auto, which draws it, or the path of a PNG or JPEG",
        )
    ]


def of_quality(**keys: Any) -> list[tuple[str, str, str]]:
    """Problems of a run with these keys of `quality`, where LPIPS' package is installed."""
    return problems(a_run(quality=keys), machine(modules={"torchvision": True}))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"min_psnr_db": -1.0},
            (
                "quality.min_psnr_db=-1",
                "must be at least 0",
                "quality.min_psnr_db=0, or null for no budget",
            ),
        ),
        (
            {"min_psnr_db": float("nan")},
            (
                "quality.min_psnr_db=nan",
                "is not a finite number",
                "quality.min_psnr_db=null, or a number",
            ),
        ),
        (
            {"max_abs_difference_latents": float("inf")},
            (
                "quality.max_abs_difference_latents=inf",
                "is not a finite number",
                "quality.max_abs_difference_latents=null, or a number",
            ),
        ),
        (
            {"min_ssim": 1.01},
            (
                "quality.min_ssim=1.01",
                "must be at most 1: that figure is never above it",
                "quality.min_ssim=1",
            ),
        ),
        (
            {"min_ms_ssim": 0.9},
            (
                "quality.min_ms_ssim=0.9",
                "MS-SSIM needs 176 pixels a side, and the smaller side has 64",
                "a budget on quality.min_ssim, or larger pictures",
            ),
        ),
        (
            {"max_lpips": 0.1},
            (
                "quality.max_lpips=0.1",
                "LPIPS is measured on demand only",
                "quality.lpips=true beside it",
            ),
        ),
        (
            {"captions": -3},
            ("quality.captions=-3", "can't be negative", "quality.captions=24"),
        ),
    ],
)
def test_budgets_that_say_nothing_are_refused(
    keys: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    assert of_quality(**keys) == [expected]


def test_budgets_that_can_be_judged_are_not_refused() -> None:
    assert of_quality(min_psnr_db=0.0, min_ssim=1.0, max_abs_difference=0.0) == []
    assert of_quality(max_lpips=0.1, lpips=True, captions=24, min_caption_score=0.9) == []
    assert of_quality(min_caption_score=0.9) == []  # the model's own prompt is a caption
    large = {"generation": {"height": 176, "width": 256}}
    assert problems(a_run(quality={"min_ms_ssim": 0.9}, **large), CPU) == []


def test_a_picture_has_no_latents_to_set_a_budget_on(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert of_quality(reference=str(picture), max_abs_difference_latents=0.5) == [
        (
            "quality.max_abs_difference_latents=0.5",
            "the reference is a picture, and a picture has no latents",
            "quality.reference=auto, or quality.max_abs_difference",
        )
    ]


def test_captions_are_for_the_embedded_model_alone() -> None:
    reason = "only pictures of the embedded model can be judged by their captions"
    other = a_run("model=sdxl", quality={"captions": 24, "min_caption_score": 0.9})
    assert problems(other, CPU, None) == [
        ("quality.captions=24", reason, "leave out quality.captions, or model=shapes"),
        (
            "quality.min_caption_score=0.9",
            reason,
            "leave out quality.min_caption_score, or model=shapes",
        ),
    ]
    sunset = a_run(quality={"min_caption_score": 0.9}, generation={"prompt": "a sunset"})
    assert problems(sunset, CPU) == [
        (
            "quality.min_caption_score=0.9",
            "the prompt is none of the captions that this model was taught, so nothing can be judged",
            "quality.captions=24, which draws captions of its own",
        )
    ]


def test_lpips_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    run = a_run(quality={"lpips": True})
    assert problems(run, machine(modules={"torchvision": False})) == [
        (
            "quality.lpips=true",
            "needs the package torchvision, which is not installed",
            'pip install "fastdiff-inference[lpips]" (torchvision from where torch is from), '
            "or quality.lpips=false",
        )
    ]
    has_it = machine(modules={"torchvision": True})
    said = [n.text for n in plan(run, has_it).notices if n.choice == "quality.lpips=true"]
    assert said == [
        "the weights of its AlexNet (244 MB) come from download.pytorch.org: "
        "alexnet-owt-7be5be79.pth is not in torch's hub folder"
    ]
    lpips_weights().parent.mkdir(parents=True)
    lpips_weights().write_bytes(b"")
    assert plan(run, has_it).notices == ()


def test_a_budget_without_a_comparison_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError) as refused:
        compose(["quality=none", "quality.min_psnr_db=30"])
    assert str(refused.value) == (
        "quality=none has no key 'min_psnr_db'\n  it belongs to: quality=reference"
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"height": 63},
            (
                "generation.height=63",
                "must be a multiple of 8, because latents are",
                "generation.height=64",
            ),
        ),
        (
            {"width": 1},
            (
                "generation.width=1",
                "must be a multiple of 8, because latents are",
                "generation.width=8",
            ),
        ),
        (
            {"steps": 0},
            ("generation.steps=0", "must be at least 1", "generation.steps=1"),
        ),
        (
            {"images_per_prompt": 0},
            (
                "generation.images_per_prompt=0",
                "must be at least 1",
                "generation.images_per_prompt=1",
            ),
        ),
        ({"seed": -1}, ("generation.seed=-1", "must be at least 0", "generation.seed=0")),
        (
            {"guidance_scale": float("nan")},
            (
                "generation.guidance_scale=nan",
                "is not a finite number",
                "generation.guidance_scale=0",
            ),
        ),
    ],
)
def test_numbers_that_nothing_can_be_drawn_with(
    keys: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    assert problems(a_run(generation=keys), CPU) == [expected]


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("", "''"),
        ("   ", "'   '"),
        ([], "[]"),
        (["a cat", " "], "['a cat', ' ']"),
        ([1, 2], "[1, 2]"),
        (7, "7"),
        (None, "None"),
    ],
)
def test_a_prompt_that_says_nothing(prompt: Any, shown: str) -> None:
    assert problems(a_run(generation={"prompt": prompt}), CPU) == [
        (
            f"generation.prompt={shown}",
            "there is nothing to draw: a prompt is a text, or a list of texts, none of them empty",
            "generation.prompt='a photo of an astronaut', or null for the model's own",
        )
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {"seed": 0},
        {"guidance_scale": 0.0},
        {"steps": 1},
        {"height": None, "width": None, "steps": None, "guidance_scale": None},
        {"prompt": ["a cat", "a dog"], "images_per_prompt": 3},
    ],
)
def test_zero_one_and_null_are_values_like_any_other(keys: dict[str, Any]) -> None:
    assert problems(a_run(generation=keys), CPU) == []


def test_nothing_timed_and_a_negative_warm_up() -> None:
    assert problems(a_run(bench={"runs": -3, "warmup": -1, "most_warmup": -2}), CPU) == [
        ("bench.runs=-3", "nothing would be timed", "bench.runs=1"),
        ("bench.warmup=-1", "can't be negative", "bench.warmup=0"),
        (
            "bench.most_warmup=-2",
            "can't be negative",
            "bench.most_warmup=0, which makes no more calls than bench.warmup says",
        ),
    ]


@pytest.mark.parametrize(("asked", "most"), [(0, 0), (3, 3), (1, 10), (20, 10)])
def test_a_bound_below_the_warm_up_is_no_problem(asked: int, most: int) -> None:
    assert problems(a_run(bench={"warmup": asked, "most_warmup": most}), CPU) == []


# What can't be combined ----------------------------------------------------------------------------


def test_math_attention_and_fused_projections() -> None:
    assert problems(a_run("attention=math", "qkv=fused"), CPU) == [
        (
            "attention=math",
            "can't be combined with qkv=fused: fusing replaces the attention processor",
            "qkv=separate, or attention=sdpa_math",
        )
    ]
    assert problems(a_run("attention=sdpa_math", "qkv=fused"), CPU) == []


def test_xformers_and_fused_projections() -> None:
    assert problems(a_run("attention=xformers", "qkv=fused"), H100) == [
        (
            "attention=xformers",
            "can't be combined with qkv=fused: each replaces the attention processor",
            "qkv=separate, or attention=sdpa",
        )
    ]


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_the_flash_kernel_of_cuda_has_no_fp32(precision: str) -> None:
    assert problems(a_run("attention=sdpa_flash", f"precision={precision}"), H100) == [
        (
            "attention=sdpa_flash",
            f"CUDA's flash kernel computes in fp16 or bf16 only; precision={precision}",
            "precision=bf16, or attention=sdpa_efficient",
        )
    ]


def test_the_cudnn_kernel_has_no_fp32() -> None:
    assert problems(a_run("attention=sdpa_cudnn"), H100) == [
        (
            "attention=sdpa_cudnn",
            "cuDNN's kernel computes in fp16 or bf16 only; precision=fp32",
            "precision=bf16",
        )
    ]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_fp8_with_a_scale_a_row_needs_bf16(precision: str) -> None:
    run = a_run("quant=fp8", f"precision={precision}")
    assert problems(run, H100) == [
        (
            "quant=fp8",
            f"one scale a row works in bf16 only; precision={precision}",
            "precision=bf16, or quant.granularity=per_tensor",
        )
    ]
    whole = a_run("quant=fp8", f"precision={precision}", quant={"granularity": "per_tensor"})
    assert problems(whole, H100) == []


@pytest.mark.parametrize("freezing", [True, "auto"])
def test_regional_compiling_can_not_be_frozen(freezing: Any) -> None:
    run = a_run("compile=regional", compile={"freezing": freezing})
    assert problems(run, CPU) == [
        (
            f"compile.freezing={str(freezing).lower()}",
            "can't be combined with compile=regional: frozen weights make every block its own graph",
            "compile.freezing=false, or compile=default",
        )
    ]


def test_regional_with_freezing_auto_is_fine_where_auto_means_no() -> None:
    assert problems(a_run("compile=regional", compile={"freezing": "auto"}), H100) == []


def test_regional_compiling_of_a_vae() -> None:
    run = a_run("compile=regional", compile={"targets": ["denoiser", "vae_decode"]})
    assert problems(run, H100) == [
        (
            "compile.targets=[vae_decode]",
            "a VAE has no repeated blocks to compile by region",
            "compile.targets=[denoiser], or compile=default",
        )
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"targets": ["denoizer"]},
            (
                "compile.targets=[denoizer]",
                "there is no such target; there are denoiser, vae_decode",
                "compile.targets=[denoiser]",
            ),
        ),
        (
            {"targets": ["vae"]},
            (
                "compile.targets=[vae]",
                "there is no such target; there are denoiser, vae_decode",
                "compile.targets=[denoiser]",
            ),
        ),
        (
            {"targets": []},
            ("compile.targets=[]", "nothing would be compiled", "compile=none"),
        ),
        (
            {"freezing": "perhaps"},
            (
                "compile.freezing=perhaps",
                "is not true, false or auto",
                "compile.freezing=auto",
            ),
        ),
    ],
)
def test_keys_of_compile_that_make_no_sense(
    keys: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    assert problems(a_run("compile=default", compile=keys), CPU) == [expected]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tf32_beside_half_precision_needs_a_gpu_that_has_it(precision: str) -> None:
    run = a_run(f"precision={precision}", precision={"tf32": True})
    assert problems(run, CPU) == [
        (
            "precision.tf32=true",
            "needs an NVIDIA GPU of compute capability 8.0 or newer; device=cpu",
            "precision.tf32=false",
        )
    ]
    assert [step.pass_.key for step in plan(run, A100).steps][:2] == [
        "precision.tf32",
        f"precision.{precision}",
    ]


# What a model can do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "facts", "expected"),
    [
        (
            "memory_format=channels_last",
            FLUX,
            (
                "FluxTransformer2DModel has no 4-D weights: there is nothing to lay out",
                "memory_format=contiguous",
            ),
        ),
        (
            "memory_format=channels_last",
            HUNYUAN_VIDEO,
            (
                "HunyuanVideoTransformer3DModel has 5-D weights (3-D convolutions): there is nothing to lay out",
                "memory_format=contiguous",
            ),
        ),
        (
            "compile=regional",
            SD3,
            ("SD3Transformer2DModel declares no repeated blocks", "compile=default"),
        ),
        (
            "compile=regional",
            UNKNOWN,
            ("SomeNewTransformer declares no repeated blocks", "compile=default"),
        ),
        (
            "qkv=fused",
            SANA,
            ("SanaTransformer2DModel can't fuse its projections", "qkv=separate"),
        ),
        (
            "qkv=fused",
            UNKNOWN,
            ("SomeNewTransformer can't fuse its projections", "qkv=separate"),
        ),
        (
            "attention=math",
            FLUX,
            (
                "FluxTransformer2DModel has no exchangeable default attention processors",
                "attention=sdpa_math",
            ),
        ),
        (
            "attention=xformers",
            LUMINA,
            (
                "Lumina2Transformer2DModel has no exchangeable attention processors",
                "attention=sdpa",
            ),
        ),
    ],
)
def test_a_model_that_can_not(choice: str, facts: ModelFacts, expected: tuple[str, str]) -> None:
    assert problems(a_run(choice), H100, facts, calls=False) == [(choice, *expected)]


@pytest.mark.parametrize(
    "choice",
    ["memory_format=channels_last", "compile=regional", "qkv=fused", "attention=math"],
)
def test_what_nobody_has_seen_is_not_refused(choice: str) -> None:
    assert problems(a_run(choice), H100, None) == []


def test_parts_whose_class_can_not_are_left_out() -> None:
    steps = plan(a_run("qkv=fused"), CPU, TINY_VAE).steps
    assert {step.pass_.key: step.components for step in steps}["qkv.fused"] == ("unet",)


# Notices -------------------------------------------------------------------------------------------


def test_int8_and_fp8_without_compile_are_said_to_be_slow() -> None:
    assert notices(a_run("quant=int8"), CPU) == [
        (
            "quant=int8",
            "without compile int8 is usually slower than no quantization, on a GPU by far; "
            "compile=regional is the cheapest",
        )
    ]
    assert notices(a_run("quant=int8", "compile=regional"), CPU) == []
    assert notices(a_run("quant=fp8", "precision=bf16"), H100) == [
        ("quant=fp8", "without compile fp8 is usually slower than no quantization")
    ]


def test_half_precision_on_a_cpu() -> None:
    assert notices(a_run("precision=bf16"), CPU) == []
    assert notices(a_run("precision=bf16"), OLD_CPU) == [
        (
            "precision=bf16",
            "this processor has no bf16 arithmetic (avx512_bf16, amx_bf16); fp32 may be faster here",
        )
    ]
    assert (
        "precision=fp16",
        "a CPU computes fp16 slowly; bf16 or fp32 is usually faster",
    ) in notices(a_run("precision=fp16"), CPU)


def test_a_vae_that_asks_for_fp32_is_said_with_fp16() -> None:
    upcast = Component("vae", "diffusers", "AutoencoderKL", None, None, {"force_upcast": True})
    facts = ModelFacts(SHAPES.pipeline, {**SHAPES.components, "vae": upcast})
    said = [notice.text for notice in plan(a_run("precision=fp16"), H100, facts).notices]
    assert said == [
        "this model's VAE asks for fp32 (force_upcast), so every call decodes in fp32; "
        "precision=bf16 decodes in bf16"
    ]


@pytest.mark.parametrize("mode", ["reduce_overhead", "max_autotune"])
def test_cuda_graphs_on_a_cpu(mode: str) -> None:
    assert notices(a_run(f"compile={mode}"), CPU) == [
        (
            f"compile={mode}",
            "CUDA graphs don't exist on a CPU; the rest of the mode holds",
        )
    ]
    assert notices(a_run(f"compile={mode}"), H100) == []


def test_compiling_for_mps() -> None:
    assert notices(a_run("compile=default"), MAC) == [
        (
            "compile=default",
            "Inductor's support for mps is young; compare with compile=none",
        )
    ]


# The plan ------------------------------------------------------------------------------------------


def test_stages_come_in_their_order() -> None:
    run = a_run(
        "precision=bf16",
        "attention=sdpa_flash",
        "qkv=fused",
        "memory_format=channels_last",
        "quant=int8",
        "compile=max_autotune",
        precision={"tf32": True},
    )
    steps = plan(run, H100).steps
    assert [(step.stage.name, step.pass_.key) for step in steps] == [
        ("FLAGS", "precision.tf32"),
        ("LOAD", "precision.bf16"),
        ("FUSE", "qkv.fused"),
        ("LAYOUT", "memory_format.channels_last"),
        ("QUANTIZE", "quant.int8"),
        ("PLACE", "device"),
        ("COMPILE", "compile.max_autotune"),
        ("CALL", "attention.sdpa_flash"),
    ]


def test_the_order_of_stages_is_that_of_the_work() -> None:
    assert [stage.name for stage in sorted(Stage)] == [
        "FLAGS",
        "LOAD",
        "REPLACE",
        "ADAPT",
        "FUSE",
        "LAYOUT",
        "QUANTIZE",
        "ATTENTION",
        "CACHE",
        "MEMORY",
        "PLACE",
        "COMPILE",
        "CALL",
    ]


def test_compile_targets_choose_the_components() -> None:
    for targets, names in (
        (["denoiser"], ("unet",)),
        (["vae_decode"], ("vae",)),
        (["vae_decode", "denoiser"], ("unet", "vae")),
    ):
        steps = plan(a_run("compile=default", compile={"targets": targets}), CPU).steps
        assert steps[-1].components == names


def test_two_passes_that_change_the_same_thing_at_the_same_stage_clash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Twice(Pass):
        key, stage, does = "quant.twice", Stage.QUANTIZE, "quantize once more"

        def components(self, setting: Setting) -> tuple[str, ...]:
            return ("unet",)

    int8 = OPTIONS["quant"]["int8"]
    monkeypatch.setattr(int8, "passes", lambda self: (self, Twice()))
    assert problems(a_run("quant=int8"), CPU) == [
        (
            "quant.int8",
            "and quant.twice both change unet at the same stage",
            "leave one of them out: quant.int8, quant.twice",
        )
    ]


def test_a_problem_that_two_rules_find_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Problem("quant=int8", "is wrong", "quant=none")
    monkeypatch.setattr(OPTIONS["quant"]["int8"], "check", lambda self, setting: [found, found])
    assert problems(a_run("quant=int8"), CPU) == [("quant=int8", "is wrong", "quant=none")]


def test_planning_changes_nothing_in_its_arguments() -> None:
    run = a_run("quant=int8", "compile=max_autotune")
    before = copy.deepcopy(run)
    plan(run, CPU)
    assert run == before


# Every option --------------------------------------------------------------------------------------

MACHINES = {"H100": H100, "A100": A100, "T4": T4, "CPU": CPU, "Mac": MAC}


def _tiny_lora() -> Path:
    """An adapter for one layer of the embedded model, in a file."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    sides = {f"{layer}.lora_A.weight": [1, 144], f"{layer}.lora_B.weight": [144, 1]}
    header = {
        key: {"dtype": "F32", "shape": shape, "data_offsets": [at * 576, at * 576 + 576]}
        for at, (key, shape) in enumerate(sides.items())
    }
    text = json.dumps(header).encode()
    path = Path(tempfile.mkdtemp()) / "adapter.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(1152))
    return path


TINY_LORA = _tiny_lora()

COMPANIONS: dict[str, list[str]] = {
    "attention=sdpa_flash": ["precision=bf16"],
    "attention=sdpa_cudnn": ["precision=bf16"],
    "quant=fp8": ["precision=bf16"],
    "lora=file": [f"lora.path={TINY_LORA}"],
    "lora=lcm": ["lora.id=org/name"],
    "vae=fp16_fix": ["vae.id=org/name"],
    "compile=regions": ["compile.targets=[vae_decode]"],
}
"""What an option can't do without; any other plans beside the defaults alone."""


@pytest.fixture(autouse=True)
def _huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this very machine has any is no part of the machines that are planned for."""
    monkeypatch.setattr(allocator, "lacks", lambda: None)


def every_option() -> Iterator[str]:
    for slot, files in option_files().items():
        yield from (f"{slot}={name}" for name in files)


def facts_for(choice: str) -> ModelFacts | None:
    """Of a model that can have an option: the embedded one's, or those of one that follows flow matching."""
    if choice.startswith("model="):
        return None
    if not choice.startswith("scheduler=flow_"):
        return SHAPES
    own = Component("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler", 0, 0)
    return ModelFacts("StableDiffusion3Pipeline", {**SHAPES.components, "scheduler": own})


@pytest.mark.parametrize("choice", every_option())
def test_every_option_that_ships_can_be_planned_on_some_machine(choice: str) -> None:
    facts = facts_for(choice)
    run = compose([choice, *COMPANIONS.get(choice, [])])
    possible = [name for name, on in MACHINES.items() if not problems(run, on, facts)]
    assert possible, {name: problems(run, on, facts) for name, on in MACHINES.items()}


@pytest.mark.parametrize("choice", every_option())
def test_every_step_says_what_it_does(choice: str) -> None:
    run = compose([choice, *COMPANIONS.get(choice, [])])
    on = CPU if choice == "allocator=huge_pages" else H100
    for step in plan(run, on, facts_for(choice) or SHAPES).steps:
        told = step.to_dict()
        assert told["pass"]
        assert told["does"]
        assert told["stage"] == step.stage.name.lower()


def test_every_option_in_python_has_a_file_and_the_other_way_round() -> None:
    for slot, options in OPTIONS.items():
        assert set(option_files()[slot]) == set(options)


def test_conflicts_name_options_that_exist() -> None:
    for options in OPTIONS.values():
        for option in options.values():
            for conflict in option.conflicts:
                slot, name = conflict.choice.split("=")
                assert name in option_files()[slot]


def test_every_way_out_that_is_typed_can_be_typed() -> None:
    """`quant=int8, or quant=none` names options that exist."""
    declared = [option for options in OPTIONS.values() for option in options.values()]
    ways = [rule.instead for option in declared for rule in option.requires]
    ways += [rule.instead for option in declared for rule in option.conflicts]
    for way in {way for ways_out in ways for way in ways_out.split(", or ")}:
        slot, _, name = way.partition("=")
        assert name in option_files().get(slot, {}), way


def test_an_option_is_an_option() -> None:
    assert all(issubclass(o, Option) for options in OPTIONS.values() for o in options.values())


# Attention on older GPUs and Macs -----------------------------------------------------------------


def test_the_flash_kernel_needs_a_newer_gpu() -> None:
    for precision in ("fp16", "fp32"):
        run = a_run("attention=sdpa_flash", f"precision={precision}")
        expected = ("attention=sdpa_flash", NEEDS_80, "attention=sdpa_efficient, or attention=sdpa")
        assert problems(run, T4) == [expected]


def test_a_mac_has_the_plain_formula_alone() -> None:
    assert problems(a_run("attention=sdpa_flash"), MAC) == [
        (
            "attention=sdpa_flash",
            "mps has no kernel but the plain formula; device=mps",
            "attention=sdpa",
        )
    ]
    for option in ("sdpa_efficient", "sdpa_cudnn"):
        (problem,) = problems(a_run(f"attention={option}", "precision=bf16"), MAC)
        assert (problem[0], problem[2]) == (f"attention={option}", "attention=sdpa")
    assert problems(a_run("attention=sdpa_math"), MAC) == []


# What attention kernels take of a model -----------------------------------------------------------


def published(name: str) -> ModelFacts:
    return ARCHITECTURES[name].facts()


def denoiser(pipeline: str, kind: str, **config: object) -> ModelFacts:
    part = Component("transformer", "diffusers", kind, None, None, config)
    return ModelFacts(pipeline, {"transformer": part})


AURA_FLOW = denoiser("AuraFlowPipeline", "AuraFlowTransformer2DModel", attention_head_dim=256)
LONG_HEADS = denoiser("FluxPipeline", "FluxTransformer2DModel", attention_head_dim=264)
ODD_HEADS = denoiser("FluxPipeline", "FluxTransformer2DModel", attention_head_dim=36)
CUDNN = ("attention=sdpa_cudnn", "precision=bf16")


@pytest.mark.parametrize("on", [A100, L4])
@pytest.mark.parametrize(
    ("facts", "name", "long"),
    [
        (published("sd1"), "UNet2DConditionModel", 160),
        (published("bk_sdm_small"), "UNet2DConditionModel", 160),
        (AURA_FLOW, "AuraFlowTransformer2DModel", 256),
    ],
)
def test_cudnn_takes_head_dimensions_up_to_128_on_most_gpus(
    facts: ModelFacts, name: str, long: int, on: Environment
) -> None:
    assert problems(a_run(*CUDNN), on, facts) == [
        (
            "attention=sdpa_cudnn",
            f"cuDNN's kernel takes head dimensions up to 128 on this GPU, and {name} has {long}",
            "attention=sdpa_flash, or attention=sdpa",
        )
    ]
    for way_out in ("attention=sdpa_flash", "attention=sdpa"):
        assert problems(a_run(way_out, "precision=bf16"), on, facts) == []
    with pytest.raises(PlanError) as refused:
        make_plan(a_run(*CUDNN), on, facts)
    assert isinstance(refused.value.problems[0], MachineProblem)


def test_newer_gpus_take_longer_heads_where_cudnn_is_new_enough() -> None:
    blackwell = machine(Gpu("NVIDIA B200", (10, 0), 180 * GIB))
    for on in (H100, blackwell):
        found = make_plan(a_run(*CUDNN), on, published("sd1")).notices
        assert [(n.choice, n.text) for n in found] == [
            (
                "attention=sdpa_cudnn",
                "UNet2DConditionModel has head dimensions of 160, and only cuDNN 9.22 or newer takes more than 128",
            )
        ]
    assert problems(a_run(*CUDNN), machine(Gpu("RTX 5090", (12, 0), 32 * GIB)), published("sd1"))


@pytest.mark.parametrize(("facts", "dim"), [(LONG_HEADS, 264), (ODD_HEADS, 36)])
def test_no_gpus_cudnn_takes_these_heads(facts: ModelFacts, dim: int) -> None:
    assert problems(a_run(*CUDNN), H100, facts) == [
        (
            "attention=sdpa_cudnn",
            "cuDNN's kernel takes head dimensions that are multiples of 8, up to 256, and "
            f"FluxTransformer2DModel has {dim}",
            "attention=sdpa",
        )
    ]


@pytest.mark.parametrize("facts", [SHAPES, published("sdxl"), published("flux_schnell"), UNKNOWN])
def test_cudnn_takes_the_heads_of_the_others(facts: ModelFacts) -> None:
    assert problems(a_run(*CUDNN), A100, facts) == []


def test_the_flash_kernel_takes_heads_up_to_256_and_no_mask() -> None:
    run = a_run("attention=sdpa_flash", "precision=bf16")
    assert problems(run, A100, AURA_FLOW) == []
    instead = "attention=sdpa_efficient, or attention=sdpa"
    assert problems(run, A100, LONG_HEADS) == [
        (
            "attention=sdpa_flash",
            "CUDA's flash kernel takes head dimensions up to 256, and FluxTransformer2DModel has 264",
            instead,
        )
    ]
    assert problems(run, A100, SANA) == [
        (
            "attention=sdpa_flash",
            "CUDA's flash kernel takes no mask, and SanaTransformer2DModel's attention has one",
            instead,
        )
    ]
    for way_out in instead.split(", or "):
        assert problems(a_run(way_out, "precision=bf16"), A100, SANA) == []
    assert problems(a_run("attention=sdpa_flash"), CPU, SANA) == []  # a CPU's takes masks


def test_the_efficient_kernel_takes_heads_of_16_bytes_multiples() -> None:
    run = a_run("attention=sdpa_efficient", "precision=bf16")
    assert problems(run, A100, ODD_HEADS) == [
        (
            "attention=sdpa_efficient",
            "its kernel takes head dimensions that are multiples of 8 in precision=bf16, and FluxTransformer2DModel has 36",
            "attention=sdpa",
        )
    ]
    assert problems(a_run("attention=sdpa_efficient"), A100, ODD_HEADS) == []  # 36 fp32 numbers are
    assert problems(run, A100, published("sd1")) == problems(run, A100, AURA_FLOW) == []
    short = denoiser("FluxPipeline", "FluxTransformer2DModel", attention_head_dim=18)
    assert [p[0] for p in problems(a_run("attention=sdpa_efficient"), A100, short)] == [
        "attention=sdpa_efficient"
    ]
    assert problems(a_run("attention=sdpa_efficient"), T4, short) == []


# fp8 on machines that don't have it ----------------------------------------------------------------


def test_a_mac_stores_no_fp8() -> None:
    refusal = ("quant=fp8_weight_only", "mps has no fp8; device=mps", "quant=int8_weight_only")
    assert problems(a_run("quant=fp8_weight_only"), MAC) == [refusal]
    assert problems(a_run("quant=int8_weight_only"), MAC) == []
    assert [p[0] for p in problems(a_run("memory=layerwise"), MAC)] == ["memory=layerwise"]
    assert [p[0] for p in problems(a_run("quant=fp8", "precision=bf16"), MAC)] == ["quant=fp8"]


def test_older_gpus_compile_fp8_weights_from_torch_2_13_on() -> None:
    choices = ("quant=fp8_weight_only", "compile=regional")
    for version in ("2.11.0+cu130", "2.12.1"):
        old = machine(A100.gpus[0], versions={"torch": version})
        assert problems(a_run(*choices), old) == [
            (
                "quant=fp8_weight_only",
                "can't be combined with compile=regional here: Triton takes no fp8 of this kind below compute "
                "capability 8.9, and torch reads it as bytes from 2.13 on",
                "compile=none, quant=int8_weight_only, or torch 2.13",
            )
        ]
        for way_out in ("compile=none", "quant=int8_weight_only"):
            assert problems(a_run(*choices, way_out), old) == []
        assert problems(a_run(*choices), machine(L4.gpus[0], versions={"torch": version})) == []
    for version in ("2.13.0", "2.14.0+cu130", "3.0"):
        assert problems(a_run(*choices), machine(A100.gpus[0], versions={"torch": version})) == []


SIMPLE_CROSS = ModelFacts(
    "KandinskyV22Pipeline",
    {
        "unet": Component(
            "unet",
            "diffusers",
            "UNet2DConditionModel",
            None,
            None,
            {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        )
    },
)
HUNYUAN_DIT = model("HunyuanDiTPipeline", transformer="HunyuanDiT2DModel", vae="AutoencoderKL")


@pytest.mark.parametrize(
    ("facts", "name"), [(HUNYUAN_DIT, "HunyuanDiT2DModel"), (SIMPLE_CROSS, "UNet2DConditionModel")]
)
def test_plain_attention_is_refused_where_processors_do_more(facts: ModelFacts, name: str) -> None:
    assert problems(a_run("attention=math"), CPU, facts, calls=False) == [
        (
            "attention=math",
            f"{name} needs attention processors of its own here, which the plain one can't replace",
            "attention=sdpa_math",
        )
    ]


# A VAE that every call converts to fp32 -----------------------------------------------------------


def upcasting(**config: Any) -> ModelFacts:
    """SDXL, whose VAE asks for fp32."""
    return ModelFacts(
        "StableDiffusionXLPipeline",
        {
            "unet": Component("unet", "diffusers", "UNet2DConditionModel", None, None),
            "vae": Component("vae", "diffusers", "AutoencoderKL", None, None, config),
        },
    )


FP16_CPU = machine(cpu_flags=frozenset({"avx512_fp16"}))


@pytest.mark.parametrize(
    ("config", "upcasts"),
    [
        ({"force_upcast": True}, True),
        ({"force_upcast": False}, False),
        ({"scaling_factor": 0.13025}, True),  # AutoencoderKL's own default is to ask
        ({}, False),  # nothing is known
    ],
)
def test_whether_a_vae_is_upcast_is_answered_in_one_place(
    config: dict[str, Any], upcasts: bool
) -> None:
    from fastdiff.passes.precision import upcasts_vae

    facts = upcasting(**config)
    assert upcasts_vae(Setting(a_run("precision=fp16"), H100, "cuda", facts)) == upcasts
    assert not upcasts_vae(Setting(a_run("precision=bf16"), H100, "cuda", facts))
    assert not upcasts_vae(Setting(a_run("precision=fp16"), H100, "cuda", None))
    elsewhere = ModelFacts("StableDiffusionPipeline", facts.components)
    assert not upcasts_vae(Setting(a_run("precision=fp16"), H100, "cuda", elsewhere))


@pytest.mark.parametrize(
    ("mode", "on", "keys", "left_out"),
    [
        ("max_autotune", H100, {}, True),
        ("reduce_overhead", H100, {}, True),
        ("default", H100, {}, False),
        ("default", H100, {"freezing": True}, True),
        ("default", FP16_CPU, {}, True),
        ("default", FP16_CPU, {"freezing": False}, False),
        ("reduce_overhead", FP16_CPU, {"freezing": False}, False),
    ],
)
def test_a_vae_that_is_upcast_is_not_compiled_with_graphs_or_frozen(
    mode: str, on: Environment, keys: dict[str, Any], left_out: bool
) -> None:
    run = a_run(f"compile={mode}", "precision=fp16", compile=keys)
    made = plan(run, on, upcasting(force_upcast=True))
    (step,) = [step for step in made.steps if step.pass_.key == f"compile.{mode}"]
    assert step.components == (("unet",) if left_out else ("unet", "vae"))
    said = "leaves the VAE's decode eager: every call converts the VAE to fp32 (force_upcast)"
    assert any(notice.text.startswith(said) for notice in made.notices) == left_out


def test_nothing_left_to_compile_is_refused() -> None:
    run = a_run("compile=max_autotune", "precision=fp16", compile={"targets": ["vae_decode"]})
    assert problems(run, H100, upcasting(force_upcast=True)) == [
        (
            "compile.targets=[vae_decode]",
            "nothing would be compiled: every call converts the VAE to fp32 (force_upcast), "
            "which CUDA graphs and frozen weights don't survive",
            "precision=bf16, or compile=default with compile.freezing=false",
        )
    ]


@pytest.mark.parametrize("option", ["int8", "int8_weight_only", "fp8", "fp8_weight_only"])
def test_a_vae_that_is_upcast_is_not_quantized(option: str) -> None:
    keys = {"granularity": Granularity.per_tensor} if option == "fp8" else {}
    for precision, parts in (("fp16", ("unet",)), ("bf16", ("unet", "vae"))):
        run = a_run(f"quant={option}", f"precision={precision}", quant=keys)
        made = plan(run, H100, upcasting(force_upcast=True))
        (step,) = [step for step in made.steps if step.pass_.key == f"quant.{option}"]
        assert step.components == parts
        texts = [notice.text for notice in made.notices if notice.choice == f"quant={option}"]
        said = (
            "leaves the VAE as it is: every call converts it to fp32 (force_upcast), and "
            "quantized weights can't be; precision=bf16 includes it"
        )
        assert (said in texts) == (precision == "fp16")


# Compiling: what must be there --------------------------------------------------------------------


def test_a_target_that_the_model_lacks_is_refused() -> None:
    facts = model("DDPMPipeline", unet="UNet2DModel")
    assert problems(a_run("compile=default"), CPU, facts, calls=False) == [
        (
            "compile.targets=[denoiser,vae_decode]",
            "DDPMPipeline has no VAE",
            "compile.targets=[denoiser]",
        )
    ]
    run = a_run("compile=default", compile={"targets": ["denoiser"]})
    assert problems(run, CPU, facts, calls=False) == []
    assert problems(run, CPU, model("SomePipeline", vae="AutoencoderKL")) == [
        (
            "compile.targets=[denoiser]",
            "SomePipeline has no denoiser that is known",
            "compile=none",
        )
    ]
    assert problems(a_run("compile=default"), CPU, None) == []


INSTALL_CPP = "install g++ (Debian: apt-get install g++) and unset CXX, or CXX=NAME of another one"
NO_CPP = "needs a C++ compiler: the one program that CXX names, else g++; it is not on the PATH"
NO_HEADERS = (
    "needs Python's header files, and there is no Python.h",
    "compile=none, or install them (Debian: apt-get install python3.12-dev)",
)
NO_C = (
    "needs a C compiler, with which Triton builds its launcher: the one program that CC names, else gcc "
    "or clang; it is not on the PATH",
    "compile=none, or install one (Debian: apt-get install gcc) and unset CC",
)
NO_TOOLKIT = (
    "needs a CUDA toolkit, against whose headers C++ is compiled: there is no include/cuda.h with "
    "cuda_runtime.h where CUDA_HOME says, beside nvcc, or in /usr/local/cuda"
)
INSTALL_TOOLKIT = "install CUDA's toolkit 12.8 and set CUDA_HOME to its folder"
MODES = [
    *("default", "reduce_overhead", "max_autotune", "max_autotune_no_cudagraphs"),
    *("dynamic", "regional"),
]


def without(on: Environment, *tools: str) -> Environment:
    return replace(on, tools=TOOLS - set(tools))


@pytest.mark.parametrize("mode", MODES)
def test_compiling_on_a_cpu_needs_a_cpp_compiler_and_pythons_headers(mode: str) -> None:
    run = a_run(f"compile={mode}")
    assert problems(run, without(CPU, "c++")) == [
        (f"compile={mode}", NO_CPP, f"compile=none, or {INSTALL_CPP}")
    ]
    assert problems(run, without(CPU, "Python.h")) == [(f"compile={mode}", *NO_HEADERS)]
    assert problems(run, without(CPU, "c", "cuda.h")) == []
    assert problems(a_run(), replace(CPU, tools=frozenset())) == []


@pytest.mark.parametrize("mode", MODES)
def test_compiling_for_cuda_needs_triton_and_what_triton_builds_with(mode: str) -> None:
    run, choice = a_run(f"compile={mode}"), f"compile={mode}"
    assert problems(run, without(H100, "c")) == [(choice, *NO_C)]
    assert problems(run, without(H100, "Python.h")) == [(choice, *NO_HEADERS)]
    assert problems(run, without(H100, "c++", "cuda.h")) == []
    assert problems(run, replace(H100, modules={**H100.modules, "triton": False})) == [
        (
            choice,
            "needs the package triton, which is not installed",
            "pip install triton, or compile=none",
        )
    ]
    p40 = machine(Gpu("Tesla P40", (6, 1), 24 * GIB))
    assert problems(run, p40) == [
        (
            choice,
            "Triton, which writes the kernels, needs compute capability 7.0 or newer; here: 6.1",
            "compile=none",
        )
    ]
    assert problems(a_run(), replace(p40, tools=frozenset())) == []


def test_a_package_for_cuda_is_compiled_against_a_cuda_toolkit() -> None:
    run = a_run("compile=aot")
    assert problems(run, without(H100, "cuda.h")) == [
        ("compile=aot", NO_TOOLKIT, f"compile=default, or {INSTALL_TOOLKIT}")
    ]
    assert problems(run, without(H100, "c++")) == [
        ("compile=aot", NO_CPP, f"compile=default, or {INSTALL_CPP}")
    ]
    assert problems(run, without(CPU, "cuda.h", "c", "Python.h")) == []
    tried_out = a_run("compile=aot", compile={"max_autotune": True})
    assert problems(tried_out, without(CPU, "Python.h")) == [("compile=aot", *NO_HEADERS)]


def test_a_call_sequence_in_cpp_for_cuda_needs_the_toolkit_too() -> None:
    run = a_run("compile=default", compile={"cpp_wrapper": True})
    assert problems(run, without(H100, "cuda.h")) == [
        (
            "compile.cpp_wrapper=true",
            NO_TOOLKIT,
            f"compile.cpp_wrapper=false, or {INSTALL_TOOLKIT}",
        )
    ]
    assert problems(run, without(CPU, "cuda.h")) == []


# Keys of quant ------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["int8", "int8_weight_only", "fp8", "fp8_weight_only"])
def test_keys_of_quant_that_make_no_sense_are_refused(option: str) -> None:
    keys = {"min_in_features": 0, "skip_shapes": [[640, 320], [1, 2, 3], []]}
    run = a_run(f"quant={option}", "precision=bf16", quant=keys)
    no_pair = (
        "is not a pair of a layer's inputs and outputs",
        "quant.skip_shapes=[[640,320]], or []",
    )
    assert problems(run, H100) == [
        ("quant.min_in_features=0", "must be at least 1", "quant.min_in_features=1"),
        ("quant.skip_shapes=[[1,2,3]]", *no_pair),
        ("quant.skip_shapes=[[]]", *no_pair),
    ]


def test_a_cache_folder_that_was_named_and_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTDIFF_CACHE_DIR", str(tmp_path / "file"))
    assert problems(a_run(), CPU) == [
        (
            f"FASTDIFF_CACHE_DIR={tmp_path / 'file'}",
            f"{tmp_path / 'file'} is a file, not a folder, and this machine's rates would be kept there",
            "FASTDIFF_CACHE_DIR=DIR, a folder of your own, or unset it",
        )
    ]
