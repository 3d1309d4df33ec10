"""The published architectures: their sizes on the very modules, and what int8 would choose in the real SDXL."""

from __future__ import annotations

from typing import Any

import pytest

from fastdiff.choices.compose import compose
from fastdiff.choices.options import option_files
from fastdiff.errors import ModelError
from fastdiff.models.architectures import (
    ARCHITECTURES,
    TINY_AUTOENCODERS,
    Blueprint,
)
from fastdiff.models.random_weights import empty_component
from fastdiff.models.sources import model_of

COMPONENTS = [
    (name, part, blueprint)
    for name, architecture in ARCHITECTURES.items()
    for part, blueprint in architecture.components.items()
]


@pytest.fixture(scope="module")
def sdxl_unet() -> Any:
    """SDXL's UNet with its weights on the meta device."""
    return empty_component(ARCHITECTURES["sdxl"].components["unet"])


@pytest.mark.parametrize(
    ("name", "part", "blueprint"), COMPONENTS, ids=[f"{n}-{p}" for n, p, _ in COMPONENTS]
)
def test_every_component_has_the_parameters_that_the_table_says(
    name: str, part: str, blueprint: Blueprint
) -> None:
    module = empty_component(blueprint)
    if part == "scheduler":
        assert type(module).__name__ == blueprint.class_name
        return
    assert {weight.device.type for weight in module.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in module.parameters()) == blueprint.parameters


@pytest.mark.parametrize(("name", "channels"), [("taesd", 4), ("taef1", 16)])
def test_the_tiny_autoencoders_have_their_classs_defaults_but_for_channels(
    name: str, channels: int
) -> None:
    from diffusers import AutoencoderTiny

    blueprint = TINY_AUTOENCODERS[f"madebyollin/{name}"]
    module = empty_component(blueprint)
    own, default = dict(module.config), dict(AutoencoderTiny().config)
    for config in (own, default):
        del config["_use_default_values"]
    assert own == {**default, "latent_channels": channels}
    assert sum(weight.numel() for weight in module.parameters()) == blueprint.parameters


def test_named_models_tiny_autoencoders_are_known() -> None:
    named = {
        model_of(compose([f"model={name}"])).tiny_vae
        for name in ("sdxl", "ssd_1b", "sd15", "sd14", "bk_sdm_small", "flux_schnell")
    }
    assert named == {"madebyollin/taesd", "madebyollin/taesdxl", "madebyollin/taef1"}
    assert named <= set(TINY_AUTOENCODERS)


def test_sdxls_conditioning_is_as_wide_as_its_text_encoders_say() -> None:
    parts = ARCHITECTURES["sdxl"].components
    unet, first, second = (
        parts[name].config for name in ("unet", "text_encoder", "text_encoder_2")
    )
    assert unet["cross_attention_dim"] == first["hidden_size"] + second["hidden_size"]  # type: ignore[operator]
    assert (
        unet["projection_class_embeddings_input_dim"]
        == 6 * unet["addition_time_embed_dim"] + second["projection_dim"]  # type: ignore[operator]
    )


def _int8_choice(unet: Any) -> tuple[set[str], set[str]]:
    """Linears that the documents' filter chooses, and those of them that no forward uses."""
    from fastdiff.models.given import dead_projections
    from fastdiff.passes.quant import Int8

    int8 = option_files()["quant"]["int8"].option()
    assert isinstance(int8, Int8)
    chosen = {path for path, part in unet.named_modules() if int8.chooses(part)}
    return chosen, chosen & dead_projections(unet)


def test_the_documents_int8_filter_on_the_real_sdxl(sdxl_unet: Any) -> None:
    from torch import nn

    linears = [part for part in sdxl_unet.modules() if isinstance(part, nn.Linear)]
    chosen, dead = _int8_choice(sdxl_unet)
    assert (len(chosen), len(linears), len(dead)) == (537, 743, 0)


def test_the_documents_int8_filter_after_fusion_leaves_out_the_dead_projections() -> None:
    import torch

    unet = empty_component(ARCHITECTURES["sdxl"].components["unet"])
    with torch.device("meta"):
        unet.fuse_qkv_projections()
    chosen, dead = _int8_choice(unet)
    assert (len(chosen), len(dead), len(chosen - dead)) == (597, 200, 397)
    assert sum(weight.numel() for weight in unet.parameters()) == pytest.approx(3215e6, rel=1e-3)


def test_the_documents_convolution_filter_matches_none_of_sdxls_unet_and_two_of_its_vae(
    sdxl_unet: Any,
) -> None:
    from fastdiff.passes.quant import Int8

    int8 = option_files()["quant"]["int8"].option()
    assert isinstance(int8, Int8)
    vae = empty_component(ARCHITECTURES["sdxl"].components["vae"])
    assert sum(int8.swaps(part) for part in sdxl_unet.modules()) == 0
    assert sum(int8.swaps(part) for part in vae.modules()) == 2


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd14", "bk_sdm_small", "flux_schnell"])
def test_a_plan_knows_the_architecture_before_any_download(name: str) -> None:
    facts = model_of(compose([f"model={name}"])).facts()
    assert facts is not None
    assert facts.denoiser is not None
    assert facts.vae is not None
    assert facts.parameters == sum(
        part.parameters for part in ARCHITECTURES[_architecture(name)].components.values()
    )


def _architecture(model: str) -> str:
    found = compose([f"model={model}"]).to_dict()["model"]["architecture"]
    assert isinstance(found, str)
    return found


def test_an_architecture_that_nobody_knows_is_named() -> None:
    with pytest.raises(ModelError) as caught:
        model_of(compose(["model=sdxl", "model.architecture=sdx"])).facts()
    assert str(caught.value) == (
        "model.architecture=sdx: fastdiff knows no such architecture\n  instead: model.architecture=sdxl"
    )


def test_random_weights_need_a_known_architecture() -> None:
    with pytest.raises(ModelError) as caught:
        model_of(compose(["model=ssd_1b", "model.weights=random"])).facts()
    assert str(caught.value) == (
        "model.weights=random: the architecture of segmind/SSD-1B is not in fastdiff's table\n"
        "  instead: model.weights=hub, or a model whose YAML names an architecture"
    )


def test_a_model_without_a_student_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        model_of(compose(["model=bk_sdm_small", "model.role=student"]))
    assert str(caught.value) == (
        "model.role=student: no student of nota-ai/bk-sdm-small is known\n"
        "  instead: model.role=teacher, or a model whose YAML names a student"
    )
