"""Whatever was applied to a pipeline is undone: of every option that there is, weights bit by bit, hooks, attributes and flags."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NEEDS_A_GPU
from diffusers import DiffusionPipeline
from torch import nn

import fastdiff
from fastdiff.choices.options import default_options, option_files
from fastdiff.choices.plugins import GROUP, plugins
from fastdiff.errors import MachineProblem, NoEffectError, PlanError
from fastdiff.models.given import modules_of
from fastdiff.passes.allocator import lacks
from fastdiff.passes.base import Option
from fastdiff.passes.precision import Tf32Flag
from fastdiff.planning.undo import flags_put_back, undone

NOT_FOR_A_GIVEN_PIPELINE = ("model", "bench", "quality")
OPTIONS = [
    (slot, name)
    for slot, options in option_files().items()
    if slot not in NOT_FOR_A_GIVEN_PIPELINE
    for name in options
    if name
    != "flow_heun"  # which none of these pipelines could call; the others of flow matching stand for it
]
WITH_IT = {"sdpa_cudnn": {"precision": "bf16"}, "fp8": {"precision": "bf16"}}
"""What some of them can't be without."""
LEAVES_NO_TRACE = {
    ("precision", "fp32"),
    ("scheduler", "euler"),
    ("scheduler", "flow_euler"),
    ("allocator", "huge_pages"),
}
"""Options that hold already on the pipeline of these tests, or change nothing of it."""
MORE = [
    ("memory", {"vae_slicing": True, "vae_tiling": True}),
    ("precision", {"option": "bf16", "tf32": True}),
    ("quant", {"option": "int8", "swap_channels": [8, 16]}),
    ("compile", {"option": "default", "freezing": True}),
]
"""Keys that bring passes of their own, or change what a pass leaves."""


def picture(pipeline: Any) -> str:
    """Hash of what it draws, 32x32 in two steps, from the same latents whatever the pipeline's precision is."""
    denoiser = next(m for n, m in modules_of(pipeline).items() if n in ("unet", "transformer"))
    dtype = next(w.dtype for w in denoiser.parameters() if w.is_floating_point())
    dtype = dtype if dtype.itemsize > 1 else torch.float32
    noise = torch.randn(shape_of(pipeline), generator=torch.Generator().manual_seed(1)).to(dtype)
    return hashlib.sha256(drawn(pipeline, latents=noise).tobytes()).hexdigest()


def drawn(pipeline: Any, **more: Any) -> Any:
    """Pixels in [0, 1], (1, 32, 32, 3)."""
    return pipeline(
        "a red circle",
        num_inference_steps=2,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **more,
    ).images


