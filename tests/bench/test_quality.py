"""Distances between pictures, against figures worked out by hand."""

from __future__ import annotations

import math

import numpy
import pytest
from PIL import Image

from fastdiff.bench.quality import compare


def filled(value: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


def test_identical_pictures_have_no_psnr_because_it_is_infinite() -> None:
    found = compare([noise(0), noise(1)], [noise(0), noise(1)])
    assert found.identical
    assert found.psnr_db is None
    assert found.ssim == 1.0
    assert found.max_abs_difference == 0.0


@pytest.mark.parametrize("step", [1, 5, 51, 255])
def test_psnr_of_a_constant_difference(step: int) -> None:
    """The mean squared error is (step/255)^2, so the PSNR is 20 log10(255/step)."""
    found = compare([filled(step)], [filled(0)])
    assert found.psnr_db == pytest.approx(20 * math.log10(255 / step), abs=1e-3)
    assert found.max_abs_difference == pytest.approx(step / 255)
    assert not found.identical


def test_psnr_of_one_pixel() -> None:
    """One channel of one of 1,024 pixels is off by 255: the mean squared error is 1/3072."""
    picture = noise(0)
    picture.putpixel((4, 4), (0, 10, 10))
    reference = picture.copy()
    reference.putpixel((4, 4), (255, 10, 10))
    found = compare([picture], [reference])
    assert found.psnr_db == pytest.approx(10 * math.log10(3072), abs=1e-3)
    assert found.max_abs_difference == 1.0


def test_several_pictures_share_one_mean_squared_error() -> None:
    """One of two pictures is off by 51/255 = 0.2: the mean squared error is 0.02."""
    found = compare([filled(51), filled(0)], [filled(0), filled(0)])
    assert found.psnr_db == pytest.approx(10 * math.log10(1 / 0.02), abs=1e-3)


def test_pictures_that_have_nothing_in_common_have_a_low_ssim() -> None:
    assert compare([noise(0)], [noise(1)]).ssim < 0.2


def test_a_reference_of_another_mode_is_compared_as_rgb() -> None:
    assert compare([filled(9)], [filled(9).convert("RGBA")]).identical


def test_the_smallest_picture_that_can_be_asked_for_is_compared() -> None:
    """8x8 is less than the window of SSIM."""
    found = compare([noise(0, (8, 8))], [noise(1, (8, 8))])
    assert math.isfinite(found.ssim)
    assert found.psnr_db is not None


def test_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError) as refused:
        compare([filled(0, (64, 32))], [filled(0, (16, 8))])
    assert str(refused.value) == "the picture has 64x32 pixels, its reference 16x8"


def test_another_number_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError) as refused:
        compare([filled(0)] * 2, [filled(0)])
    assert str(refused.value) == "2 pictures against 1 references"


def test_a_distance_as_plain_data() -> None:
    found = compare([filled(0)], [filled(0)]).to_dict()
    assert found == {
        "identical": True,
        "psnr_db": None,
        "ssim": 1.0,
        "max_abs_difference": 0.0,
    }
