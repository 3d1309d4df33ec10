"""Distances between pictures and between latents, against figures worked out by hand, and budgets on them."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
from PIL import Image

from fastdiff.measuring.budgets import missed, refusal
from fastdiff.measuring.fields import Caption, Quality
from fastdiff.measuring.protocol import LATENTS, ReferencePictures
from fastdiff.measuring.quality import (
    against,
    compare,
    latent_difference,
    load_latents,
    save_latents,
)
from fastdiff.planning.rules import lpips_weights


def filled(value: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


ONE_PIXEL = noise(0)
ONE_PIXEL.putpixel((4, 4), (0, 10, 10))
OTHER_PIXEL = ONE_PIXEL.copy()
OTHER_PIXEL.putpixel((4, 4), (255, 10, 10))


@pytest.mark.parametrize(
    ("pictures", "references", "error", "largest"),
    [
        *[([filled(s)], [filled(0)], (s / 255) ** 2, s / 255) for s in (1, 5, 51, 255)],
        ([ONE_PIXEL], [OTHER_PIXEL], 1 / 3072, 1.0),  # one channel of one of 1,024 pixels
        ([filled(51), filled(0)], [filled(0)] * 2, 0.02, 0.2),  # one mean of several pictures
    ],
)
def test_psnr_is_that_of_the_mean_squared_error(
    pictures: list[Image.Image], references: list[Image.Image], error: float, largest: float
) -> None:
    found = compare(pictures, references)
    assert found.psnr_db == pytest.approx(10 * math.log10(1 / error), abs=1e-3)
    assert found.max_abs_difference == pytest.approx(largest)
    assert not found.identical


def test_identical_pictures_have_no_psnr_because_it_is_infinite() -> None:
    found = compare([noise(0), filled(9)], [noise(0), filled(9).convert("RGBA")])
    assert (found.identical, found.psnr_db, found.ssim) == (True, None, 1.0)
    assert found.max_abs_difference == 0.0
    assert found.reasons["psnr_db"] == "the pictures are identical, and it would be infinite"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["psnr_db"] is None


@pytest.mark.parametrize("side", [8, 32])  # 8x8 is less than the window of SSIM
def test_pictures_that_have_nothing_in_common_have_a_low_ssim(side: int) -> None:
    found = compare([noise(0, (side, side))], [noise(1, (side, side))])
    assert found.ssim < 0.2
    assert found.psnr_db is not None


@pytest.mark.parametrize(
    ("pictures", "references", "said"),
    [
        (
            *([filled(0, (64, 32))], [filled(0, (16, 8))]),
            "the picture has 64x32 pixels, its reference 16x8",
        ),
        ([filled(0)] * 2, [filled(0)], "2 pictures against 1 references"),
    ],
)
def test_another_size_or_number_is_refused_with_both(
    pictures: list[Image.Image], references: list[Image.Image], said: str
) -> None:
    with pytest.raises(ValueError) as refused:
        compare(pictures, references)
    assert str(refused.value) == said


# MS-SSIM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(160, 160), (175, 256), (256, 168)])
def test_ms_ssim_is_null_with_the_reason_where_its_window_does_not_fit(
    size: tuple[int, int],
) -> None:
    found = compare([noise(0, size)], [noise(1, size)])
    assert found.ms_ssim is None
    assert found.reasons["ms_ssim"] == (
        f"MS-SSIM needs 176 pixels a side, and the pictures have {size[0]}x{size[1]}"
    )


def test_ms_ssim_from_176_pixels_on() -> None:
    picture = noise(0, (176, 184))
    near = Image.blend(picture, filled(128, picture.size), 0.05)
    found = compare([picture], [near])
    assert found.ms_ssim is not None
    assert 0.9 < found.ms_ssim < 1
    assert "ms_ssim" not in found.reasons
    far = compare([picture], [noise(1, picture.size)]).ms_ssim
    assert far is not None
    assert far < 0.3
    assert compare([picture], [picture]).ms_ssim == 1.0


# LPIPS --------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of torch's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def alexnet(hub: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torchvision with an AlexNet of random weights; the weights that were asked for."""
    import torch
    from torch import nn
    from torchmetrics.functional.image import lpips

    asked: list[Any] = []

    def net(weights: Any) -> Any:
        asked.append(weights)
        layers: list[nn.Module] = []
        before = 3
        shapes = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
        for channels, kernel, stride, padding in shapes:
            layers += [nn.Conv2d(before, channels, kernel, stride, padding), nn.ReLU()]
            before = channels
            if channels < 256 and len(layers) < 6:
                layers.append(nn.MaxPool2d(3, 2))
        return SimpleNamespace(features=nn.Sequential(*layers))

    models = SimpleNamespace(alexnet=net, AlexNet_Weights=SimpleNamespace(DEFAULT="published"))
    fake = ModuleType("torchvision")
    fake.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    monkeypatch.setattr(lpips, "_TORCHVISION_AVAILABLE", True)
    torch.manual_seed(0)
    return asked


