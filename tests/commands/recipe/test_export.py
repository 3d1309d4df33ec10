"""Exported scripts: run, and their pictures held to fastdiff's own, for every option that this machine can run."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from conftest import NEEDS_A_GPU, Ran, plan_of

from fastdiff.choices.compose import compose
from fastdiff.commands.recipe.export import script_of
from fastdiff.config import CONF_DIR
from fastdiff.errors import PlanError
from fastdiff.machine.environment import TOOLS, Environment, Gpu
from fastdiff.models.architectures import ARCHITECTURES
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.given import Given
from fastdiff.models.names import original_names
from fastdiff.models.sources import SHAPES_DIR, SHAPES_STUDENT, SHAPES_TINY_VAE, Shapes, model_of
from fastdiff.passes import OPTIONS
from fastdiff.passes.base import Context, Pass, Setting, Stage
from fastdiff.passes.effects import Effect
from fastdiff.passes.precision import Fp32
from fastdiff.passes.qkv import Fused
from fastdiff.planning.plan import Plan, Step, make_plan
from fastdiff.script import Script, ScriptError

ROOT = Path(__file__).parents[3]
NEAR_DB = 60.0
"""What a compiled script's picture has to come to, against the compiled run's."""

# Every option ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An option with the further choices that it needs, and what its script asks for beside the model."""

    slot: str
    option: str
    more: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()

    @property
    def choices(self) -> tuple[str, ...]:
        return f"{self.slot}={self.option}", *self.more


def case(slot: str, option: str, *more: str, asks: tuple[str, ...] = ()) -> Case:
    return Case(slot, option, more, asks)


EAGER = (
    case("allocator", "default"),
    case("precision", "fp32"),
    case("precision", "fp16"),
    case("precision", "bf16"),
    case("vae", "default"),
    case("vae", "tiny", asks=("--vae", str(SHAPES_TINY_VAE))),
    case("vae", "fp16_fix", f"vae.path={SHAPES_DIR}/vae", asks=("--vae", f"{SHAPES_DIR}/vae")),
    case("scheduler", "default"),
    case("scheduler", "euler"),
    case("scheduler", "ddim"),
    case("scheduler", "pndm"),
    case("scheduler", "dpm_solver"),
    case("scheduler", "lcm"),
    case("lora", "none"),
    case("lora", "file", "lora.path=ADAPTER", "lora.scale=0.5", asks=("--lora", "ADAPTER")),
    case("lora", "lcm", "lora.path=ADAPTER", "scheduler=lcm", asks=("--lora", "ADAPTER")),
    case("attention", "math"),
    case("attention", "sdpa"),
    case("attention", "sdpa_flash"),
    case("attention", "sdpa_math"),
    case("qkv", "separate"),
    case("qkv", "fused"),
    case("memory_format", "contiguous"),
    case("memory_format", "channels_last"),
    case("quant", "none"),
    case("quant", "int8"),
    case("quant", "int8_weight_only"),
    case("quant", "fp8_weight_only"),
    case("cache", "none"),
    case("cache", "deepcache", "cache.interval=2", "generation.steps=4"),
    case("cache", "pyramid_attention", "generation.steps=6"),
    case("memory", "none"),
    case("memory", "layerwise"),
    case("compile", "none"),
)
"""Held byte for byte."""

DENOISER = "compile.targets=[denoiser]"
COMPILED = (
    case("compile", "default", DENOISER),
    case("compile", "reduce_overhead", DENOISER),
    case("compile", "max_autotune", DENOISER),
    case("compile", "max_autotune_no_cudagraphs", DENOISER),
    case("compile", "dynamic", DENOISER),
    case("compile", "regional", DENOISER, "attention=sdpa_math"),
    case("compile", "regions", DENOISER),
    case("compile", "aot"),
)
"""Held to NEAR_DB."""

ON_FLUX = (
    case("scheduler", "flow_euler", "scheduler.shift=3"),
    case("scheduler", "flow_unipc"),
    case("scheduler", "flow_dpm_solver"),
)
"""Held byte for byte on a model of flow matching, whose noise is shifted by picture size."""

