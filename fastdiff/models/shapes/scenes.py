"""The little world that the embedded model draws: captions, the pictures they mean, and which are kept for the exam.

A scene is one object anywhere, or two side by side, on a plain background:

    a red circle on a white background
    a green square left of a purple ring on a black background
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIZE = 64
"""Side of a picture, in pixels."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "green": (34, 166, 62),
    "blue": (50, 82, 222),
    "yellow": (245, 217, 48),
    "purple": (142, 60, 200),
    "orange": (247, 142, 38),
    "black": (24, 24, 24),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")

UNSEEN_TRIPLES = frozenset(
    {
        ("red", "circle", "left"),
        ("green", "star", "right"),
        ("blue", "cross", "left"),
        ("yellow", "ring", "right"),
        ("purple", "square", "left"),
        ("orange", "triangle", "right"),
        ("black", "star", "left"),
        ("white", "circle", "right"),
    }
)
"""Combinations of colour, shape and place that no training picture shows."""

_CAPTION = re.compile(r"an? (\w+) (\w+)(?: left of an? (\w+) (\w+))? on an? (\w+) background")


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


@dataclass(frozen=True)
class Thing:
    """One object: a colour of `PALETTE` and a shape of `SHAPES`."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What a caption says: one thing, or two from left to right, and the background's colour."""

    things: tuple[Thing, ...]
    background: str

    @property
    def caption(self) -> str:
        words = " left of ".join(f"{_article(t.colour)} {t.shape}" for t in self.things)
        return f"{words} on {_article(self.background)} background"

    @property
    def has_unseen_triple(self) -> bool:
        """Whether it holds a combination of colour, shape and place that training never shows."""
        if len(self.things) == 1:
            return False
        places = zip(self.things, ("left", "right"), strict=True)
        return any((t.colour, t.shape, place) in UNSEEN_TRIPLES for t, place in places)

    @property
    def held_out(self) -> bool:
        """Whether training leaves this caption out: an unseen triple, or one of a tenth by hash."""
        digest = hashlib.sha256(self.caption.encode()).digest()
        return self.has_unseen_triple or digest[0] < 26

    @classmethod
    def parse(cls, caption: str) -> Scene | None:
        """Read a caption; None when it is not one of this world's."""
        match = _CAPTION.fullmatch(caption.strip().lower())
        if match is None:
            return None
        first, second, background = match.group(1, 2), match.group(3, 4), match.group(5)
        pairs = [first] if second[0] is None else [first, second]
        known = all(colour in PALETTE and shape in SHAPES for colour, shape in pairs)
        if not known or background not in PALETTE:
            return None
        return cls(tuple(Thing(colour, shape) for colour, shape in pairs), background)


def random_scene(rng: random.Random, *, things: int | None = None) -> Scene:
    """A scene whose objects never have the background's colour; `things` is 1 or 2, or drawn."""
    background = rng.choice(list(PALETTE))
    colours = [colour for colour in PALETTE if colour != background]
    count = things if things is not None else rng.choice((1, 2))
    return Scene(
        tuple(Thing(rng.choice(colours), rng.choice(SHAPES)) for _ in range(count)), background
    )


def training_scenes(seed: int) -> Iterator[Scene]:
    """Scenes without end, none of them held out."""
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng)
        if not scene.held_out:
            yield scene


def exam_scenes(count: int, seed: int) -> list[Scene]:
    """`count` different held-out scenes of two objects, every second with an unseen triple."""
    rng = random.Random(seed)
    chosen: dict[str, Scene] = {}
    while len(chosen) < count:
        scene = random_scene(rng, things=2)
        wants_triple = len(chosen) % 2 == 1
        if scene.held_out and scene.has_unseen_triple == wants_triple:
            chosen.setdefault(scene.caption, scene)
    return list(chosen.values())


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as an RGB picture of `SIZE` x `SIZE` pixels, drawn four times larger and reduced."""
    from PIL import Image, ImageDraw

    scale = 4
    picture = Image.new("RGB", (SIZE * scale, SIZE * scale), PALETTE[scene.background])
    pen = ImageDraw.Draw(picture)
    for index, thing in enumerate(scene.things):
        if len(scene.things) == 1:
            radius = rng.uniform(14, 24)
            x = rng.uniform(radius + 1, SIZE - radius - 1)
        else:
            radius = rng.uniform(10, 14.5)
            half = SIZE / 2
            x = index * half + rng.uniform(radius + 1, half - radius - 1)
        y = rng.uniform(radius + 1, SIZE - radius - 1)
        outline = _Outline(pen, x * scale, y * scale, radius * scale, PALETTE[scene.background])
        outline.draw(thing.shape, PALETTE[thing.colour])
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


@dataclass(frozen=True)
class _Outline:
    """A place for one shape: centre and radius in pixels of the enlarged picture."""

    pen: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float
    background: tuple[int, int, int]

    def _box(self, radius: float) -> tuple[float, float, float, float]:
        return (self.x - radius, self.y - radius, self.x + radius, self.y + radius)

    def _star(self, points: int, inner: float) -> list[tuple[float, float]]:
        """Corners from the top, clockwise; every second one at `inner` of the radius."""
        corners = []
        for corner in range(2 * points):
            reach = self.radius * (1.0 if corner % 2 == 0 else inner)
            angle = math.pi * corner / points - math.pi / 2
            corners.append((self.x + reach * math.cos(angle), self.y + reach * math.sin(angle)))
        return corners

    def draw(self, shape: str, colour: tuple[int, int, int]) -> None:
        r = self.radius
        if shape == "circle":
            self.pen.ellipse(self._box(r), fill=colour)
        elif shape == "ring":
            self.pen.ellipse(self._box(r), fill=colour)
            self.pen.ellipse(self._box(r * 0.55), fill=self.background)
        elif shape == "square":
            self.pen.rectangle(self._box(r * 0.86), fill=colour)
        elif shape == "triangle":
            self.pen.polygon(self._star(3, 0.5), fill=colour)
        elif shape == "star":
            self.pen.polygon(self._star(5, 0.42), fill=colour)
        elif shape == "cross":
            arm = r * 0.36
            self.pen.rectangle((self.x - arm, self.y - r, self.x + arm, self.y + r), fill=colour)
            self.pen.rectangle((self.x - r, self.y - arm, self.x + r, self.y + arm), fill=colour)
        else:
            raise ValueError(f"no shape is called {shape!r}; there are {', '.join(SHAPES)}")
