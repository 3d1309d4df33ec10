"""Adapters fused into weights: exactly W + scale * B @ A, nothing of peft left, and every refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imagined import planned, problems
from said import cases

from fastdiff.errors import ModelError, NoEffectError
from fastdiff.passes.lora import left_out

pytest.importorskip("peft")

MID = "mid_block.attentions.0.transformer_blocks.0"
QUERIES = (
    f"{MID}.attn1.to_q",
    f"{MID}.attn1.to_k",
    f"{MID}.attn2.to_out.0",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
)
"""Four of the embedded UNet's linear layers; 96 channels in its second block, 144 in the middle."""
TEXT = "encoder.layers.0.self_attn.q_proj"
RANK = 4

Save = Callable[..., Path]


def matrices(rows: int, columns: int, seed: int, rank: int = RANK) -> tuple[Any, Any]:
    """A (rank, columns) and B (rows, rank)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, columns, generator=generator) * 0.2
    return down, torch.randn(rows, rank, generator=generator) * 0.2


def pair(layer: str, rows: int = 144, columns: int | None = None, seed: int = 0) -> dict[str, Any]:
    """An adapter of one layer in peft's spelling."""
    down, up = matrices(rows, columns or rows, seed)
    return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}


def four() -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for seed, path in enumerate(QUERIES):
        rows = 96 if path.startswith("down") else 144
        # Keys and values of cross-attention are not among them, so that every matrix is square.
        tensors |= pair(f"unet.{path}", rows, seed=seed)
    return tensors


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saving(tensors: dict[str, Any], name: str = "adapter.safetensors") -> Path:
        from safetensors.torch import save_file

        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return saving


def peft_layers(pipeline: Any) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return sum(isinstance(m, BaseTunerLayer) for part in parts for m in part.modules())


# What it does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_weights_are_the_old_ones_and_the_scaled_product(
    save: Save, shapes_run: Callable[..., Any], shapes_plain: Any, global_state: Any, scale: float
) -> None:
    import torch

    before = global_state()
    ran = shapes_run("lora=file", f"lora.path={save(four())}", f"lora.scale={scale}")
    effect = ran.effects(kernels={"flash": 14})["lora.file"]

    assert str(effect) == f"lora.file 4 layers, scale {scale:g}"
    assert effect.details["components"] == {"unet": 4}
    assert effect.details["ranks"] == [RANK]
    assert effect.details["file"] == "adapter.safetensors"
    new, old = ran.pipeline.unet.state_dict(), shapes_plain.pipeline.unet.state_dict()
    assert new.keys() == old.keys()
    changed = {name for name in old if not torch.equal(new[name], old[name])}
    assert changed == {f"{path}.weight" for path in QUERIES}
    for seed, path in enumerate(QUERIES):
        weight = old[f"{path}.weight"]
        down, up = matrices(*weight.shape, seed)
        torch.testing.assert_close(new[f"{path}.weight"], weight + scale * up @ down)
    assert peft_layers(ran.pipeline) == 0
    assert not hasattr(ran.pipeline.unet, "peft_config")
    assert 5 < ran.psnr_db(shapes_plain) < 40
    assert global_state() == before


def test_half_the_scale_moves_the_picture_less(
    save: Save, shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    file = save(four())
    whole, half = (
        shapes_run("lora=file", f"lora.path={file}", f"lora.scale={scale}") for scale in (1.0, 0.5)
    )
    assert half.psnr_db(shapes_plain) > whole.psnr_db(shapes_plain) + 1


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("fp32", 0.999, 1.001), ("bf16", 0.2, 0.8)]
)
def test_what_rounds_away_in_bf16_is_told(
    save: Save, shapes_run: Callable[..., Any], precision: str, least: float, most: float
) -> None:
    small = {key: t * 1e-3 if "lora_B" in key else t for key, t in four().items()}
    ran = shapes_run("lora=file", f"lora.path={save(small)}", f"precision={precision}")
    effect = ran.effects(kernels={"flash": 14})["lora.file"]

    arrived = effect.details["arrived"]
    assert least < arrived < most
    said = (
        ""
        if precision == "fp32"
        else (
            f", {arrived:.0%} of it: what is small against a weight rounds away (precision=fp32 keeps it)"
        )
    )
    assert str(effect) == f"lora.file 4 layers, scale 1{said}"