READ = {("scheduler", "flow_heun"): "on pipelines that leave the noise levels to it"}
"""Only read here: no model of these tests can have it."""

ELSEWHERE = NEEDS_A_GPU
"""These scripts are read, not run."""

REFUSED = {
    ("allocator", "huge_pages"): "a script can't set what its own process begins with",
}
"""Why an option can't be written."""


def options_of(slot: str) -> list[Path]:
    """The files of the options that ship; plug-ins and folders of a team's may add others."""
    return sorted((CONF_DIR / slot).glob("*.yaml"))


def test_no_option_is_forgotten() -> None:
    shipped = {(path.parent.name, path.stem) for slot in OPTIONS for path in options_of(slot)}
    tested = [(c.slot, c.option) for c in (*EAGER, *COMPILED, *ON_FLUX)]
    others = [*ELSEWHERE, *REFUSED, *READ]
    assert sorted([*tested, *others]) == sorted(shipped)


@pytest.mark.parametrize("choice", REFUSED, ids="=".join)
def test_what_can_not_be_written_is_refused_with_a_reason(choice: tuple[str, str]) -> None:
    run = compose(["device=cpu", "=".join(choice)])
    setting = Setting(run, CPU, "cpu", Shapes().facts())
    (pass_,) = getattr(run, choice[0]).passes()
    with pytest.raises(ScriptError, match="can't be written as a plain script") as refused:
        pass_.script(Script(frozenset()), setting)
    assert REFUSED[choice] in str(refused.value)


@pytest.mark.parametrize("choice", ELSEWHERE, ids="=".join)
def test_what_is_only_read_really_can_not_run_on_a_cpu(choice: tuple[str, str]) -> None:
    with pytest.raises(PlanError, match="needs an NVIDIA GPU"):
        plan_of("device=cpu", "=".join(choice))


# Running scripts ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for one layer of the embedded UNet."""
    import torch
    from safetensors.torch import save_file

    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) * 0.2 for shape in ((4, 144), (144, 4)))
    file = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, file)
    return file


@contextmanager
def undone() -> Iterator[None]:
    """What a script changes for its whole process is as before afterwards."""
    import torch
    import torch._inductor.config
    import torch.compiler.config
    import torch.fx.experimental._config as shapes

    modules = [m for name, m in sys.modules.items() if name.startswith("diffusers.")]
    noise = {m: vars(m)["randn_tensor"] for m in modules if "randn_tensor" in vars(m)}
    configs: list[Any] = [torch._inductor.config, torch.compiler.config, shapes]
    before = [config.get_config_copy() for config in configs]
    try:
        yield
    finally:
        for module, function in noise.items():
            module.randn_tensor = function  # type: ignore[attr-defined]
        for config, values in zip(configs, before, strict=True):
            for key, value in values.items():
                if getattr(config, key) != value:
                    setattr(config, key, value)


def written(plan: Plan, folder: Path) -> Path:
    script = folder / "script.py"
    script.write_text(script_of(plan, "a test", "shapes on cpu"), encoding="utf-8")
    return script


def drawn(plan: Plan, folder: Path, *asks: str) -> list[Path]:
    """The files that the plan's script saves, run in this process. asks: its arguments, the picture's file left out."""
    script = written(plan, folder)
    line = [str(script), *asks, "--out", str(folder / "picture.png")]
    with mock.patch.object(sys, "argv", line), undone():
        runpy.run_path(str(script), run_name="__main__")
    return sorted(folder.glob("*.png"))


def opened(files: Sequence[Path]) -> list[Any]:
    from PIL import Image

    return [Image.open(file).convert("RGB") for file in files]


def assert_same(files: Sequence[Path], ran: Ran) -> None:
    assert len(files) == len(ran.pictures)
    for picture, own in zip(opened(files), ran.pictures, strict=True):
        assert (picture.size, picture.tobytes()) == (own.size, own.tobytes())


MODEL = ("--model", str(SHAPES_DIR))


