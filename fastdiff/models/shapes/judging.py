"""Judges pictures against the captions of the shapes world, and counts what they got right."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy
from numpy.typing import NDArray

from fastdiff.models.shapes.scenes import PALETTE, SHAPES, SIZE, Scene, Thing, draw

if TYPE_CHECKING:
    from PIL import Image

_NAMES = tuple(PALETTE)
_COLOURS = numpy.array(list(PALETTE.values()), dtype=numpy.float32)

_FRAME = 2  # pixels along the picture's border that show the background
_LEAST_CORE = 6  # pixels that a blob keeps when its rim is taken off; edges and specks keep fewer
_LEAST_AREA = 60  # pixels of an object; the smallest that `draw` makes, a star, has about 120
_LEAST_SHARE = 0.6  # part of an object's core that must have its colour
_SWAY = 4  # pixels that the line between two objects may lie off the middle
_SIDE = 32  # side of the square that shapes are compared in

_Mask = NDArray[numpy.bool_]
_Pixels = NDArray[numpy.float32]
_Value = TypeVar("_Value", numpy.bool_, numpy.int64)


@dataclass(frozen=True)
class Verdict:
    """What one picture got right of its caption."""

    colours: bool
    """The background has its colour, and so has every object at its place."""
    places: bool
    """As many objects as in the caption, each on its side, none with the other one's colour."""
    shapes: bool
    """Every object looks most like the shape that the caption gives it."""

    @property
    def right(self) -> bool:
        """Whether the picture counts as right: colours and places."""
        return self.colours and self.places

    @property
    def all_right(self) -> bool:
        """Whether the shapes are right as well."""
        return self.right and self.shapes


def judge(picture: Image.Image, scene: Scene) -> Verdict:
    """Compare a picture with what its caption says; one of another size is first made SIZE x SIZE.

    Two objects of one colour that changed places show only as wrong shapes.
    """
    from PIL import Image

    reduced = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    pixels = numpy.asarray(reduced, dtype=numpy.float32)
    found = _look(pixels, halves=len(scene.things) == 2)
    if found is None:
        return Verdict(colours=False, places=False, shapes=False)
    pairs = list(zip(found.objects, scene.things, strict=True))
    seen, asked = [o.colour for o in found.objects], [t.colour for t in scene.things]
    strayed = any(c != own and c in asked for c, own in zip(seen, asked, strict=True))
    return Verdict(
        colours=found.background == scene.background and seen == asked,
        places=not strayed,
        shapes=all(_shape(o.coverage) == thing.shape for o, thing in pairs),
    )


@dataclass(frozen=True)
class _Object:
    """One object found in a picture."""

    colour: str | None
    """A name of `PALETTE`; None when no colour fills enough of it."""
    coverage: _Pixels
    """[SIZE, SIZE] float32: 1 where the object is, 0 where the background is, between at edges."""
    area: int
    x: float
    """Column of its centre."""


@dataclass(frozen=True)
class _Found:
    """What a picture shows: its background's colour and its objects from left to right."""

    background: str
    objects: tuple[_Object, ...]


