"""Random weights: the same numbers everywhere, filled in place, and pipelines that run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.choices.compose import compose
from fastdiff.models.architectures import Architecture, Blueprint
from fastdiff.models.random_weights import (
    CLIP_VOCABULARY,
    T5_VOCABULARY,
    build_component,
    build_pipeline,
    clip_tokenizer,
    empty_component,
    t5_tokenizer,
)
from fastdiff.models.sources import model_of

UNET = Blueprint(
    "diffusers",
    "UNet2DConditionModel",
    0,
    {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "sample_size": 8,
    },
)
CLIP = Blueprint(
    "transformers",
    "CLIPTextModel",
    0,
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 32,
        "eos_token_id": 2,
        "bos_token_id": 0,
    },
)
VAE = Blueprint(
    "diffusers",
    "AutoencoderKL",
    0,
    {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "sample_size": 16,
    },
)
SCHEDULER = Blueprint("diffusers", "PNDMScheduler", 0, {"skip_prk_steps": True, "steps_offset": 1})
SMALL = Architecture(
    "StableDiffusionPipeline",
    {"unet": UNET, "vae": VAE, "text_encoder": CLIP, "scheduler": SCHEDULER},
    {"tokenizer": "clip"},
    "made up for tests",
    {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)


def test_every_dtype_holds_the_same_model_rounded() -> None:
    import torch

    whole = build_component(UNET, 0, "unet", torch.float32).state_dict()
    half = build_component(UNET, 0, "unet", torch.bfloat16).state_dict()
    assert whole.keys() == half.keys()
    for name, weight in whole.items():
        assert half[name].dtype == torch.bfloat16
        assert torch.equal(half[name], weight.to(torch.bfloat16)), name


def test_a_seed_draws_the_same_numbers_again_and_another_one_others() -> None:
    import torch

    first = build_component(UNET, 3, "unet", None).state_dict()
    again = build_component(UNET, 3, "unet", None).state_dict()
    other = build_component(UNET, 4, "unet", None).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def test_numbers_do_not_depend_on_what_was_drawn_before() -> None:
    import torch

    torch.manual_seed(1)
    torch.randn(7)
    state = torch.get_rng_state()
    first = build_component(CLIP, 0, "text_encoder", None).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = build_component(CLIP, 0, "text_encoder", None).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_norms_begin_with_one_biases_with_zero_and_matrices_keep_the_size_of_what_they_see() -> (
    None
):
    unet = build_component(UNET, 0, "unet", None)
    assert set(unet.conv_norm_out.weight.tolist()) == {1.0}
    assert set(unet.conv_norm_out.bias.tolist()) == {0.0}
    linear = unet.time_embedding.linear_2.weight
    assert float(linear.std()) == pytest.approx(linear.shape[1] ** -0.5, rel=0.05)


def test_constants_of_a_module_are_there_although_its_weights_were_born_without_memory() -> None:
    encoder = build_component(CLIP, 0, "text_encoder", None)
    assert encoder.embeddings.position_ids.tolist() == [list(range(77))]
    assert {weight.device.type for weight in encoder.parameters()} == {"cpu"}
    assert {weight.requires_grad for weight in encoder.parameters()} == {False}
    assert not encoder.training


def test_what_shares_a_weight_shares_it_still() -> None:
    t5 = Blueprint(
        "transformers",
        "T5EncoderModel",
        0,
        {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": 64},
    )
    encoder = build_component(t5, 0, "text_encoder_2", None)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_tokenizers_have_the_published_size_and_spell_any_text() -> None:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    assert (len(clip), clip.model_max_length) == (CLIP_VOCABULARY, 77)
    ids = clip("a naïve, 8k cat", padding="max_length", max_length=77).input_ids
    assert (len(ids), max(ids)) == (77, CLIP_VOCABULARY - 1)
    assert clip.unk_token_id not in ids[1 : ids.index(CLIP_VOCABULARY - 1)]
    words = t5("a cat", padding="max_length", max_length=16).input_ids
    assert (len(words), words[:2], words[-1]) == (16, [ord("a"), ord(" ")], 0)
    assert max(words) < T5_VOCABULARY


def test_a_pipeline_of_random_weights_draws_a_picture_that_is_no_plain_colour() -> None:
    import torch

    from fastdiff.config import Generation
    from fastdiff.models.pictures import draw, what_is_wrong

    generation = Generation(prompt="a cat", steps=2, height=32, width=32)
    pictures = []
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = build_pipeline(SMALL, 0, dtype, {})
        pipeline.set_progress_bar_config(disable=True)
        pictures += draw(pipeline, generation)
    assert [what_is_wrong(picture) for picture in pictures] == [None, None]
    assert pictures[0].size == (32, 32)


def test_parts_from_elsewhere_take_the_place_of_random_ones() -> None:
    vae = empty_component(VAE)
    assert build_pipeline(SMALL, 0, None, {"vae": vae}).vae is vae


def test_a_random_model_is_known_by_its_architecture_and_seed_and_fetches_nothing() -> None:
    model = model_of(compose(["model=sd14", "model.weights=random", "model.weights_seed=5"]))
    assert model.identity() == {"architecture": "sd1", "seed": 5, "recipe": 1}
    assert model.title == "stable-diffusion-v1-4 with random weights"
    (notice,) = model.load_notices()
    assert "random weights" in notice
    assert "quality only says how far the numbers moved" in notice
    model.fetch()  # would need a network if there were anything to fetch


def test_the_student_of_a_random_model_is_random_too() -> None:
    model = model_of(compose(["model=sd14", "model.weights=random", "model.role=student"]))
    assert model.identity()["architecture"] == "bk_sdm_small"
    facts = model.facts()
    assert facts is not None
    assert facts.denoiser is not None
    assert facts.denoiser.parameters == 482_346_884


_MEASURE = """
import torch, diffusers
from fastdiff.measuring.memory import host_peak_bytes
from fastdiff.models.architectures import ARCHITECTURES
from fastdiff.models.random_weights import build_component
from pathlib import Path
blueprint = ARCHITECTURES["bk_sdm_small"].components["unet"]
diffusers.UNet2DConditionModel
resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
unet = build_component(blueprint, 0, "unet", torch.bfloat16)
print((host_peak_bytes() - resident) / (2 * blueprint.parameters))
"""


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_building_needs_little_more_memory_than_the_weights() -> None:
    run = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert 1.0 < float(run.stdout) < 1.3


def test_weights_that_were_drawn_are_kept_for_the_runs_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from fastdiff.models import random_weights

    monkeypatch.setenv(random_weights.KEPT_IN, str(tmp_path))
    first = build_component(CLIP, 0, "text_encoder", torch.bfloat16).state_dict()
    (kept,) = tmp_path.iterdir()
    assert kept.suffix == ".safetensors"
    monkeypatch.setattr(random_weights, "draw", None)  # nothing is drawn a second time
    again = build_component(CLIP, 0, "text_encoder", torch.bfloat16)
    assert all(torch.equal(first[name], tensor) for name, tensor in again.state_dict().items())
    assert not again.training
    monkeypatch.undo()
    monkeypatch.setenv(random_weights.KEPT_IN, str(tmp_path))
    build_component(CLIP, 1, "text_encoder", torch.bfloat16)  # another seed, another dtype
    build_component(CLIP, 0, "text_encoder", None)
    assert len(list(tmp_path.iterdir())) == 3


def test_weights_are_not_kept_where_they_would_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from fastdiff.models import random_weights

    monkeypatch.setenv(random_weights.KEPT_IN, str(tmp_path))
    monkeypatch.setattr(
        "fastdiff.models.random_weights.shutil.disk_usage", lambda _: SimpleNamespace(free=1000)
    )
    build_component(CLIP, 0, "text_encoder", None)
    assert list(tmp_path.iterdir()) == []
