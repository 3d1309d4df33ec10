"""Quantized linear layers, counted anew from the module tree and the documents' own filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastdiff.choices.compose import compose
from fastdiff.errors import NoEffectError, RunError
from fastdiff.models.given import dead_projections
from fastdiff.models.pictures import draw
from fastdiff.passes.base import Context
from fastdiff.passes.effects import Effect
from fastdiff.passes.memory import ModelOffload
from fastdiff.passes.quant import Int8
from fastdiff.planning.build import build

SKIPPED_BY_THE_DOCUMENTS = [
    (1280, 640),
    (1920, 1280),
    (1920, 640),
    (2048, 1280),
    (2048, 2560),
    (2560, 1280),
    (256, 128),
    (2816, 1280),
    (320, 640),
    (512, 1536),
    (512, 256),
    (512, 512),
    (640, 1280),
    (640, 1920),
    (640, 320),
    (640, 5120),
    (640, 640),
    (960, 320),
    (960, 640),
]
"""`dynamic_quant_filter_fn` of the documents, typed anew."""


def documents_linear_filter(module: Any) -> bool:
    from torch import nn

    return (
        isinstance(module, nn.Linear)
        and module.in_features > 16
        and (module.in_features, module.out_features) not in SKIPPED_BY_THE_DOCUMENTS
    )


def documents_convolution_filter(module: Any) -> bool:
    from torch import nn

    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and 128 in [module.in_channels, module.out_channels]
    )


def quantized(part: Any) -> list[str]:
    """Paths of the linear layers whose weight is a torchao tensor."""
    from torch import nn
    from torchao.utils import TorchAOBaseTensor

    return [
        path
        for path, module in part.named_modules()
        if isinstance(module, nn.Linear) and isinstance(module.weight, TorchAOBaseTensor)
    ]


def chosen_by_the_documents(part: Any) -> list[str]:
    return [path for path, module in part.named_modules() if documents_linear_filter(module)]


def test_the_filter_as_data_is_the_documents_filter() -> None:
    import torch
    from torch import nn

    option: Any = compose(["quant=int8"]).quant
    sizes = sorted({size for pair in SKIPPED_BY_THE_DOCUMENTS for size in pair} | {1, 16, 17, 100})
    with torch.device("meta"):
        layers = [nn.Linear(i, o) for i in sizes for o in sizes]
        convolutions = [
            nn.Conv2d(i, o, k) for i in (4, 64, 128, 256) for o in (4, 64, 128, 256) for k in (1, 3)
        ]
    for layer in layers:
        assert option.chooses(layer) == documents_linear_filter(layer)
    for convolution in convolutions:
        assert option.swaps(convolution) == documents_convolution_filter(convolution)
        assert not option.chooses(convolution)
    assert [tuple(pair) for pair in option.skip_shapes] == SKIPPED_BY_THE_DOCUMENTS


def test_int8_quantizes_what_the_documents_filter_chooses(
    shapes_run: Callable[..., Any], shapes_plain: Any, global_state: Any
) -> None:
    """None of the embedded model's shapes is on the list: all 99 linears of the UNet, all 8 of the VAE."""
    before = global_state()
    ran = shapes_run("quant=int8")
    effect = ran.effects(kernels=ran.kernels())["quant.int8"]

    plain = shapes_plain.pipeline
    for name, count in (("unet", 99), ("vae", 8)):
        expected = chosen_by_the_documents(getattr(plain, name))
        assert len(expected) == count
        assert quantized(getattr(ran.pipeline, name)) == expected
    assert str(effect) == "quant.int8 107 linears"
    assert effect.details["components"] == {"unet": 99, "vae": 8}
    assert effect.details["dead_projections_left_out"] == 0
    assert effect.details["convolutions_swapped"] == 0
    assert ran.psnr_db(shapes_plain) > 20
    assert global_state() == before


