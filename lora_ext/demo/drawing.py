"""Plain pictures drawn by code, each with a caption: one shape of one colour on a background of another.

Lengths are fractions of the picture's shorter side; positions are cells of a 3×3 grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 4
PALETTE: dict[str, Color] = {
    "red": (220, 35, 35),
    "orange": (245, 135, 25),
    "yellow": (250, 220, 45),
    "green": (40, 155, 60),
    "blue": (40, 75, 215),
    "purple": (130, 45, 165),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "gray": (130, 130, 130),
    "pink": (250, 165, 200),
    "brown": (115, 65, 30),
    "cyan": (90, 215, 230),
}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
BACKGROUNDS = ("white", "black", "gray", "pink", "brown", "cyan", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
SIZES: dict[str, tuple[float, float]] = {"small": (0.44, 0.50), "medium": (0.58, 0.64), "large": (0.72, 0.80)}
POSITIONS: dict[str, tuple[int, int]] = {
    "top left": (-1, -1),
    "top": (0, -1),
    "top right": (1, -1),
    "left": (-1, 0),
    "center": (0, 0),
    "right": (1, 0),
    "bottom left": (-1, 1),
    "bottom": (0, 1),
    "bottom right": (1, 1),
}
HELD_OUT_SHARE = 0.15
EDGE_MARGIN = 0.04


@dataclass(frozen=True)
class Place:
    """Where an object stands: its size word and grid cell, and the exact size and shift inside them.

    `extent` is a fraction of the shorter side; `shift_x` and `shift_y` are in -1 … 1, from one edge to the other.
    """

    size: str
    position: str
    extent: float
    shift_x: float
    shift_y: float

    @classmethod
    def random(cls, rng: Random, size: str | None = None, position: str | None = None) -> Place:
        """Any place, or any within the given size and position words."""
        size = size or rng.choice(list(SIZES))
        position = position or rng.choice(list(POSITIONS))
        shifts = [cell * rng.uniform(0.75, 1.0) if cell else rng.uniform(-0.15, 0.15) for cell in POSITIONS[position]]
        return cls(size, position, rng.uniform(*SIZES[size]), *shifts)

    def box(self, width: int, height: int) -> tuple[float, float, float]:
        """Left, top and side length, in pixels, of the square that holds the object."""
        side = self.extent * min(width, height)
        margin = EDGE_MARGIN * min(width, height)
        left, top = (
            (length - side) / 2 + shift * max((length - side) / 2 - margin, 0.0)
            for length, shift in ((width, self.shift_x), (height, self.shift_y))
        )
        return left, top, side


@dataclass(frozen=True)
class Scene:
    """One shape on a plain background."""

    shape: str
    color: str
    background: str
    place: Place

    @classmethod
    def random(cls, rng: Random, combination: tuple[str, str, str] | None = None) -> Scene:
        """A scene of `combination` (shape, colour, background), or of any that is not held out."""
        shape, color, background = combination or rng.choice(training_combinations())
        return cls(shape, color, background, Place.random(rng))

    def draw(self, size: tuple[int, int]) -> Image.Image:
        """The picture at (width, height) pixels, RGB."""
        return draw_layers(size, self.background, [(shape_polygons(self.shape), self.color)], self.place.box(*size))

    def caption(self, rng: Random) -> str:
        """A natural sentence or a list of tags, with parts left out at times."""
        named = f"{self.color} {self.shape}"
        return describe(named, self.background, self.place, rng)


def describe(subject: str, background: str, place: Place, rng: Random) -> str:
    """A caption of `subject` in the words of the base's captions: a sentence or tags, with parts left out at times."""
    with_background = rng.random() < 0.92
    with_size = rng.random() < 0.6
    with_position = rng.random() < 0.75
    if rng.random() < 0.6:
        return sentence(subject, background if with_background else None, place, with_size, with_position)
    parts = [subject]
    if with_background:
        parts.append(f"{background} background")
    if with_size:
        parts.append(place.size)
    if with_position:
        parts.append(place.position)
    if rng.random() < 0.3:
        rng.shuffle(parts)
    return ", ".join(parts)