def shape_of(pipeline: Any) -> tuple[int, ...]:
    """Of its starting latents."""
    if hasattr(pipeline, "transformer"):
        return (1, 64, 4)
    return (1, pipeline.unet.config.in_channels, *(32 // pipeline.vae_scale_factor,) * 2)


def looks(pipeline: Any) -> dict[str, Any]:
    """Everything about a pipeline and its modules that something could have left behind."""
    found: dict[str, Any] = {"": of_object(pipeline), "config": dict(pipeline.config)}
    for name, module in modules_of(pipeline).items():
        for path, part in module.named_modules():
            found[f"{name}:{path}"] = of_object(part)
            for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None:
                    found[f"{name}:{path}:{key}"] = of_tensor(tensor)
    return found


def of_object(owner: Any) -> Any:
    attributes = vars(owner)
    inside = {key: of_container(value) for key, value in attributes.items()}
    return id(owner), type(owner), list(attributes), inside


def of_container(value: Any) -> Any:
    if isinstance(value, (dict, OrderedDict)):
        return id(value), [(key, id(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return id(value), [id(inner) for inner in value]
    if isinstance(value, set):
        return id(value), sorted(map(id, value))
    return id(value)


def of_tensor(tensor: torch.Tensor) -> Any:
    if type(tensor.data) is not torch.Tensor:
        return id(tensor), type(tensor)  # a quantized one is made of others
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return (
        *(id(tensor), type(tensor), tensor.data_ptr(), tensor.dtype, tensor.device),
        *(tensor.shape, tensor.stride(), tensor.requires_grad),
        hashlib.sha256(content.data).hexdigest(),
    )


def around() -> dict[str, Any]:
    """What of the process is nobody's but the user's, beside torch's settings."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    torchs_own = re.compile("TORCHINDUCTOR|TRITON_CACHE_DIR")  # set by its first compile
    return {
        "variables": {k: v for k, v in os.environ.items() if not torchs_own.search(k)},
        "filters": list(warnings.filters),
        "levels": [
            logging.getLogger().level,
            of_diffusers.get_verbosity(),
            of_transformers.get_verbosity(),
        ],
        "diffusers' progress bars": of_diffusers.is_progress_bar_enabled(),
    }


def pipeline_from(folder: Path) -> Any:
    found = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def tiny(sd_folder: Path) -> Any:
    """One pipeline for all options: whatever one of them left would show in the next test as well."""
    return pipeline_from(sd_folder)


@pytest.fixture(scope="module")
def smallest(smallest_folder: Path) -> Any:
    return pipeline_from(smallest_folder)


@pytest.fixture(scope="module")
def flux(flux_folder: Path) -> Any:
    return pipeline_from(flux_folder)


@pytest.fixture(scope="module")
def keys(
    sd_folder: Path, sd_taesd_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict[str, Any]]:
    """What options must be told to work on the tiny pipeline."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("parts")
    vae = AutoencoderKL.from_pretrained(sd_folder / "vae")
    vae.register_to_config(force_upcast=False)
    vae.save_pretrained(folder / "fixed")
    query = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    adapter = {
        f"{query}.lora_A.weight": torch.full((2, 16), 0.1),
        f"{query}.lora_B.weight": torch.full((16, 2), 0.1),
    }
    save_file(adapter, folder / "adapter.safetensors")
    path = str(folder / "adapter.safetensors")
    return {
        ("lora", "file"): {"path": path},
        ("lora", "lcm"): {"path": path},
        ("vae", "tiny"): {"path": str(sd_taesd_folder / "vae")},
        ("vae", "fp16_fix"): {"path": str(folder / "fixed")},
    }


def marked(slot: str, name: str) -> Any:
    marks = []
    if (slot, name) in NEEDS_A_GPU:
        marks.append(pytest.mark.gpu)
    if slot == "compile" and name != "none":
        marks += [pytest.mark.slow, *([] if name == "regional" else [pytest.mark.exhaustive])]
    return pytest.param(slot, name, marks=marks, id=f"{slot}={name}")


def variables_of(slot: str, name: str) -> Mapping[str, str]:
    option = option_files()[slot][name].option()
    assert isinstance(option, Option)
    return option.variables()


@pytest.mark.parametrize(("slot", "name"), [marked(slot, name) for slot, name in OPTIONS])
def test_every_option_is_undone(
    slot: str,
    name: str,
    request: pytest.FixtureRequest,
    keys: dict[tuple[str, str], dict[str, Any]],
    global_state: Callable[[], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in variables_of(slot, name).items():
        monkeypatch.setenv(variable, value)  # as if the process had begun with it
    if slot == "allocator" and (reason := lacks()):
        pytest.skip(reason)
    needs = {("lora", "file"): "peft", ("lora", "lcm"): "peft", ("cache", "deepcache"): "DeepCache"}
    pytest.importorskip(needs.get((slot, name), "torch"))
    if name == "xformers":
        pytest.importorskip("xformers")
    whole = {"regional": "tiny", "regions": "flux"}  # the smallest one has no blocks that repeat
    compiles = slot == "compile" and name != "none"
    which = whole.get(name, "smallest") if compiles else "tiny"
    which = "flux" if name.startswith("flow_") else which
    choices: dict[str, Any] = {slot: {"option": name, **keys.get((slot, name), {})}}
    if (slot, name) in NEEDS_A_GPU:
        choices |= {"device": "cuda", **WITH_IT.get(name, {})}
    pipeline = request.getfixturevalue(which)
    if name == "flow_dpm_solver":
        shifted = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, use_dynamic_shifting=True
        )
        monkeypatch.setattr(pipeline, "scheduler", shifted)
    check_undone(pipeline, choices, global_state)


@pytest.mark.parametrize(
    ("slot", "choice"),
    [
        pytest.param(
            slot,
            choice,
            marks={"precision": pytest.mark.gpu, "compile": pytest.mark.exhaustive}.get(slot, ()),
            id=f"{slot}={choice}",
        )
        for slot, choice in MORE
    ],
)
def test_so_are_keys_that_bring_passes(
    slot: str, choice: Any, request: pytest.FixtureRequest, global_state: Any
) -> None:
    pipeline = request.getfixturevalue("smallest" if slot == "compile" else "tiny")
    more = {"device": "cuda"} if slot == "precision" else {}
    check_undone(pipeline, {slot: choice, **more}, global_state)


def check_undone(pipeline: Any, choices: dict[str, Any], global_state: Any) -> None:
    """Apply, draw, leave: nothing is left, and the next picture is the one before."""
    before = picture(pipeline)
    state, process = global_state(), around()
    was = looks(pipeline)
    with fastdiff.applied(pipeline, **choices) as found:
        assert found.pipeline is pipeline
        picture(pipeline)
        inside = looks(pipeline)
    assert looks(pipeline) == was
    assert picture(pipeline) == before
    assert global_state() == state
    assert around() == process
    for slot, choice in choices.items():
        name = choice.get("option") if isinstance(choice, dict) else choice
        if name != default_options().get(slot, name) and (slot, name) not in LEAVES_NO_TRACE:
            assert inside != was  # or this test would show nothing


@pytest.mark.parametrize(("slot", "name"), sorted(NEEDS_A_GPU))
def test_what_is_left_to_a_gpu_can_not_be_had_here(slot: str, name: str, tiny: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(PlanError) as error, fastdiff.applied(tiny, **{slot: name}):
        pytest.fail("it needs no GPU")
    assert any(isinstance(problem, MachineProblem) for problem in error.value.problems)


# However it ends -------------------------------------------------------------------------------------


def test_an_error_in_the_block_undoes_all_the_same(tiny: Any) -> None:
    was = looks(tiny)
    with (
        pytest.raises(ZeroDivisionError),
        fastdiff.applied(tiny, qkv="fused", memory_format="channels_last"),
    ):
        raise ZeroDivisionError
    assert looks(tiny) == was


def test_what_was_applied_before_an_error_is_undone(tiny: Any) -> None:
    """Quantizing comes after fusing and finds no layer of so many inputs."""
    was = looks(tiny)
    with (
        pytest.raises(NoEffectError, match=r"quant\.int8_weight_only changed 0 linears"),
        fastdiff.applied(
            tiny,
            qkv="fused",
            precision="bf16",
            quant={"option": "int8_weight_only", "min_in_features": 100_000},
        ),
    ):
        pytest.fail("nothing was quantized")
    assert looks(tiny) == was


def test_everything_together_is_undone(tiny: Any, keys: Any, global_state: Any) -> None:
    before, state = picture(tiny), global_state()
    was = looks(tiny)
    with fastdiff.applied(
        tiny,
        precision="bf16",
        scheduler="ddim",
        lora={"option": "file", **keys["lora", "file"]},
        vae={"option": "tiny", **keys["vae", "tiny"]},
        qkv="fused",
        memory_format="channels_last",
        quant="int8_weight_only",
        attention="sdpa_math",
        cache={"option": "pyramid_attention", "timestep_skip_range": [0, 1000]},
    ) as found:
        assert picture(tiny) != before
        assert [effect.name for effect in found.effects] == [
            "precision.bf16",
            "vae.tiny",
            "scheduler.ddim",
            "lora.file",
            "qkv.fused",
            "memory_format.channels_last",
            "quant.int8_weight_only",
            "device",
        ]
        assert found.pending == ("cache.pyramid_attention", "attention.sdpa_math")
    assert looks(tiny) == was
    assert picture(tiny) == before
    assert global_state() == state


def test_one_block_after_another_and_one_in_another(tiny: Any) -> None:
    was, before = looks(tiny), picture(tiny)
    was = looks(tiny)
    with fastdiff.applied(tiny, scheduler="ddim"):
        outer, between = looks(tiny), picture(tiny)
        outer = looks(tiny)
        with fastdiff.applied(tiny, qkv="fused"):
            with fastdiff.applied(tiny, quant="int8_weight_only"):
                assert picture(tiny) != between
            assert {m.fused_projections for m in attentions(tiny)} == {True}
        assert looks(tiny) == outer
        assert picture(tiny) == between
    with fastdiff.applied(tiny, scheduler="ddim"):
        assert picture(tiny) == between != before
    assert looks(tiny) == was
    assert picture(tiny) == before


def attentions(pipeline: Any) -> list[Any]:
    return [m for m in pipeline.unet.modules() if hasattr(m, "fused_projections")]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-in in tests/plugin, installed. Its pass rounds weights where they lie in memory."""
    info = tmp_path / "example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    point = "quant.example_rounded = fastdiff_plugin_example:Rounded"
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{point}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugin"))
    plugins.cache_clear()
    yield
    plugins.cache_clear()
    sys.modules.pop("fastdiff_plugin_example", None)


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_that_writes_into_weights_is_undone(tiny: Any, global_state: Any) -> None:
    check_undone(tiny, {"quant": {"option": "example_rounded", "bits": 3}}, global_state)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_code_with_weights_in_it_is_not_taken_for_other_weights(smallest: Any) -> None:
    """torch keeps what it compiled for a parameter, and a second block has the same one, with other numbers."""
    choice = {"option": "default", "freezing": True, "targets": ["denoiser"]}
    first = smallest.unet.conv_in.weight.data
    with fastdiff.applied(smallest, compile=choice):
        drawn(smallest)
    try:
        smallest.unet.conv_in.weight.data = first * 3
        with fastdiff.applied(smallest, compile=choice):
            compiled = drawn(smallest)
        assert abs(compiled - drawn(smallest)).max() < 1e-4
    finally:
        smallest.unet.conv_in.weight.data = first
    assert abs(compiled - drawn(smallest)).max() > 1e-2


# What a pass could do --------------------------------------------------------------------------------


def hook(unet: Any) -> None:
    unet.conv_in.register_forward_pre_hook(lambda *_: None)
    unet.mid_block.register_forward_hook(lambda *_: None, with_kwargs=True)


def set_attributes(unet: Any) -> None:
    unet.mark = 1
    unet.conv_in.forward = lambda x: x
    del unet.training


def replace_parts(unet: Any) -> None:
    unet.conv_in = nn.Identity()
    unet.add_module("more", nn.Linear(2, 2))
    del unet.conv_out


def replace_weights(unet: Any) -> None:
    unet.conv_in.weight = nn.Parameter(torch.zeros(1))
    del unet.conv_in.bias
    unet.conv_out.register_parameter("more", nn.Parameter(torch.zeros(1)))
    unet.conv_out.register_buffer("even_more", torch.zeros(1), persistent=False)


def cast(unet: Any) -> None:
    unet.to(torch.float64)


def lay_out(unet: Any) -> None:
    unet.to(memory_format=torch.channels_last)


def freeze(unet: Any) -> None:
    unet.requires_grad_(False)


def train(unet: Any) -> None:
    unet.train(not unet.training)


def change_class(unet: Any) -> None:
    unet.conv_in.__class__ = type("Other", (nn.Conv2d,), {})


def turn_blocks_round(unet: Any) -> None:
    blocks = unet.up_blocks
    blocks[0], blocks[1] = blocks[1], blocks[0]


@pytest.mark.parametrize(
    "change",
    [
        *(hook, set_attributes, replace_parts, replace_weights, cast, lay_out, freeze, train),
        *(change_class, turn_blocks_round),
    ],
    ids=lambda change: change.__name__,
)
def test_every_kind_of_change_is_undone(change: Callable[[Any], None], tiny: Any) -> None:
    was = looks(tiny)
    with undone(tiny):
        change(tiny.unet)
        assert looks(tiny) != was
    assert looks(tiny) == was


def test_so_is_what_is_set_on_the_pipeline_itself(tiny: Any) -> None:
    from diffusers import DDIMScheduler

    was = looks(tiny)
    with undone(tiny):
        tiny.scheduler = DDIMScheduler.from_config(tiny.scheduler.config)
        tiny.unet = None
        tiny.maybe_free_model_hooks = lambda: None
        tiny.register_to_config(mark=1)
        tiny.set_progress_bar_config(disable=False)
        assert tiny.config["scheduler"] == ("diffusers", "DDIMScheduler")
    assert looks(tiny) == was
    assert tiny.config["scheduler"] == ("diffusers", "EulerDiscreteScheduler")


def test_diffusers_own_hooks_that_were_there_before_stay(sd_folder: Path) -> None:
    pipeline = pipeline_from(sd_folder)
    pipeline.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    registry, was = pipeline.unet.conv_in._diffusers_hook, looks(pipeline)
    names, order = list(registry.hooks), list(registry._hook_order)
    with undone(pipeline):
        registry.hooks["another"] = registry.hooks[names[0]]
        registry._hook_order.append("another")
    assert pipeline.unet.conv_in._diffusers_hook is registry
    assert (list(registry.hooks), registry._hook_order) == (names, order)
    assert looks(pipeline) == was


def test_numbers_that_are_written_into_weights_need_copies(tiny: Any) -> None:
    was = looks(tiny)
    with undone(tiny, {"unet", "scheduler"}), torch.no_grad():
        for tensor in [*tiny.unet.parameters(), *tiny.unet.buffers()]:
            tensor.mul_(2)
        assert tiny.vae.decoder.conv_in.weight.data_ptr() == was["vae:decoder.conv_in:weight"][2]
    assert looks(tiny) == was


def test_weights_that_are_frozen_are_other_parameters_with_the_same_numbers(tiny: Any) -> None:
    weight, was = tiny.unet.conv_in.weight, looks(tiny)
    with undone(tiny, frozen={"unet"}):
        inside = tiny.unet.conv_in.weight
        assert inside is not weight
        assert inside.data_ptr() == weight.data_ptr()
        assert tiny.vae.decoder.conv_in.weight.data_ptr() == was["vae:decoder.conv_in:weight"][2]
    assert looks(tiny) == was


@pytest.mark.parametrize("how", [{}, {"overwritten": {"unet"}}, {"frozen": {"unet", "vae"}}])
def test_weights_that_modules_share_stay_shared(how: dict[str, set[str]], sd_folder: Path) -> None:
    pipeline = pipeline_from(sd_folder)
    pipeline.unet.conv_out.bias = pipeline.vae.encoder.conv_in.bias
    was = looks(pipeline)
    with undone(pipeline, **how):
        assert pipeline.unet.conv_out.bias is pipeline.vae.encoder.conv_in.bias
        pipeline.unet.to(torch.bfloat16)
        assert pipeline.vae.encoder.conv_in.bias.dtype == torch.bfloat16
    assert looks(pipeline) == was


# Flags -----------------------------------------------------------------------------------------------


@pytest.fixture
def pristine_flags() -> Iterator[None]:
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(matmul)
    cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.usefixtures("pristine_flags")
def test_flags_are_put_back_as_their_user_had_them(precision: str, global_state: Any) -> None:
    torch.set_float32_matmul_precision(precision)
    before = global_state()
    cudnn = torch.backends.cudnn
    with flags_put_back():
        Tf32Flag().apply(None, None)  # type: ignore[arg-type]
        cudnn.allow_tf32, cudnn.benchmark = not cudnn.allow_tf32, not cudnn.benchmark
        assert torch.backends.cuda.matmul.allow_tf32
    assert global_state() == before
    assert torch.get_float32_matmul_precision() == precision
