"""The shapes world: captions, what is held out of training, and how pictures are judged."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy
import pytest
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.shapes.score import BATCH, contact_sheet, score
from fastdiff.models.shapes.judging import Score, Verdict, judge
from fastdiff.models.shapes.scenes import (
    PALETTE,
    SHAPES,
    SIZE,
    Scene,
    Thing,
    draw,
    exam_scenes,
    random_scene,
    training_scenes,
)

TWO = Scene((Thing("green", "square"), Thing("purple", "ring")), "black")
ONE = Scene((Thing("red", "circle"),), "white")
NOTHING = Verdict(colours=False, places=False, shapes=False)


def drawn(count: int, seed: int) -> list[tuple[Scene, Image.Image]]:
    """Random scenes of one and two things, with their pictures."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return [(scene, draw(scene, rng)) for scene in scenes]


def noisy(picture: Image.Image, deviation: float, seed: int) -> Image.Image:
    values = numpy.asarray(picture, dtype=numpy.float32)
    noise = numpy.random.default_rng(seed).normal(0.0, deviation, values.shape)
    return Image.fromarray((values + noise).clip(0, 255).astype(numpy.uint8))


def shifted(picture: Image.Image, columns: int) -> Image.Image:
    """The picture moved right; what leaves comes in again at the left."""
    return Image.fromarray(numpy.roll(numpy.asarray(picture), columns, axis=1))


# Scenes -----------------------------------------------------------------------------------------


def test_captions_read_as_documented() -> None:
    assert ONE.caption == "a red circle on a white background"
    assert TWO.caption == "a green square left of a purple ring on a black background"
    orange = Scene((Thing("orange", "star"),), "orange")
    assert orange.caption == "an orange star on an orange background"


def test_captions_round_trip() -> None:
    rng = random.Random(1)
    for _ in range(500):
        scene = random_scene(rng)
        assert Scene.parse(scene.caption) == scene
        assert Scene.parse(f"  {scene.caption.upper()} ") == scene


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a photo of a cat",
        "a pink circle on a white background",
        "a red oval on a white background",
        "a red circle on a pink background",
        "a red circle right of a blue ring on a white background",
        "a red circle on a white background and more",
    ],
)
def test_other_captions_are_not_read(caption: str) -> None:
    assert Scene.parse(caption) is None


def test_objects_never_have_the_backgrounds_colour() -> None:
    for scene, _ in drawn(200, seed=2):
        assert scene.background not in [thing.colour for thing in scene.things]


def test_training_leaves_out_what_the_exam_asks() -> None:
    for scene in itertools.islice(training_scenes(20), 5000):
        assert not scene.held_out
        assert not scene.has_unseen_triple


def test_exam_scenes() -> None:
    scenes = exam_scenes(120, 7)
    assert len({scene.caption for scene in scenes}) == len(scenes) == 120
    assert all(scene.held_out and len(scene.things) == 2 for scene in scenes)
    assert sum(scene.has_unseen_triple for scene in scenes) == 60
    assert exam_scenes(120, 7) == scenes
    assert exam_scenes(120, 8) != scenes


# Judging what is right --------------------------------------------------------------------------


def test_drawn_scenes_are_all_right() -> None:
    wrong = [
        scene.caption
        for scene, picture in drawn(200, seed=3)
        if not judge(picture, scene).all_right
    ]
    assert wrong == []


def test_blurred_and_noisy_scenes_are_right() -> None:
    for seed, (scene, picture) in enumerate(drawn(100, seed=4)):
        soft = noisy(picture.filter(ImageFilter.GaussianBlur(0.7)), 6.0, seed)
        assert judge(soft, scene).right, scene.caption


@pytest.mark.parametrize("columns", [-2, 2])
def test_leaning_a_little_over_the_middle_is_right(columns: int) -> None:
    picture = Image.new("RGB", (SIZE, SIZE), PALETTE["black"])
    pen = ImageDraw.Draw(picture)
    pen.rectangle((9, 20, 31, 42), fill=PALETTE["green"])
    pen.rectangle((34, 20, 56, 42), fill=PALETTE["purple"])
    scene = Scene((Thing("green", "square"), Thing("purple", "square")), "black")
    assert judge(shifted(picture, columns), scene).all_right


def test_larger_pictures_are_judged_too() -> None:
    picture = draw(TWO, random.Random(0)).resize((4 * SIZE, 4 * SIZE))
    assert judge(picture, TWO).all_right


# Judging what is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_swapped_objects(seed: int) -> None:
    picture = draw(replace(TWO, things=TWO.things[::-1]), random.Random(seed))
    verdict = judge(picture, TWO)
    assert not verdict.places
    assert not verdict.colours
    assert not verdict.right


def test_swapped_objects_of_one_colour_have_wrong_shapes() -> None:
    scene = Scene((Thing("red", "square"), Thing("red", "ring")), "white")
    verdict = judge(draw(replace(scene, things=scene.things[::-1]), random.Random(0)), scene)
    assert verdict.right
    assert not verdict.all_right


@pytest.mark.parametrize("colour", sorted(PALETTE.keys() - {"black", "green", "purple"}))
def test_wrong_colour(colour: str) -> None:
    for things in (
        (Thing(colour, "square"), TWO.things[1]),
        (TWO.things[0], Thing(colour, "ring")),
    ):
        verdict = judge(draw(replace(TWO, things=things), random.Random(0)), TWO)
        assert not verdict.colours
        assert verdict.places
        assert verdict.shapes
        assert not verdict.right