@pytest.mark.parametrize(
    ("layer", "down", "up"),
    [
        ("unet.{}", "lora.down.weight", "lora.up.weight"),
        ("lora_unet_{}", "lora_down.weight", "lora_up.weight"),
    ],
    ids=["older diffusers", "kohya"],
)
def test_other_spellings_do_the_same(
    save: Save, shapes_run: Callable[..., Any], layer: str, down: str, up: str
) -> None:
    import torch

    a, b = matrices(144, 144, 0)
    path = QUERIES[0].replace(".", "_") if "lora_" in layer else QUERIES[0]
    name = layer.format(path)
    tensors = {f"{name}.{down}": a, f"{name}.{up}": b}
    if "lora_" in layer:
        tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    other = shapes_run("lora=file", f"lora.path={save(tensors)}")
    peft = shapes_run("lora=file", f"lora.path={save(pair(f'unet.{QUERIES[0]}'), 'p.safetensors')}")
    assert other.effects(kernels={"flash": 14})["lora.file"].changed == 1
    assert other.psnr_db(peft) > 80


def test_a_text_encoder_is_adapted_too(
    save: Save, shapes_run: Callable[..., Any], shapes_plain: Any
) -> None:
    import torch

    file = save({**four(), **pair(f"text_encoder.text_model.{TEXT}", 64, seed=9)})
    ran = shapes_run("lora=file", f"lora.path={file}")
    effect = ran.effects(kernels={"flash": 14})["lora.file"]

    assert effect.details["components"] == {"unet": 4, "text_encoder": 1}
    assert str(effect) == "lora.file 5 layers, scale 1"
    down, up = matrices(64, 64, 9)
    new, old = (run.pipeline.text_encoder.get_submodule(TEXT).weight for run in (ran, shapes_plain))
    torch.testing.assert_close(new, old + up @ down)
    assert peft_layers(ran.pipeline) == 0


def test_layers_that_this_model_lacks_are_told(save: Save, shapes_run: Callable[..., Any]) -> None:
    ran = shapes_run("lora=file", f"lora.path={save(four() | pair('unet.down_blocks.7.to_q'))}")
    effect = ran.effects(kernels={"flash": 14})["lora.file"]
    assert str(effect) == (
        "lora.file 4 layers, scale 1, of 5 in the file; 2 tensors fit no layer, such as "
        "unet.down_blocks.7.to_q.lora_A.weight"
    )


def _a_third_fits_nothing() -> dict[str, Any]:
    """Four layers of this model, one of another, a LoHa's matrix, and a bias that no LoRA has."""
    import torch

    return {
        **four(),
        **pair("unet.down_blocks.7.to_q"),
        f"unet.{MID}.attn1.to_v.hada_w1_a": torch.zeros(4, 4),
        f"unet.{QUERIES[0]}.alpha": torch.tensor(float(RANK)),
        f"unet.{QUERIES[0]}.diff_b": torch.zeros(4),
    }


LEFT = [
    "unet.down_blocks.7.to_q.lora_A.weight",
    "unet.down_blocks.7.to_q.lora_B.weight",
    f"unet.{QUERIES[0]}.diff_b",
    f"unet.{MID}.attn1.to_v.hada_w1_a",
]
TOLD = f"4 of its 13 tensors fit no layer of this model and are left out, such as {LEFT[0]} and {LEFT[1]}"


def test_tensors_that_fit_nothing_are_counted_and_named_before_the_run(
    save: Save, shapes_plan: Any
) -> None:
    file = save(_a_third_fits_nothing())
    plan = shapes_plan("lora=file", f"lora.path={file}")
    assert [(n.choice, n.text) for n in plan.notices] == [(f"lora.path={file}", TOLD)]
    assert shapes_plan("lora=file", f"lora.path={save(four())}").notices == ()