def test_int8_weights_are_int8_and_close_to_what_they_were(
    shapes_plain: Any, shapes_plan: Callable[..., Any]
) -> None:
    import torch

    pipeline = build(shapes_plan("quant=int8")).pipeline
    path = quantized(pipeline.unet)[20]
    weight = pipeline.unet.get_submodule(path).weight
    before = shapes_plain.pipeline.unet.get_submodule(path).weight
    stored = [getattr(weight, name) for name in weight.tensor_data_names]
    assert torch.int8 in {tensor.dtype for tensor in stored}
    step = before.abs().amax(dim=1, keepdim=True) / 127
    assert ((weight.dequantize() - before).abs() <= step).all()


def test_int8_leaves_the_projections_that_fusing_replaced_alone(
    shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    """Self-attention keeps 3 dead projections, cross-attention 2; 7 + 7 blocks in the UNet, 2 + 0 in the VAE.

    UNet: 99 linears, 14 joined ones more, 7*3 + 7*2 = 35 dead: 78. VAE: 8 + 2 - 2*3 = 4.
    """
    ran = shapes_run("qkv=fused", "quant=int8")
    effect = ran.effects(kernels=ran.kernels())["quant.int8"]

    assert effect.details["components"] == {"unet": 99 + 14 - 35, "vae": 8 + 2 - 6}
    assert effect.details["dead_projections_left_out"] == 35 + 6
    for part in (ran.pipeline.unet, ran.pipeline.vae):
        dead = {
            f"{path}.{name}"
            for path, module in part.named_modules()
            for joined, names in (("to_qkv", "qkv"), ("to_kv", "kv"))
            if hasattr(module, joined)
            for name in (f"to_{letter}" for letter in names)
        }
        assert dead_projections(part) == dead
        assert set(quantized(part)) == set(chosen_by_the_documents(part)) - dead
    assert ran.psnr_db(shapes_plain) > 20


def test_a_model_whose_projections_are_apart_has_no_dead_ones(shapes_plain: Any) -> None:
    assert dead_projections(shapes_plain.pipeline.unet) == set()


@pytest.mark.parametrize("option", ["int8_weight_only", "fp8_weight_only"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weight_only_options_quantize_every_linear_and_keep_the_picture(
    option: str,
    precision: str,
    shapes_run: Callable[..., Any],
    shapes_plain: Any,
    global_state: Any,
) -> None:
    before = global_state()
    ran = shapes_run(f"quant={option}", f"precision={precision}")
    effect = ran.effects(kernels=ran.kernels())[f"quant.{option}"]
    assert str(effect) == f"quant.{option} 107 linears"
    assert len(quantized(ran.pipeline.unet)) == 99
    assert ran.psnr_db(shapes_plain) > 20
    assert global_state() == before


def test_int8_works_on_another_family(flux_folder: Path, local_run: Callable[..., Any]) -> None:
    plain, ran = local_run(flux_folder), local_run(flux_folder, "quant=int8")
    effect = ran.effects(kernels=ran.kernels())["quant.int8"]
    expected = {
        name: len(chosen_by_the_documents(getattr(plain.pipeline, name)))
        for name in ("transformer", "vae")
    }
    assert effect.details["components"] == expected
    assert expected["transformer"] > 10
    assert ran.psnr_db(plain) > 20


def test_a_threshold_that_no_layer_reaches_is_an_error(shapes_plan: Callable[..., Any]) -> None:
    with pytest.raises(NoEffectError) as refused:
        build(shapes_plan("quant=int8", "quant.min_in_features=100000"))
    assert str(refused.value) == (
        "quant.int8 changed 0 linears: it ran and did nothing on this model\n"
        "  instead: leave it out, or allow_no_effect=true to measure all the same"
    )


def test_a_threshold_that_no_layer_reaches_can_be_allowed(
    shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    ran = shapes_run("quant=int8", "quant.min_in_features=100000", "allow_no_effect=true")
    assert str(ran.effects(kernels={"flash": 14})["quant.int8"]) == "quant.int8 0 linears"
    assert ran.psnr_db(shapes_plain) > 100


def made_up_convolutions() -> Any:
    """One 1x1 convolution that is a linear layer in all but name, and five that aren't or weren't chosen."""
    from torch import nn

    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Conv2d(128, 32, 1)
            self.strided = nn.Conv2d(128, 32, 1, stride=2)
            self.padded = nn.Conv2d(128, 32, 1, padding=1)
            self.grouped = nn.Conv2d(128, 32, 1, groups=4)
            self.wide = nn.Conv2d(128, 32, 3)
            self.other = nn.Conv2d(64, 32, 1)

    return Convolutions()


def test_only_convolutions_that_are_linear_layers_in_all_but_name_are_swapped() -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    module, x = made_up_convolutions(), torch.randn(2, 128, 6, 6)
    widths = [layer.in_channels for layer in module.children()]
    before = [layer(x[:, :w]) for layer, w in zip(module.children(), widths, strict=True)]
    count = Int8(swap_channels=[128]).prepare_component(module)
    after = [layer(x[:, :w]) for layer, w in zip(module.children(), widths, strict=True)]

    assert count == 1
    kinds = {name: isinstance(layer, nn.Conv2d) for name, layer in module.named_children()}
    assert kinds == {
        "plain": False,
        "strided": True,
        "padded": True,
        "grouped": True,
        "wide": True,
        "other": True,
    }
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old)


def test_swapping_can_be_switched_off() -> None:
    module = made_up_convolutions()
    assert Int8(swap_conv=False, swap_channels=[128]).prepare_component(module) == 0


def test_swapped_convolutions_are_quantized_and_counted(
    shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    """Three 1x1 convolutions of the UNet have 48 channels on one side, none of the VAE."""
    from torch import nn

    expected = {
        name: [
            module
            for module in getattr(shapes_plain.pipeline, name).modules()
            if isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and 48 in (module.in_channels, module.out_channels)
        ]
        for name in ("unet", "vae")
    }
    assert {name: len(found) for name, found in expected.items()} == {"unet": 3, "vae": 0}
    ran = shapes_run("quant=int8", "quant.swap_channels=[48]")
    effect = ran.effects(kernels=ran.kernels())["quant.int8"]
    assert effect.details["convolutions_swapped"] == 3
    assert effect.details["components"] == {"unet": 99 + 3, "vae": 8}
    assert ran.psnr_db(shapes_plain) > 20


# On CUDA -------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Devices that torchao is asked to quantize on; it works where the layers are."""
    import torchao.quantization

    real, devices = torchao.quantization.quantize_, []

    def quantize_(*given: Any, device: Any = None, **more: Any) -> None:
        devices.append(device)
        real(*given, **more)

    monkeypatch.setattr(torchao.quantization, "quantize_", quantize_)
    return devices


def applied(plan: Any, pipeline: Any, *, option: Any = None) -> Effect:
    """What quantizing does to a pipeline as if the plan's device were a GPU, told the way in which the run will call it."""
    context = Context(
        replace(plan.setting, device="cuda"),
        draw=lambda pipe: draw(pipe, plan.setting.run.generation),
    )
    effect: Effect = (option or plan.setting.run.quant).apply(pipeline, context)
    return effect


@pytest.mark.parametrize(
    ("choices", "few"),
    [
        ((), 15),  # the embeddings of time and size, which see a row a picture
        (("generation.images_per_prompt=9",), 0),  # 18 rows
        (("generation.guidance_scale=1.0",), 15 + 40),  # 16 pixels at the lowest level
        (("generation.guidance_scale=1.0", "generation.images_per_prompt=2"), 15),
        (("generation.guidance_scale=1.0", "generation.height=128"), 15),
    ],
)
def test_layers_that_see_too_few_rows_in_this_run_are_left_out_on_cuda(
    choices: tuple[str, ...], few: int, shapes_plan: Callable[..., Any], asked: list[Any]
) -> None:
    plan = shapes_plan("quant=int8", *choices)
    pipeline = build(shapes_plan()).pipeline
    effect = applied(plan, pipeline)
    assert effect.changed == 107 - few
    assert effect.details["unfit_for_cuda_left_out"] == few
    assert len(quantized(pipeline.unet)) == 99 - few
    assert str(effect) == f"quant.int8 {107 - few} linears" + (
        f", {few} left as they are, for their rows or sides" if few else ""
    )
    embeddings = [p for p in quantized(pipeline.unet) if "emb" in p]
    assert bool(embeddings) == (few == 0)
    assert asked == ["cuda"] * effect.changed


def test_no_rows_are_counted_where_products_take_any(
    shapes_plan: Callable[..., Any], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdiff.passes.quant.fewest_rows", None)
    for option in ("int8_weight_only", "fp8_weight_only"):
        effect = applied(shapes_plan(f"quant={option}"), build(shapes_plan()).pipeline)
        assert (effect.changed, effect.details["unfit_for_cuda_left_out"]) == (107, 0)
    built = build(shapes_plan("quant=int8"))
    assert [str(e) for e in built.outcomes if "quant" in str(e)] == ["quant.int8 107 linears"]
    assert asked == ["cuda"] * 2 * 107 + [None] * 107


def test_swapped_convolutions_are_known_by_the_rows_of_their_pixels(
    shapes_plan: Callable[..., Any], asked: list[Any]
) -> None:
    choices = ("quant=int8", "quant.swap_channels=[48,96,144,192]", "generation.guidance_scale=1.0")
    pipeline = build(shapes_plan()).pipeline
    effect = applied(shapes_plan(*choices), pipeline)
    inside = {p: p.endswith(".mod") for p in quantized(pipeline.unet)}
    left = {
        p
        for p, m in pipeline.unet.named_modules()
        if p.endswith(".mod") and p not in quantized(pipeline.unet)
    }
    assert effect.details["convolutions_swapped"] == sum(inside.values()) + len(left)
    assert left  # 16 pixels at the lowest level
    assert all("down_blocks.2" in path or "up_blocks.0" in path for path in left)


def test_sides_that_are_no_multiples_of_8_are_left_out_on_cuda() -> None:
    from torch import nn

    takes = Int8.on_cuda.take  # type: ignore[union-attr]
    for inputs, outputs, taken in ((24, 16, True), (28, 16, False), (24, 20, False)):
        layer = nn.Linear(inputs, outputs)
        assert [takes(layer, rows) for rows in (17, 16, None)] == [taken, False, taken]


def test_weights_go_back_to_the_host_where_an_option_brings_them(
    shapes_plan: Callable[..., Any], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    moved: list[Any] = []
    own = nn.Linear.to
    monkeypatch.setattr(
        nn.Linear, "to", lambda layer, *to, **how: moved.append(to) or own(layer, *to, **how)
    )
    plan = shapes_plan("quant=int8")
    applied(plan, build(shapes_plan()).pipeline)
    assert moved == []
    plan.setting.run.memory = ModelOffload()
    effect = applied(plan, build(shapes_plan()).pipeline)
    assert moved == [("cpu",)] * effect.changed
    assert asked == ["cuda"] * 2 * effect.changed


def test_rows_that_can_not_be_counted_end_the_run_with_a_way_out(
    shapes_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_meta(part: Any) -> Any:
        raise NotImplementedError("aten::odd has no meta kernel\nand a long story")

    monkeypatch.setattr("fastdiff.models.rows.without_weights", no_meta)
    pipeline = build(shapes_plan()).pipeline
    with pytest.raises(RunError) as refused:
        applied(shapes_plan("quant=int8"), pipeline)
    assert str(refused.value) == (
        "quant=int8: CUDA's int8 products need 17 rows, and those of StableDiffusionXLPipeline's layers can't be "
        "counted: NotImplementedError: aten::odd has no meta kernel\n"
        "  instead: quant=int8_weight_only, which needs none"
    )
    assert "forward" not in vars(pipeline.unet)


def test_int8_in_fp16_overflows_where_the_notice_says(shapes_plan: Callable[..., Any]) -> None:
    """The sum of 1000 products of 1 and 1, the largest weight, is beyond 514 times it, and no number of fp16's own is too large."""
    import torch
    from torch import nn
    from torchao.quantization import quantize_

    def product(inputs: int, dtype: Any) -> float:
        layer = nn.Linear(inputs, 8, bias=False, dtype=dtype)
        layer.weight = nn.Parameter(torch.ones_like(layer.weight), requires_grad=False)
        quantize_(layer, Int8().torchao_config())
        return float(layer(torch.ones(32, inputs, dtype=dtype))[0, 0])

    assert product(512, torch.float16) == pytest.approx(512, rel=0.01)
    assert product(520, torch.float16) == float("inf")
    assert product(1000, torch.bfloat16) == pytest.approx(1000, rel=0.01)
    said = {n.text for n in shapes_plan("quant=int8", "precision=fp16").notices}
    assert (
        "in fp16 a product may become infinite from 514 times the largest weight of its row on, because torchao rounds it "
        "before the weights' scale; precision=bf16 has room for it"
    ) in said
    assert not any(
        "infinite" in n.text for n in shapes_plan("quant=int8", "precision=bf16").notices
    )


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        ("quant=int8", "precision=bf16", "compile=regional"),
        ("quant=int8", "precision=bf16", "compile=regional", "generation.guidance_scale=1.0"),
        ("quant=int8", "precision=bf16", "memory=model_offload", "compile=regional"),
        ("quant=fp8", "precision=bf16", "compile=regional"),
        ("quant=fp8", "precision=fp32", "quant.granularity=per_tensor", "compile=regional"),
    ],
)
def test_a_gpu_quantizes_and_keeps_the_picture(choice: tuple[str, ...]) -> None:
    from conftest import Ran, plan_of

    guidance = [word for word in choice if word.startswith("generation.")]
    plain = Ran(plan_of("device=cuda", "generation.steps=4", *guidance))
    assert Ran(plan_of("device=cuda", "generation.steps=4", *choice)).psnr_db(plain) > 20


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["none", "model_offload"])
def test_a_gpu_quantizes_layer_by_layer(memory: str) -> None:
    """It never holds the weights in the precision of the run and quantized; with an offload it holds one layer at a time."""
    import torch
    from conftest import plan_of

    plan = plan_of("device=cuda", "quant=int8_weight_only", f"memory={memory}", "precision=fp32")
    pipeline = build(plan_of("device=cpu")).pipeline
    unquantized = sum(p.nbytes for p in pipeline.unet.parameters())
    largest = max(p.nbytes for p in pipeline.unet.parameters())
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    applied(plan, pipeline)
    peak = torch.cuda.max_memory_allocated() - before
    devices = {pipeline.unet.get_submodule(p).weight.device.type for p in quantized(pipeline.unet)}
    assert devices == {"cuda" if memory == "none" else "cpu"}
    # Rounding a layer takes a few copies of it.
    assert peak < (unquantized / 2 if memory == "none" else 8 * largest + 2**20)


@pytest.mark.gpu
@pytest.mark.parametrize("quant", ["int8", "fp8"])
@pytest.mark.parametrize(
    "how",
    [(), ("memory.offload_type=leaf_level",), ("memory.use_stream=true",)],
    ids=["block", "leaf", "stream"],
)
def test_a_gpu_offloads_quantized_groups(quant: str, how: tuple[str, ...]) -> None:
    from conftest import Ran, plan_of

    words = ("device=cuda", "generation.steps=4", "precision=bf16")
    ran = Ran(plan_of(*words, f"quant={quant}", "memory=group_offload", *how))
    assert ran.effects(kernels=ran.kernels())["memory.group_offload"].changed > 1
    assert ran.psnr_db(Ran(plan_of(*words))) > 20