def test_one_colour_for_both_objects() -> None:
    things = (TWO.things[0], Thing("green", "ring"))
    assert not judge(draw(replace(TWO, things=things), random.Random(0)), TWO).right


@pytest.mark.parametrize("background", sorted(PALETTE.keys() - {"black", "green", "purple"}))
def test_wrong_background(background: str) -> None:
    verdict = judge(draw(replace(TWO, background=background), random.Random(0)), TWO)
    assert not verdict.colours
    assert verdict.places
    assert not verdict.right


@pytest.mark.parametrize("drawn_shape", SHAPES)
@pytest.mark.parametrize("asked_shape", SHAPES)
def test_wrong_shape(drawn_shape: str, asked_shape: str) -> None:
    picture = draw(Scene((Thing("red", drawn_shape),), "white"), random.Random(0))
    verdict = judge(picture, Scene((Thing("red", asked_shape),), "white"))
    assert verdict.right
    assert verdict.shapes == (drawn_shape == asked_shape)


@pytest.mark.parametrize("kept", [0, 1])
def test_missing_object(kept: int) -> None:
    picture = draw(TWO, random.Random(0))
    half = (SIZE // 2 * (1 - kept), 0, SIZE // 2 * (2 - kept), SIZE)
    picture.paste(PALETTE["black"], half)
    assert judge(picture, TWO) == NOTHING


def test_two_objects_where_one_was_asked() -> None:
    scene = Scene((Thing("green", "square"),), "black")
    assert not judge(draw(TWO, random.Random(0)), scene).right


@pytest.mark.parametrize("colour", ["green", "yellow"])
def test_added_object(colour: str) -> None:
    picture = Image.new("RGB", (SIZE, SIZE), PALETTE["black"])
    pen = ImageDraw.Draw(picture)
    pen.rectangle((6, 6, 24, 24), fill=PALETTE["green"])
    pen.rectangle((38, 6, 56, 24), fill=PALETTE["purple"])
    scene = Scene((Thing("green", "square"), Thing("purple", "square")), "black")
    assert judge(picture, scene).all_right
    pen.rectangle((10, 44, 18, 52), fill=PALETTE[colour])
    assert not judge(picture, scene).right


def test_objects_of_two_colours() -> None:
    picture = Image.new("RGB", (SIZE, SIZE), PALETTE["white"])
    pen = ImageDraw.Draw(picture)
    pen.rectangle((16, 16, 48, 32), fill=PALETTE["red"])
    pen.rectangle((16, 33, 48, 48), fill=PALETTE["blue"])
    for colour in ("red", "blue"):
        assert not judge(picture, Scene((Thing(colour, "square"),), "white")).right


@pytest.mark.parametrize("colour", sorted(PALETTE))
def test_empty_pictures(colour: str) -> None:
    picture = Image.new("RGB", (SIZE, SIZE), PALETTE[colour])
    for scene in (ONE, TWO):
        assert judge(picture, scene) == NOTHING


def test_all_black_picture() -> None:
    picture = Image.new("RGB", (SIZE, SIZE), (0, 0, 0))
    assert not any(judge(picture, scene).right for scene, _ in drawn(50, seed=5))


def test_pure_noise_is_wrong() -> None:
    values = numpy.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=numpy.uint8)
    picture = Image.fromarray(values)
    assert not any(judge(picture, scene).right for scene, _ in drawn(50, seed=6))


# Scoring ----------------------------------------------------------------------------------------


def test_score_counts_and_batches() -> None:
    scenes = exam_scenes(45, 7)
    batches: list[int] = []

    def generate(captions: list[str]) -> list[Image.Image]:
        """Draws each caption but the first of a batch, which comes out black."""
        batches.append(len(captions))
        read = [Scene.parse(caption) for caption in captions]
        pictures = [draw(scene, random.Random(0)) for scene in read if scene is not None]
        return [Image.new("RGB", (SIZE, SIZE)), *pictures[1:]]

    total = score(generate, scenes)
    assert batches == [BATCH, BATCH, 5]
    # The firsts are scenes 0, 20 and 40: none with an unseen triple, which every second has.
    assert total == Score(45, 42, 42, 22, 22, 22)
    assert total.fraction == pytest.approx(42 / 45)
    assert total.shapes_fraction == pytest.approx(42 / 45)
    assert total.unseen_fraction == total.unseen_shapes_fraction == 1.0


def test_score_of_nothing() -> None:
    total = score(lambda captions: [], [])
    assert total.pictures == 0
    assert total.fraction == total.unseen_fraction == 0.0


def test_score_refuses_missing_pictures() -> None:
    with pytest.raises(ValueError, match="5 captions gave 0 pictures"):
        score(lambda captions: [], exam_scenes(5, 7))


def test_contact_sheet_frames_wrong_pictures() -> None:
    good, bad = draw(TWO, random.Random(0)), draw(ONE, random.Random(0))
    sheet = contact_sheet([good, bad], [judge(good, TWO), judge(bad, TWO)], columns=2)
    assert sheet.size == (2 * (SIZE + 8), SIZE + 8)
    assert sheet.getpixel((2, 2)) == (128, 128, 128)
    assert sheet.getpixel((SIZE + 8 + 2, 2)) == PALETTE["red"]