def test_lpips_is_measured_on_demand_with_the_published_weights(alexnet: list[Any]) -> None:
    picture = noise(0, (64, 64))
    assert compare([picture], [noise(1, (64, 64))]).lpips is None
    near = Image.blend(picture, filled(128, (64, 64)), 0.02)
    found = compare([picture], [near], lpips=True)
    assert found.lpips is not None
    assert 0 < found.lpips < 1
    assert "lpips" not in found.reasons
    assert alexnet == ["published"]
    assert compare([picture], [picture], lpips=True).lpips == 0.0
    assert len(alexnet) == 1  # equal pictures need no network


def test_lpips_is_asked_for_with_pixels_between_0_and_1(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torchmetrics.functional.image import lpips

    given: list[Any] = []

    def measured(one: Any, other: Any, **how: Any) -> Any:
        given.append((one.min().item(), other.max().item(), tuple(one.shape), how))
        return torch.tensor(0.25)

    monkeypatch.setattr(lpips, "learned_perceptual_image_patch_similarity", measured)
    found = compare([filled(0)] * 2, [filled(255)] * 2, lpips=True)
    assert found.lpips == 0.25
    how = {"net_type": "alex", "reduction": "mean", "normalize": True}
    assert given == [(0.0, 1.0, (2, 3, 32, 32), how)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("no route\nto the host"), "OSError: no route"),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "RuntimeError: operator torchvision::nms does not exist",
        ),
        (ModuleNotFoundError("no torchvision"), "ModuleNotFoundError: no torchvision"),
    ],
)
def test_lpips_without_its_network_is_null_with_the_reason(
    error: Exception, reason: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.functional.image import lpips

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(lpips, "learned_perceptual_image_patch_similarity", failing)
    found = compare([noise(0)], [noise(1)], lpips=True)
    said = f"LPIPS has no network to look through ({reason})"
    assert (found.lpips, found.reasons["lpips"]) == (None, said)


def test_lpips_downloads_nothing_where_that_is_forbidden(
    alexnet: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = compare([noise(0)], [noise(1)], lpips=True)
    assert found.lpips is None
    assert found.reasons["lpips"] == (
        "alexnet-owt-7be5be79.pth is not in torch's hub folder, and HF_HUB_OFFLINE forbids to download it"
    )
    lpips_weights().parent.mkdir(parents=True)
    lpips_weights().write_bytes(b"weights")
    assert compare([noise(0)], [noise(1)], lpips=True).lpips is not None


def test_lpips_of_a_picture_too_small_for_its_network(alexnet: list[Any]) -> None:
    found = compare([noise(0, (24, 64))], [noise(1, (24, 64))], lpips=True)
    assert found.lpips is None
    assert found.reasons["lpips"] == "LPIPS needs 31 pixels a side, and the pictures have 24x64"
    assert compare([noise(0, (31, 31))], [noise(1, (31, 31))], lpips=True).lpips is not None


# Latents ------------------------------------------------------------------------------------------


def test_latents_that_were_saved_come_back_as_they_were(tmp_path: Path) -> None:
    import torch

    latents = torch.randn(2, 4, 3, 3).transpose(2, 3)
    save_latents(tmp_path, latents)
    found = load_latents(str(tmp_path / LATENTS))
    assert not isinstance(found, str)
    assert found.dtype == torch.float32
    assert latent_difference(latents, found) == 0.0
    moved = latents.clone()
    moved[1, 2, 0, 1] += 0.5
    assert latent_difference(moved, found) == pytest.approx(0.5)


def test_latents_that_can_not_be_compared_say_why(tmp_path: Path) -> None:
    import torch

    one = torch.zeros(1, 4, 2, 2)
    save_latents(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    broken = tmp_path / LATENTS
    broken.write_bytes(b"nothing of the kind")
    said = load_latents(str(broken))
    assert isinstance(said, str)
    assert said.startswith("the reference's latents can't be read (")
    assert load_latents(None) == "the reference is a picture, and a picture has no latents"
    missing = load_latents(str(tmp_path / "gone" / LATENTS))
    assert missing == "the reference's pipeline tells no latents"
    assert latent_difference(one, missing) == missing
    assert latent_difference(None, one) == "this pipeline tells no latents"
    other = torch.zeros(1, 16, 2, 2)
    assert latent_difference(one, other) == (
        "the latents are [1, 4, 2, 2], the reference's [1, 16, 2, 2]"
    )
    assert latent_difference(one, one * float("nan")) == "the latents are not all numbers"


# A run's quality ----------------------------------------------------------------------------------


def found_reference(tmp_path: Path, latents: Any) -> ReferencePictures:
    """A reference of one picture, as the process that drew it leaves it."""
    noise(0, (16, 16)).save(tmp_path / "image-0.png")
    save_latents(tmp_path, latents)
    return ReferencePictures.drawn([tmp_path / "image-0.png"], "fp32", "abc")


def test_a_run_against_its_reference(tmp_path: Path) -> None:
    import torch

    latents = torch.zeros(1, 4, 2, 2)
    reference = found_reference(tmp_path, latents)
    found = against(reference, [noise(1, (16, 16))], latents + 0.25)
    assert (found.reference_run_id, found.reference, found.reason) == ("abc", "fp32", None)
    assert found.identical is False
    assert found.psnr_db < 20
    assert found.max_abs_difference_latents == 0.25
    assert found.reasons.keys() == {"ms_ssim", "lpips"}
    near = against(reference, [noise(0, (16, 16))], latents + 1e-3)
    assert near.identical is True  # pictures can be where latents are not
    assert near.max_abs_difference_latents == pytest.approx(1e-3)


def test_a_run_that_is_its_own_reference_differs_in_nothing() -> None:
    import torch

    own = ReferencePictures.itself("abc")
    found = against(own, [noise(0)], torch.ones(1, 4, 2, 2))
    assert (found.identical, found.max_abs_difference_latents) == (True, 0.0)
    untold = against(own, [noise(0)], None)
    assert untold.reasons["max_abs_difference_latents"] == "this pipeline tells no latents"


def test_a_run_without_a_reference_has_null_everywhere_and_the_reason() -> None:
    found = against(ReferencePictures(reason="quality=none"), [noise(0)], None)
    assert found == Quality(reason="quality=none")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pictures": ["gone.png"]}, "[Errno 2] No such file or directory"),
        ({"pictures": []}, None),
        ({}, "the picture has 32x32 pixels, its reference 16x16"),
    ],
)
def test_a_reference_that_does_not_fit_gives_null_with_the_reason(
    change: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    found = against(replace(found_reference(tmp_path, None), **change), [noise(0)], None)
    assert found == Quality("abc", "fp32", found.reason)
    assert (found.reason or "").startswith(reason or "")


# Budgets ------------------------------------------------------------------------------------------


def a_quality(**figures: Any) -> Quality:
    """What a report says of a run that moved a little."""
    known = Quality(
        *("abc", "fp32", None),
        identical=False,
        psnr_db=27.43,
        ssim=0.981,
        max_abs_difference=0.25,
        max_abs_difference_latents=0.5,
        lpips=0.125,
        reasons={"ms_ssim": "MS-SSIM needs 176 pixels a side, and the pictures have 64x64"},
        caption=Caption(pictures=24, right=18, score=0.75, reason=None),
    )
    return replace(known, **figures)


@pytest.mark.parametrize(
    ("key", "met", "limit", "said"),
    [
        ("min_psnr_db", 27.43, 30.0, "quality.min_psnr_db=30: PSNR is 27.43 dB against fp32"),
        ("min_ssim", 0.98, 0.99, "quality.min_ssim=0.99: SSIM is 0.981 against fp32"),
        ("max_lpips", 0.125, 0.1, "quality.max_lpips=0.1: LPIPS is 0.125 against fp32"),
        (
            "max_abs_difference",
            0.25,
            0.1,
            "quality.max_abs_difference=0.1: the largest difference of pixels is 0.25 against fp32",
        ),
        (
            "max_abs_difference_latents",
            0.5,
            0.0,
            "quality.max_abs_difference_latents=0: the largest difference of latents is 0.5 against fp32",
        ),
        (
            "min_caption_score",
            0.75,
            0.9,
            "quality.min_caption_score=0.9: 18 of 24 pictures are right, 0.75 of them",
        ),
    ],
)
def test_a_budget_is_met_at_its_limit_and_missed_beyond(
    key: str, met: float, limit: float, said: str
) -> None:
    assert missed(a_quality(), {key: met}) == []
    assert missed(a_quality(), {key: limit}) == [said]


def test_a_figure_just_beyond_its_budget_does_not_read_as_if_it_met_it() -> None:
    assert missed(a_quality(psnr_db=29.99996), {"min_psnr_db": 30.0}) == [
        "quality.min_psnr_db=30: PSNR is 29.99996 dB against fp32"
    ]
    almost = math.nextafter(0.1, 1)
    assert missed(a_quality(lpips=almost), {"max_lpips": 0.1}) == [
        f"quality.max_lpips=0.1: LPIPS is {almost!r} against fp32"
    ]


def test_budgets_whose_figure_is_not_there_are_missed_with_the_reason() -> None:
    assert missed(a_quality(), {"min_ms_ssim": 0.5}) == [
        "quality.min_ms_ssim=0.5: can't be judged: "
        "MS-SSIM needs 176 pixels a side, and the pictures have 64x64"
    ]
    nothing = Quality(reason="no reference: out of memory (oom)")
    for key in ("min_psnr_db", "min_ssim", "max_lpips", "max_abs_difference"):
        assert missed(nothing, {key: 0.0}) == [
            f"quality.{key}=0: can't be judged: no reference: out of memory (oom)"
        ]
    no_caption = a_quality(caption=Caption(reason="quality=none"))
    assert missed(no_caption, {"min_caption_score": 0.0}) == [
        "quality.min_caption_score=0: can't be judged: quality=none"
    ]


def test_identical_pictures_meet_every_budget_on_pictures() -> None:
    same = compare([filled(0)], [filled(0)])
    limits = {"min_psnr_db": 99.0, "min_ssim": 1.0, "min_ms_ssim": 1.0, "max_lpips": 0.0}
    assert missed(same, {**limits, "max_abs_difference": 0.0}) == []
    moved = replace(same, max_abs_difference_latents=0.1)
    assert missed(moved, {"max_abs_difference_latents": 0.0})


def test_all_missed_budgets_are_said_at_once() -> None:
    said = missed(a_quality(), {"min_psnr_db": 30.0, "min_ssim": 0.9, "max_lpips": 0.01})
    assert refusal(said) == (
        "the picture misses its budgets\n"
        "  quality.min_psnr_db=30: PSNR is 27.43 dB against fp32\n"
        "  quality.max_lpips=0.01: LPIPS is 0.125 against fp32\n"
        "  instead: leave out what moves the picture most (quant, cache, precision, vae), or a wider budget"
    )
    assert refusal(said[:1]).startswith("the picture misses its budget\n")