def _look(pixels: _Pixels, *, halves: bool) -> _Found | None:
    """Find one object, or one in each half, in [SIZE, SIZE, 3] float32; None if not just those."""
    classes = _classes(pixels)
    frame = numpy.ones((SIZE, SIZE), dtype=bool)
    frame[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    background = int(numpy.bincount(classes[frame], minlength=len(_NAMES)).argmax())
    ground = numpy.median(pixels[frame & (classes == background)], axis=0)
    foreground = classes != background
    objects = []
    for part in _halves(foreground) if halves else [foreground]:
        blobs = list(_blobs(part))
        if len(blobs) != 1:
            return None
        objects.append(_object(pixels, classes, blobs[0], ground))
    if any(o.area < _LEAST_AREA for o in objects):
        return None
    if halves and not objects[0].x < SIZE / 2 < objects[1].x:
        return None
    return _Found(_NAMES[background], tuple(objects))


def _classes(pixels: _Pixels) -> NDArray[numpy.intp]:
    """Index of each pixel's nearest `PALETTE` colour: [h, w, 3] float32 to [h, w] int64."""
    away = ((pixels[:, :, None, :] - _COLOURS) ** 2).sum(axis=-1)
    return numpy.asarray(away.argmin(axis=-1))


def _halves(mask: _Mask) -> list[_Mask]:
    """The mask left and right of the emptiest column near the middle, both [SIZE, SIZE] bool.

    An object that leans a little over the middle stays whole that way.
    """
    middle = SIZE // 2
    filled = mask.sum(axis=0)
    near = range(middle - _SWAY, middle + _SWAY)
    cut = min(near, key=lambda x: (int(filled[x]), abs(2 * x + 1 - SIZE)))
    columns = numpy.arange(SIZE)[None, :]
    return [mask & (columns < cut), mask & (columns >= cut)]


def _blobs(mask: _Mask) -> Iterator[_Mask]:
    """Connected parts of a [h, w] bool mask, corners counted, without specks and thin lines."""
    core = _eroded(mask)
    labels = numpy.where(mask, numpy.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = numpy.where(mask, _neighbours(labels).max(axis=0), 0)
        if numpy.array_equal(spread, labels):
            break
        labels = spread
    for label in numpy.unique(labels[core]):
        blob = labels == label
        if (blob & core).sum() >= _LEAST_CORE:
            yield blob


def _eroded(mask: _Mask) -> _Mask:
    """The pixels of a [h, w] bool mask whose eight neighbours are in it too."""
    return numpy.asarray(_neighbours(mask).all(axis=0))


def _neighbours(values: NDArray[_Value]) -> NDArray[_Value]:
    """[9, h, w]: each place of [h, w] with the eight around it; zeros beyond the border."""
    height, width = values.shape
    padded = numpy.pad(values, 1)
    shifts = itertools.product(range(3), range(3))
    return numpy.stack([padded[y : y + height, x : x + width] for y, x in shifts])


def _object(
    pixels: _Pixels, classes: NDArray[numpy.intp], blob: _Mask, ground: NDArray[numpy.floating]
) -> _Object:
    """Measure one blob, a [SIZE, SIZE] bool mask; `ground` is the background's RGB, [3]."""
    core = blob & _eroded(blob)
    counts = numpy.bincount(classes[core], minlength=len(_NAMES))
    most = int(counts.argmax())
    colour = _NAMES[most] if counts[most] >= _LEAST_SHARE * core.sum() else None
    way = numpy.median(pixels[core & (classes == most)], axis=0) - ground
    along = ((pixels - ground) @ way) / max(float(way @ way), 1.0)
    coverage = numpy.where(blob, along.clip(0.0, 1.0), 0.0).astype(numpy.float32)
    x = float(numpy.nonzero(blob)[1].mean())
    return _Object(colour, coverage, area=int((coverage > 0.5).sum()), x=x)


# Shapes -----------------------------------------------------------------------------------------


def _shape(coverage: _Pixels) -> str:
    """The name of the shape that overlaps most with an object's coverage, [SIZE, SIZE] float32."""
    square = _squared(coverage)
    return max(SHAPES, key=lambda shape: max(_overlap(square, t) for t in _templates()[shape]))


def _squared(coverage: _Pixels) -> _Pixels:
    """The object alone, stretched to [_SIDE, _SIDE] float32."""
    from PIL import Image

    rows = numpy.nonzero((coverage > 0.5).any(axis=1))[0]
    columns = numpy.nonzero((coverage > 0.5).any(axis=0))[0]
    crop = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    stretched = Image.fromarray(crop).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return numpy.asarray(stretched, dtype=numpy.float32)


def _overlap(one: _Pixels, other: _Pixels) -> float:
    """Intersection over union of two coverages of the same shape."""
    return float(numpy.minimum(one, other).sum() / numpy.maximum(one, other).sum())


@functools.cache
def _templates() -> dict[str, tuple[_Pixels, ...]]:
    """How each shape looks when `draw` makes it, sharp and soft: [_SIDE, _SIDE] float32 each."""
    from PIL import ImageFilter

    rng = random.Random(0)
    made = {}
    for shape in SHAPES:
        thing = Thing("black", shape)
        sharp = draw(Scene((thing, thing), "white"), rng)
        found = [
            _look(numpy.asarray(picture, dtype=numpy.float32), halves=True)
            for picture in (sharp, sharp.filter(ImageFilter.GaussianBlur(1.0)))
        ]
        made[shape] = tuple(_squared(o.coverage) for f in found if f for o in f.objects)
    return made


# Counting ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How many pictures were right, and how many of those with a combination never trained on."""

    pictures: int
    right: int
    shapes_right: int
    unseen_pictures: int
    unseen_right: int
    unseen_shapes_right: int

    @classmethod
    def of(cls, scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> Score:
        """Count verdicts, one for each scene."""
        unseen = [v for s, v in zip(scenes, verdicts, strict=True) if s.has_unseen_triple]
        return cls(
            pictures=len(verdicts),
            right=sum(v.right for v in verdicts),
            shapes_right=sum(v.shapes for v in verdicts),
            unseen_pictures=len(unseen),
            unseen_right=sum(v.right for v in unseen),
            unseen_shapes_right=sum(v.shapes for v in unseen),
        )

    @property
    def fraction(self) -> float:
        """Of all pictures, those with the right colours at the right places; 0 when none were."""
        return self.right / max(self.pictures, 1)

    @property
    def shapes_fraction(self) -> float:
        """Of all pictures, those with the right shapes."""
        return self.shapes_right / max(self.pictures, 1)

    @property
    def unseen_fraction(self) -> float:
        """`fraction` among the scenes with an unseen triple."""
        return self.unseen_right / max(self.unseen_pictures, 1)

    @property
    def unseen_shapes_fraction(self) -> float:
        """`shapes_fraction` among the scenes with an unseen triple."""
        return self.unseen_shapes_right / max(self.unseen_pictures, 1)