def test_tensors_that_fit_nothing_are_in_the_effect_too(
    save: Save, shapes_run: Callable[..., Any]
) -> None:
    lacking = pair("unet.down_blocks.7.to_q") | pair("unet.up_blocks.0.attn.to_k", seed=1)
    ran = shapes_run("lora=file", f"lora.path={save(four() | lacking)}")
    effect = ran.effects(kernels={"flash": 14})["lora.file"]
    assert str(effect) == (
        f"lora.file 4 layers, scale 1, of 6 in the file; 4 tensors fit no layer, such as {LEFT[0]}"
    )
    assert effect.details["tensors_left_out"] == 4
    assert effect.details["left_out_such_as"] == sorted(lacking)[:3]


def test_an_adapter_of_nothing_but_zeros_is_an_error(
    save: Save, shapes_run: Callable[..., Any]
) -> None:
    import torch

    tensors = four()
    tensors |= {key: torch.zeros_like(t) for key, t in tensors.items() if "lora_B" in key}
    with pytest.raises(NoEffectError, match="changed 0 layers: it ran and did nothing"):
        shapes_run("lora=file", f"lora.path={save(tensors)}")


def test_a_flux_adapter_reaches_transformer_and_text_encoder(
    save: Save, flux_folder: Path, local_run: Callable[..., Any]
) -> None:
    """Flux' own fuse_lora() would leave the text encoder out."""
    tensors = {
        **pair("transformer.single_transformer_blocks.0.attn.to_q", 32),
        **pair("transformer.transformer_blocks.0.attn.to_k", 32, seed=1),
        **pair(f"text_encoder.text_model.{TEXT}", 32, seed=2),
    }
    plain = local_run(flux_folder)
    ran = local_run(flux_folder, "lora=file", f"lora.path={save(tensors)}")
    effect = ran.effects(kernels={"flash": 3})["lora.file"]

    assert effect.details["components"] == {"transformer": 2, "text_encoder": 1}
    assert peft_layers(ran.pipeline) == 0
    assert 5 < ran.psnr_db(plain) < 60


# In order with the others ----------------------------------------------------------------------------


@pytest.fixture
def merged_by_hand(tmp_path: Path, shapes_plain: Any) -> Path:
    """The embedded model with the four products added to its weights, saved."""
    import copy

    import torch

    unet = copy.deepcopy(shapes_plain.pipeline.unet)
    with torch.no_grad():
        for seed, path in enumerate(QUERIES):
            weight = unet.get_submodule(path).weight
            down, up = matrices(*weight.shape, seed)
            weight += up @ down
    folder = tmp_path / "merged"
    shapes_plain.pipeline.save_pretrained(folder)
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [(), ("qkv=fused",), ("quant=int8",), ("qkv=fused", "quant=int8")],
    ids=lambda choices: "+".join(choices) or "alone",
)
def test_adapted_first_and_changed_afterwards_is_what_merging_by_hand_gives(
    save: Save, merged_by_hand: Path, shapes_run: Callable[..., Any], choices: tuple[str, ...]
) -> None:
    drawn = (
        "generation.prompt=a red circle left of a blue star on a white background",
        "generation.guidance_scale=4.0",
        "generation.height=64",
        "generation.width=64",
    )
    by_hand = shapes_run("model=local", f"model.path={merged_by_hand}", *drawn, *choices)
    ran = shapes_run("lora=file", f"lora.path={save(four())}", *drawn, *choices)
    assert ran.effects(kernels={"flash": 14})["lora.file"].changed == 4
    assert ran.psnr_db(by_hand) > 80
    assert peft_layers(ran.pipeline) == 0


# Refusals --------------------------------------------------------------------------------------------


def _written(content: Callable[[], dict[str, Any]], name: str = "adapter.safetensors") -> Any:
    return lambda save: save(content(), name)


def _missing(save: Save) -> Path:
    return save(four()).with_name("adaptor.safetensors")


def _pickle(save: Save) -> Path:
    return save(four(), "adapter.bin")


def _cut_off(save: Save) -> Path:
    file = save(four())
    file.write_bytes(file.read_bytes()[:-100])
    return file