@pytest.mark.parametrize("tried", EAGER, ids=lambda c: f"{c.slot}={c.option}")
def test_each_option_draws_the_same_picture(tried: Case, adapter: Path, tmp_path: Path) -> None:
    if tried.option == "deepcache":
        pytest.importorskip("DeepCache")
    if tried.slot == "lora":
        pytest.importorskip("peft")
    choices = [c.replace("ADAPTER", str(adapter)) for c in tried.choices]
    asks = [a.replace("ADAPTER", str(adapter)) for a in tried.asks]
    steps = [] if any("steps" in c for c in choices) else ["generation.steps=2"]
    plan = plan_of("device=cpu", *steps, *choices)
    assert_same(drawn(plan, tmp_path, *MODEL, *asks), Ran(plan))


@pytest.mark.parametrize(
    "choices",
    [
        ("precision=bf16", "quant=int8", "qkv=fused", "memory_format=channels_last"),
        ("precision=bf16", "scheduler=lcm", "generation.guidance_scale=1.0"),
        ("precision=bf16", "attention=sdpa_math", "cache=pyramid_attention", "generation.steps=6"),
        ("memory=layerwise", "memory.skip_modules_pattern=[norm,conv_in]", "precision=bf16"),
        ("memory.vae_slicing=true", "memory.vae_tiling=true", "generation.images_per_prompt=2"),
        ('generation.prompt=["a red circle", "a blue star"]', "generation.negative_prompt=it's"),
        ("quant.min_in_features=65", "quant=int8", "quant.skip_shapes=[]", "quant.swap_conv=false"),
        ("generation.seed=7", "generation.height=96", "generation.width=72", "precision=bf16"),
        ("generation.prompt=back\\slash \"quoted\" it's — naïve", "generation.guidance_scale=null"),
    ],
    ids=lambda choices: " ".join(choices)[:40],
)  # fmt: skip
def test_combinations_draw_the_same_pictures(choices: tuple[str, ...], tmp_path: Path) -> None:
    plan = plan_of("device=cpu", "generation.steps=2", *choices)
    assert_same(drawn(plan, tmp_path, *MODEL), Ran(plan))


def test_the_student_draws_the_same_picture(tmp_path: Path) -> None:
    plan = plan_of("device=cpu", "generation.steps=2", "model.role=student", "vae=tiny")
    asks = ("--unet", str(SHAPES_STUDENT), "--vae", str(SHAPES_TINY_VAE))
    assert_same(drawn(plan, tmp_path, *MODEL, *asks), Ran(plan))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_folder_of_another_family_draws_the_same_picture(
    precision: str, flux_folder: Path, local_plan: Any, tmp_path: Path
) -> None:
    """Flux packs its latents, and has another denoiser, scheduler and cache."""
    plan = local_plan(flux_folder, f"precision={precision}", "cache=pyramid_attention")
    assert_same(drawn(plan, tmp_path, "--model", str(flux_folder)), Ran(plan))