def sentence(subject: str, background: str | None, place: Place, with_size: bool, with_position: bool) -> str:
    """The natural caption, e.g. "a large red circle on a blue background, in the top left"."""
    words = f"{place.size} {subject}" if with_size else subject
    text = f"{_article(words)} {words}"
    if background is not None:
        text += f" on {_article(background)} {background} background"
    if with_position:
        text += f", in the {place.position}"
    return text


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


@cache
def all_combinations() -> tuple[tuple[str, str, str], ...]:
    """Every (shape, colour, background) whose colour and background differ."""
    return tuple(entry for entry in product(SHAPES, COLORS, BACKGROUNDS) if entry[1] != entry[2])


@cache
def held_out_combinations() -> tuple[tuple[str, str, str], ...]:
    """The fixed share of combinations that no training picture shows; each of their parts appears in others."""
    combinations = all_combinations()
    return tuple(sorted(Random(20240).sample(combinations, round(HELD_OUT_SHARE * len(combinations)))))


@cache
def training_combinations() -> tuple[tuple[str, str, str], ...]:
    """The combinations that are not held out."""
    held_out = set(held_out_combinations())
    return tuple(entry for entry in all_combinations() if entry not in held_out)


@cache
def shape_polygons(shape: str) -> tuple[tuple[Point, ...], ...]:
    """Outlines of a shape in the unit square; overlapping outlines cancel (even-odd), which makes the ring's hole."""
    half = 0.5
    if shape == "circle":
        return (_ellipse(half),)
    if shape == "ring":
        return (_ellipse(half), _ellipse(0.25))
    if shape == "square":
        return (((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)),)
    if shape == "triangle":
        return (((0.5, 0.04), (1.0, 0.94), (0.0, 0.94)),)
    if shape == "diamond":
        return (((0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)),)
    if shape == "star":
        radii = (0.54, 0.22)
        turns = [(radii[index % 2], math.pi * index / 5) for index in range(10)]
        return (tuple((half + radius * math.sin(turn), 0.54 - radius * math.cos(turn)) for radius, turn in turns),)
    if shape == "cross":
        low, high = 0.34, 0.66
        return (
            (
                (low, 0.0), (high, 0.0), (high, low), (1.0, low), (1.0, high), (high, high),
                (high, 1.0), (low, 1.0), (low, high), (0.0, high), (0.0, low), (low, low),
            ),
        )  # fmt: skip
    if shape == "heart":
        return (tuple(_heart_point(2 * math.pi * step / 48) for step in range(48)),)
    raise ValueError(f"shape {shape!r} is unknown; known are {', '.join(SHAPES)}")


def _ellipse(radius: float) -> tuple[Point, ...]:
    turns = [2 * math.pi * step / 48 for step in range(48)]
    return tuple((0.5 + radius * math.cos(turn), 0.5 + radius * math.sin(turn)) for turn in turns)


def _heart_point(turn: float) -> Point:
    x = 16 * math.sin(turn) ** 3
    y = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
    return 0.5 + x / 33, 0.46 - y / 32


def draw_layers(
    size: tuple[int, int],
    background: str,
    layers: list[tuple[tuple[tuple[Point, ...], ...], str]],
    box: tuple[float, float, float],
) -> Image.Image:
    """Draw layers of (outlines in the unit square, colour name) into `box` (left, top, side; pixels), in order."""
    width, height = size
    canvas = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), PALETTE[background])
    left, top, side = box
    for polygons, color in layers:
        mask = Image.new("1", canvas.size, 0)
        pen = ImageDraw.Draw(mask)
        for index, polygon in enumerate(polygons):
            points = [((left + x * side) * SUPERSAMPLING, (top + y * side) * SUPERSAMPLING) for x, y in polygon]
            pen.polygon(points, fill=(index + 1) % 2)
        canvas.paste(PALETTE[color], mask=mask)
    return canvas.resize(size, Image.Resampling.BOX)