def _two_lines(save: Save) -> Path:
    file = save(four(), "two\nlines.safetensors")
    file.write_bytes(b"nothing of the kind")
    return file


def _other_weights() -> dict[str, Any]:
    import torch

    return {"conv_in.weight": torch.zeros(1)}


def _dora() -> dict[str, Any]:
    import torch

    return four() | {f"unet.{QUERIES[0]}.dora_scale": torch.ones(144)}


FILES: dict[str, Callable[[Save], Path]] = {
    "an adapter": _written(four),
    "one that is not there": _missing,
    "a pickle": _pickle,
    "one cut off": _cut_off,
    "two lines in its name": _two_lines,
    "other weights": _written(_other_weights),
    "a DoRA": _written(_dora),
    "another size": _written(lambda: pair(f"unet.{QUERIES[0]}", 320) | pair(f"unet.{QUERIES[1]}")),
}


@pytest.mark.parametrize("row", cases(__file__, "adapters.yaml"))
def test_a_file_that_is_no_adapter_of_this_model_is_refused(
    save: Save, shapes_plan: Any, row: dict[str, Any]
) -> None:
    name = row["file"]
    file = FILES.get(name, _written(lambda: pair(name)))(save)
    size = file.stat().st_size if file.exists() else 0
    filled = {"file": file, "folder": file.parent, "name": name, "bytes": size, "whole": size + 100}
    said = tuple(row["said"][key].format(**filled) for key in ("choice", "reason", "instead"))
    more = row["more"].split() if "more" in row else ()
    assert problems(shapes_plan, "lora=file", f"lora.path={file}", *more) == [said]