@pytest.mark.parametrize("tried", ON_FLUX, ids=lambda c: c.option)
def test_a_solver_of_flow_matching_draws_the_same_picture(
    tried: Case, flux_folder: Path, local_plan: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "shifted"
    shutil.copytree(flux_folder, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | {"use_dynamic_shifting": True}
    file.write_text(json.dumps(config))
    plan = local_plan(folder, *tried.choices)
    assert_same(drawn(plan, tmp_path, "--model", str(folder)), Ran(plan))


def test_heuns_line_makes_what_the_pass_makes() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    part = Component("scheduler", "diffusers", type(own).__name__, 0, 0, dict(own.config))
    run = compose(["device=cpu", "scheduler=flow_heun", "scheduler.shift=5"])
    setting = Setting(run, CPU, "cpu", ModelFacts("StableDiffusion3Pipeline", {"scheduler": part}))
    script = Script(frozenset({"scheduler"}))
    (pass_,) = run.scheduler.passes()  # type: ignore[attr-defined]
    pass_.script(script, setting)
    assert script.paragraphs == [
        "pipe.scheduler = FlowMatchHeunDiscreteScheduler.from_config(pipe.scheduler.config, shift=5.0)"
    ]


def test_deepcache_is_told_the_step_where_a_solver_visits_timesteps_twice(tmp_path: Path) -> None:
    """PNDM's second and third step share a timestep, and every second step is computed in full."""
    pytest.importorskip("DeepCache")
    plan = plan_of(
        "device=cpu",
        "generation.steps=5",
        "cache=deepcache",
        "cache.interval=2",
        "scheduler=pndm",
    )
    assert_same(drawn(plan, tmp_path, *MODEL), Ran(plan))
    assert "itertools.count()" in script_of(plan, "a test")


FORBIDDEN = """\
import json, runpy, sys
sys.modules["fastdiff"] = None
for line in json.loads(sys.argv[1]):
    sys.argv = line
    runpy.run_path(line[0], run_name="__main__")
"""
"""Runs scripts, one after the other, where `import fastdiff` raises ImportError."""


def test_scripts_need_no_fastdiff(tmp_path: Path) -> None:
    chosen = {
        "pyramid": ("cache=pyramid_attention", "scheduler=ddim", "attention=sdpa_math"),
        "layerwise": ("memory=layerwise", "memory.vae_slicing=true", "attention=math"),
        "int8": ("precision=bf16", "quant=int8", "qkv=fused", "memory_format=channels_last"),
    }
    plans, lines = {}, []
    for name, choices in chosen.items():
        (tmp_path / name).mkdir()
        plans[name] = plan_of("device=cpu", "generation.steps=2", *choices)
        script = written(plans[name], tmp_path / name)
        lines.append([str(script), *MODEL, "--out", str(tmp_path / f"{name}.png")])
    line = [sys.executable, "-c", FORBIDDEN, json.dumps(lines)]
    subprocess.run(line, check=True, capture_output=True, timeout=300)
    for name, plan in plans.items():
        assert_same([tmp_path / f"{name}.png"], Ran(plan))


# What is compiled --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _own_inductor_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("_own_inductor_cache")
@pytest.mark.parametrize(
    "tried",
    COMPILED,
    ids=lambda c: c.option,
)
def test_each_compiled_option_draws_nearly_the_same_picture(
    tried: Case,
    smallest_folder: Path,
    sd_folder: Path,
    flux_folder: Path,
    local_plan: Any,
    tmp_path: Path,
) -> None:
    import torch

    from fastdiff.measuring.quality import compare

    folders = {"regional": sd_folder, "regions": flux_folder}
    folder = folders.get(tried.option, smallest_folder)
    plan = local_plan(folder, *tried.choices)
    torch._dynamo.reset()
    ran = Ran(plan)
    torch._dynamo.reset()
    pictures = opened(drawn(plan, tmp_path, "--model", str(folder)))
    psnr_db = compare(pictures, ran.pictures).psnr_db
    assert psnr_db is None or psnr_db > NEAR_DB  # None: identical


# Scripts that are read ---------------------------------------------------------------------------

H100 = Environment(
    python="3.12.1",
    os="Linux",
    cpu="Some CPU",
    cpu_flags=frozenset(),
    threads=8,
    memory_bytes=2**36,
    available_memory_bytes=2**36,
    gpus=(Gpu("NVIDIA H100", (9, 0), 2**36),),
    torch_cuda="12.8",
    versions={
        "torch": "2.13.0",
        "diffusers": "0.42.1",
        "torchao": "0.18.0",
        "transformers": "5.17",
    },
    modules=dict.fromkeys(("torchao", "xformers", "peft", "DeepCache", "torch", "triton"), True),
    tools=TOOLS,
)
CPU = replace(H100, gpus=(), torch_cuda=None)


def on(machine: Environment, *choices: str) -> Plan:
    run = compose(list(choices))
    return make_plan(run, machine, model_of(run).facts())


NEEDS = {
    ("quant", "fp8"): ("precision=bf16",),
    ("attention", "sdpa_flash"): ("precision=bf16",),
    ("attention", "sdpa_cudnn"): ("precision=bf16",),
    ("vae", "fp16_fix"): (f"vae.path={SHAPES_DIR}/vae",),
    ("lora", "file"): ("lora.path=ADAPTER",),
    ("lora", "lcm"): ("lora.path=ADAPTER",),
}
"""Choices that an option can't be planned without, on a GPU."""


def on_a_gpu(adapter: Path) -> Iterator[tuple[str, str]]:
    """The script of every option that a GPU can run with the embedded model, by a name."""
    for slot in OPTIONS:
        for option in (path.stem for path in options_of(slot)):
            if option in ("regions", "huge_pages") or option.startswith("flow_"):
                continue  # which this model, or any script, can't have
            more = [c.replace("ADAPTER", str(adapter)) for c in NEEDS.get((slot, option), ())]
            yield f"{slot}-{option}", script_of(on(H100, f"{slot}={option}", *more), "a test")


def test_every_script_is_as_ruff_would_have_it(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    scripts = {**dict(on_a_gpu(adapter)), "whole": script_of(on(CPU, *WHOLE), "a test", "shapes")}
    more = {
        "several": ("generation.prompt=[a,b]", "generation.negative_prompt=c"),
        "long": (f"generation.prompt=[{'a' * 60},{'b' * 60}]",),
        "leaves": ("memory=group_offload", "memory.offload_type=leaf_level"),
        "stream": ("memory=group_offload", "memory.use_stream=true", "precision=bf16"),
        "tags": ("compile=max_autotune", "attention=sdpa_math", "compile.cpp_wrapper=true"),
        "told": ("cache=deepcache", "scheduler=pndm"),
    }
    scripts |= {name: script_of(on(H100, *choices), "a test") for name, choices in more.items()}
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    config = ("--no-cache", "--config", str(ROOT / "pyproject.toml"))
    for verb in (["check"], ["format", "--diff"]):
        line = [sys.executable, "-m", "ruff", *verb, *config, str(tmp_path)]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not [name for name, text in scripts.items() if re.search("(import|from) fastdiff", text)]


WHOLE = (
    "precision=bf16",
    "qkv=fused",
    "memory_format=channels_last",
    "quant=int8",
    "quant.skip_shapes=[[640,320]]",
    "compile=default",
    "compile.freezing=true",
    "compile.epilogue_fusion=false",
    "generation.seed=3",
)


def test_a_whole_script() -> None:
    assert script_of(on(CPU, *WHOLE), "Team's quickest", "any model on cpu") == EXPECTED


EXPECTED = """\
# Team's quickest
# Made for any model on cpu.
# Exported for shapes on cpu, with torch 2.13.0, diffusers 0.42.1, torchao 0.18.0, transformers 5.17
# installed.

import argparse
import sys

import torch
from diffusers import DiffusionPipeline
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    quantize_,
    swap_conv2d_1x1_to_linear,
)

# Inputs and outputs of linear layers that stay as they are.
SKIPPED_SHAPES = {(640, 320)}

INDUCTOR_OPTIONS = {"epilogue_fusion": False}


def is_swapped(module, name):
    return (
        isinstance(module, torch.nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding in ((0, 0), 0)
        and module.groups == 1
        and 128 in (module.in_channels, module.out_channels)
    )


def is_quantized(module, name):
    return (
        isinstance(module, torch.nn.Linear)
        and module.in_features >= 17
        and (module.in_features, module.out_features) not in SKIPPED_SHAPES
    )


def noise_in_fp32(shape, generator=None, device=None, dtype=None, layout=None):
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


parser = argparse.ArgumentParser()
parser.add_argument(
    "--model",
    required=True,
    help="the embedded model: the folder models/shapes/pipeline in fastdiff's package",
)
parser.add_argument("--out", default="picture.png")
args = parser.parse_args()

torch._inductor.config.freezing = True

pipe = DiffusionPipeline.from_pretrained(args.model, dtype=torch.bfloat16, use_safetensors=True)

pipe.unet.fuse_qkv_projections()
pipe.vae.fuse_qkv_projections()

pipe.unet.to(memory_format=torch.channels_last)
pipe.vae.to(memory_format=torch.channels_last)

config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
for part in (pipe.unet, pipe.vae):
    swap_conv2d_1x1_to_linear(part, is_swapped)
    quantize_(part, config, filter_fn=is_quantized)

pipe.unet.forward = torch.compile(pipe.unet.forward, fullgraph=True, options=INDUCTOR_OPTIONS)
pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True, options=INDUCTOR_OPTIONS)

# Noise drawn in bfloat16 isn't that of the same seed in fp32, and so the picture isn't.
for part in (pipe, pipe.scheduler):
    sys.modules[part.__module__].randn_tensor = noise_in_fp32

image = pipe(
    prompt="a red circle left of a blue star on a white background",
    num_inference_steps=25,
    guidance_scale=4.0,
    height=64,
    width=64,
    generator=torch.Generator("cpu").manual_seed(3),
).images[0]
image.save(args.out)
"""


def lines_of(*choices: str) -> list[str]:
    return [line.strip() for line in script_of(on(H100, *choices), "a test").splitlines()]


def test_cuda_graphs_outputs_are_copied() -> None:
    lines = lines_of("compile=reduce_overhead", "compile.targets=[denoiser]")
    assert 'compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")' in lines
    assert "pipe.unet.forward = with_cuda_graphs(pipe.unet.forward)" in lines
    assert lines.index('pipe.to("cuda")') < lines.index(
        "pipe.unet.forward = with_cuda_graphs(pipe.unet.forward)"
    )


def test_flags_that_a_mode_has_itself_can_be_switched_off() -> None:
    text = script_of(on(H100, "compile=max_autotune"), "a test")
    assert (
        "INDUCTOR_OPTIONS = {\n"
        '    **torch._inductor.list_mode_options("max-autotune"),\n'
        '    "conv_1x1_as_mm": True,\n'
        '    "coordinate_descent_tuning": True,\n'
        '    "coordinate_descent_check_all_directions": True,\n'
        '    "epilogue_fusion": False,\n'
        "}\n"
    ) in text


def test_a_gpus_own_options() -> None:
    assert "torch.backends.cuda.matmul.allow_tf32 = True" in lines_of("precision=tf32")
    assert 'pipe.enable_model_cpu_offload(device="cuda")' in lines_of("memory=model_offload")
    assert 'pipe.to("cuda")' not in lines_of("memory=model_offload")
    fp8 = "config = Float8DynamicActivationFloat8WeightConfig("
    assert any(line.startswith(fp8) for line in lines_of("quant=fp8", "precision=bf16"))
    for option in ("int8", "int8_weight_only"):
        assert any('device="cuda")' in line for line in lines_of(f"quant={option}"))
    assert (
        "pipe.unet.forward = sdpa_kernel(SDPBackend.CUDNN_ATTENTION)(pipe.unet.forward)"
        in lines_of("attention=sdpa_cudnn", "precision=bf16")
    )


@pytest.mark.parametrize(
    ("choices", "count"),
    [
        ((), 107 - 15),
        (("generation.guidance_scale=1.0",), 107 - 55),
        (("memory=model_offload", "quant.swap_channels=[48]"), 107 - 15 + 3),
        (("vae=tiny", "qkv=fused"), 99 + 14 - 15),  # the 35 that fusing left unused are among them
    ],
)
def test_a_gpus_script_quantizes_the_layers_that_a_run_on_it_does(
    choices: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    """The script is run with a CPU in the GPU's place; it counts rows by itself."""
    from torchao.utils import TorchAOBaseTensor

    text = script_of(on(H100, "quant=int8", "generation.steps=1", *choices), "a test")
    assert "fastdiff" not in text.replace("models/shapes/pipeline in fastdiff's package", "")
    script = tmp_path / "script.py"
    lines = [line for line in text.splitlines() if "offload(" not in line]
    script.write_text("\n".join(lines).replace('"cuda"', '"cpu"'), encoding="utf-8")
    asks = ("--vae", str(SHAPES_TINY_VAE)) if "vae=tiny" in choices else ()
    line = [str(script), *MODEL, *asks, "--out", str(tmp_path / "picture.png")]
    with mock.patch.object(sys, "argv", line), undone():
        left = runpy.run_path(str(script), run_name="__main__")
    weights = [
        m.weight
        for part in (left["pipe"].unet, left["pipe"].vae)
        for m in part.modules()
        if hasattr(m, "weight")
    ]
    assert sum(isinstance(weight, TorchAOBaseTensor) for weight in weights) == count


def test_a_forced_kernel_has_a_compilers_cache_of_its_own() -> None:
    lines = lines_of("attention=sdpa_math", "compile=default")
    assert 'torch.compiler.config.cache_key_tag = "sdpa_math"' in lines
    assert lines.index("pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True)") < (
        lines.index("pipe.unet.forward = sdpa_kernel(SDPBackend.MATH)(pipe.unet.forward)")
    )


def test_groups_are_offloaded_but_the_vae_goes_layer_by_layer() -> None:
    text = script_of(on(H100, "memory=group_offload", "memory.use_stream=true"), "a test")
    assert (
        "for name, part in pipe.components.items():\n"
        "    if isinstance(part, torch.nn.Module):\n"
        "        apply_group_offloading(\n"
        "            part,\n"
        '            onload_device=torch.device("cuda"),\n'
        '            offload_type="leaf_level" if name == "vae" else "block_level",\n'
        "            num_blocks_per_group=1,\n"
        '            use_stream=name != "vae",\n'
        "        )\n"
    ) in text


@pytest.fixture
def _empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))


@pytest.mark.usefixtures("_empty_hub")
def test_a_published_model_is_loaded_by_its_name() -> None:
    choices = ("model=sdxl", "precision=fp16", "vae=fp16_fix", "lora=lcm", "scheduler=lcm")
    text = script_of(on(H100, *choices), "a test")
    assert "--model" not in text
    assert (
        "vae = AutoencoderKL.from_pretrained(\n"
        '    "madebyollin/sdxl-vae-fp16-fix",\n'
        "    dtype=torch.float16,\n"
        "    use_safetensors=True,\n"
        ")\n"
        "pipe = DiffusionPipeline.from_pretrained(\n"
        '    "stabilityai/stable-diffusion-xl-base-1.0",\n'
        "    dtype=torch.float16,\n"
        '    variant="fp16",\n'
        "    use_safetensors=True,\n"
        "    vae=vae,\n"
        ")\n"
        "\n"
        "pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)\n"
        "\n"
        'pipe.load_lora_weights("latent-consistency/lcm-lora-sdxl", use_safetensors=True)\n'
        'pipe.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])\n'
        "pipe.unload_lora_weights()\n"
    ) in text


@pytest.mark.usefixtures("_empty_hub")
def test_a_model_without_its_filter_and_its_student() -> None:
    text = script_of(on(H100, "model=sd15", "model.revision=v1"), "a test")
    for line in (
        '    revision="v1",\n',
        "    safety_checker=None,\n",
        "    requires_safety_checker=False,\n",
    ):
        assert line in text
    assert '"nota-ai/bk-sdm-small"' in script_of(on(H100, "model=sd15", "model.role=student"), "t")


@pytest.mark.parametrize(
    ("more", "given"),
    [((), ""), (("model.config=DIR",), ", config=args.config, local_files_only=True")],
)
def test_a_single_file_is_asked_for(more: tuple[str, ...], given: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    parts = ARCHITECTURES["sd1"].components
    roots = {
        "unet": "model.diffusion_model",
        "vae": "first_stage_model",
        "text_encoder": "cond_stage_model.transformer.text_model",
    }
    keys = (
        f"{root}.{key}"
        for name, root in roots.items()
        for key in original_names(parts[name].class_name, parts[name].config) or ()
    )
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "m.safetensors")
    choices = ("model=single_file", f"model.path={tmp_path}/m.safetensors", "precision=fp16")
    text = script_of(on(H100, *choices, *more), "a test")
    loads = "pipe = StableDiffusionPipeline.from_single_file("
    flat = re.sub(r"\(\s+", "(", text).replace(",\n)", ")").replace("\n    ", " ")
    assert f"{loads}args.model, dtype=torch.float16{given})" in flat
    assert ('"--config"' in text) is bool(given)


# Refusals ----------------------------------------------------------------------------------------


def refusal(plan: Plan) -> str:
    with pytest.raises(ScriptError) as refused:
        script_of(plan, "a test")
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_random_weights_are_refused() -> None:
    assert refusal(on(H100, "model=sdxl", "model.weights=random")) == (
        "model.weights=random can't be written as a plain script\n"
        "  why: the numbers are drawn by fastdiff itself\n"
        "  instead: model.weights=hub, or model=local model.path=DIR"
    )


@pytest.mark.usefixtures("_empty_hub")
def test_a_model_that_nobody_has_seen_is_refused() -> None:
    assert refusal(on(H100, "model=hub", "model.id=team/model")) == (
        "model=hub can't be written as a plain script\n"
        "  why: team/model is not on this machine, so nobody knows its parts\n"
        "  instead: a run first, which downloads it"
    )


def test_a_pipeline_that_lies_nowhere_is_refused() -> None:
    plan = on(CPU)
    plan.setting.run.model = Given(SimpleNamespace(), keeps_dtype=False, device="cpu")
    assert refusal(plan) == (
        "this SimpleNamespace can't be written as a plain script\n"
        "  why: it is in no place from which it could be loaded\n"
        "  instead: model=local model.path=DIR, a folder that save_pretrained() wrote"
    )


class Ours(Pass):
    """A pass as a plug-in may bring one."""

    key = "theirs.ours"
    stage = Stage.LAYOUT
    does = "something of its own"

    def apply(self, pipeline: Any, context: Context) -> Effect:
        return Effect(self.key, 1, "things")


class FusedOtherwise(Fused):
    """Does something else than the pass that it derives from, whose script it inherits."""

    key = "theirs.fused"

    def apply(self, pipeline: Any, context: Context) -> Effect:
        return Effect(self.key, 1, "things")


class LoadedOtherwise(Fp32):
    key = "theirs.loaded"

    def prepare(self, loading: Any) -> None:
        loading.dtype = None


@pytest.mark.parametrize("kind", [Ours, FusedOtherwise, LoadedOtherwise])
def test_a_pass_without_a_script_of_its_own_is_refused(kind: type[Pass]) -> None:
    plan = on(CPU)
    step = Step(kind(), Stage.LAYOUT, (), "something")
    assert refusal(replace(plan, steps=(*plan.steps, step))) == (
        f"{kind.key} can't be written as a plain script\n"
        f"  why: {__name__}.{kind.__name__} has no script() of its own, which would say how\n"
        "  instead: leave it out, or ask whoever made it for one"
    )


def test_every_pass_that_ships_has_a_script_of_its_own() -> None:
    for options in OPTIONS.values():
        for kind in options.values():
            if issubclass(kind, Pass):
                assert kind.script is not Pass.script


def test_a_vae_that_groups_can_not_offload_is_refused() -> None:
    facts = Shapes().facts()
    other = Component("vae", "diffusers", "VQModel", None, None)
    run = compose(["device=cuda", "memory=group_offload"])
    parts = {**facts.components, "vae": other}
    assert refusal(make_plan(run, H100, ModelFacts(facts.pipeline, parts))) == (
        "memory=group_offload can't be written as a plain script\n"
        "  why: diffusers doesn't offload VQModel in groups\n"
        "  instead: memory=model_offload"
    )


def test_a_name_can_not_bring_code_along() -> None:
    plan = on(CPU)
    title = 'x"""\nimport os\r# coding: utf-7\x00\u2028raise SystemExit'
    text = script_of(plan, title, "a\nb")
    head = text.splitlines()[:3]
    assert head[0] == '# x""" import os # coding : utf-7  raise SystemExit'
    assert head[1] == "# Made for a b."
    assert all(line.startswith("# ") for line in head)
    assert compile(text.encode(), "script.py", "exec").co_names[:2] == ("argparse", "torch")