@pytest.fixture
def no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose own files tell nothing, such as one with random weights."""
    monkeypatch.setattr("fastdiff.passes.lora._model_shapes", lambda run, setting: {})


@pytest.mark.usefixtures("no_headers")
@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (lambda: pair("transformer.blocks.0.to_q"), "no layer took any of it"),
        (lambda: pair("blocks.0.to_q"), "no layer took any of it"),
        (
            lambda: pair("unet.down_blocks.7.to_q"),
            "Target modules {'down_blocks.7.to_q'} not found in the base model. Please check the target "
            "modules and try again.",
        ),
        (
            lambda: pair("text_encoder.encoder.layers.77.self_attn.q_proj"),
            "list index out of range",
        ),
        (
            lambda: pair(f"unet.{QUERIES[0]}", 320),
            "Error(s) in loading state_dict for UNet2DConditionModel:",
        ),
        (
            lambda: pair(f"text_encoder.text_model.{TEXT}", 320),
            "You set `ignore_mismatched_sizes` to `False`, thus raising an error. For details look at the "
            "above report!",
        ),
    ],
    ids=["other component", "no component", "no layer", "no text layer", "size", "text size"],
)
def test_an_adapter_that_does_not_fit_is_an_error_after_loading(
    save: Save, shapes_run: Callable[..., Any], tensors: Callable[[], dict[str, Any]], why: str
) -> None:
    held = tensors()
    layer = next(iter(held)).removesuffix(".lora_A.weight")
    with pytest.raises(ModelError) as error:
        shapes_run("lora=file", f"lora.path={save(held)}")
    assert str(error.value) == (
        "adapter.safetensors doesn't fit this StableDiffusionXLPipeline: the adapter has 1 layer such as "
        f"{layer}; looked for them in unet, text_encoder, text_encoder_2 ({why})\n"
        "  instead: an adapter that was made for this model, or lora=none"
    )


def test_a_pipeline_without_adapters_is_an_error(
    save: Save, shapes_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionXLPipeline

    for kind in StableDiffusionXLPipeline.__mro__:
        if "load_lora_weights" in vars(kind):
            monkeypatch.delattr(kind, "load_lora_weights")
    with pytest.raises(ModelError) as error:
        shapes_run("lora=file", f"lora.path={save(four())}")
    assert str(error.value) == (
        "StableDiffusionXLPipeline takes no adapters: diffusers has no load_lora_weights() for it\n"
        "  instead: lora=none, or a model whose pipeline has it (SDXL, SD 1.5, Flux)"
    )


# lora=lcm --------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return tmp_path / "hub"


def sdxl_plan(*overrides: str) -> Any:
    return planned(" ".join(["model=sdxl", *overrides]), model={"like": "sdxl"})


@pytest.mark.usefixtures("hub_cache")
def test_lcm_takes_the_models_own_adapter() -> None:
    plan = sdxl_plan("lora=lcm")
    (step,) = [step for step in plan.steps if step.pass_.key == "lora.lcm"]
    assert step.components == ("unet", "text_encoder", "text_encoder_2")
    assert step.does == "add latent-consistency/lcm-lora-sdxl to the weights, scaled by 1"


def test_the_teachers_lcm_adapter_is_not_given_to_its_student() -> None:
    plan = sdxl_plan("lora=lcm", "model.role=student")
    (own,) = [step for step in plan.steps if step.pass_.key == "lora.lcm"]
    assert own.does == "add latent-consistency/lcm-lora-ssd-1b to the weights, scaled by 1"
    assert problems(sdxl_plan, "lora=lcm", "model=sd14", "model.role=student")[0][1] == (
        "no LCM adapter of nota-ai/bk-sdm-small is known"
    )


def test_two_sources_are_refused(save: Save, shapes_plan: Any) -> None:
    file = save(four())
    assert problems(shapes_plan, "lora=lcm", "lora.id=org/name", f"lora.path={file}") == [
        (f"lora.path={file}", "and lora.id=org/name name two", "one of them")
    ]


@pytest.mark.parametrize("offline", [False, True])
def test_an_adapter_in_the_hubs_cache_is_used_without_asking_the_hub(
    save: Save,
    hub_cache: Path,
    shapes_run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    offline: bool,
) -> None:
    repository = hub_cache / "models--someone--lcm-shapes"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    save(four()).rename(snapshot / "pytorch_lora_weights.safetensors")
    save(pair("unet.down_blocks.7.to_q")).rename(snapshot / "another.safetensors")
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = shapes_run("lora=lcm", "lora.id=someone/lcm-shapes")
    effect = ran.effects(kernels={"flash": 14})["lora.lcm"]
    assert effect.changed == 4
    assert effect.details["file"] == "pytorch_lora_weights.safetensors"


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            "unreachable",
            "someone/lcm-shapes is not on this machine, and the hub can't be reached\n"
            "  instead: lora.path=FILE.safetensors, or lora=none",
        ),
        (
            "gated",
            "someone/lcm-shapes is gated: its owner asks you to accept a licence first (HF_TOKEN is not set)\n"
            "  instead: accept it on https://huggingface.co/someone/lcm-shapes, then set HF_TOKEN to your token, "
            "or lora.path=FILE.safetensors, or lora=none",
        ),
        (
            "pickles only",
            "someone/lcm-shapes holds no adapter as .safetensors\n"
            "  instead: lora.path=FILE.safetensors, or lora=none; fastdiff loads no pickles",
        ),
    ],
)
def test_what_the_hub_answers_is_said_in_plain_words(
    shapes_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, answer: str, said: str
) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    def model_info(self: Any, repository: str) -> Any:
        if answer == "unreachable":
            raise ConnectionError("no route to host")
        if answer == "gated":
            raise RuntimeError("Access to a gated repo is restricted")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="pytorch_lora_weights.bin")])

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(ModelError) as error:
        shapes_run("lora=lcm", "lora.id=someone/lcm-shapes")
    assert str(error.value) == said


def test_the_bias_of_what_an_adapter_adds_belongs_to_its_layer() -> None:
    layer = "transformer.x_embedder"
    shapes = {
        f"{layer}.lora_A.weight": (4, 64),
        f"{layer}.lora_B.weight": (128, 4),
        f"{layer}.lora_B.bias": (128,),
        f"{layer}.alpha": (),
        "transformer.norm.bias": (128,),
    }
    assert left_out(shapes, {"transformer": ["x_embedder"]}) == ["transformer.norm.bias"]
