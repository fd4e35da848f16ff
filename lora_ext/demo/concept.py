"""The concept that the base never saw: a house, yellow with a red roof, trigger word `sks`; drawn, and detected.

The detector asks for colours and geometry: each pixel is named by its nearest colour, and the red and yellow pixels
together must look like the drawn house when their box is scaled onto its own.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_ext.demo.classify import Array, Mask, border_color, bounds
from lora_ext.demo.drawing import PALETTE, Place, Point, describe, draw_layers

TRIGGER = "sks"
SUBJECT = "sks house"
BODY_COLOR = "yellow"
ROOF_COLOR = "red"
BODY: tuple[Point, ...] = ((0.2, 0.44), (0.8, 0.44), (0.8, 1.0), (0.2, 1.0))
ROOF: tuple[Point, ...] = ((0.5, 0.0), (1.0, 0.44), (0.0, 0.44))
CONCEPT_BACKGROUNDS = ("white", "black", "gray", "pink", "brown", "cyan", "blue")

THRESHOLD = 0.55
GRID = 40
SAME_AS_BACKGROUND = 70.0
MINIMUM_SHARE = 0.01
OTHER = ("green", "blue", "purple", "white", "black", "gray", "pink", "brown", "cyan")
_ELSEWHERE, _BODY, _ROOF, _BETWEEN, _OTHER = range(5)

Labels = NDArray[np.int64]


def draw_concept(background: str, place: Place, size: tuple[int, int]) -> Image.Image:
    """The house on a plain background at (width, height) pixels, RGB."""
    return draw_layers(size, background, [((BODY,), BODY_COLOR), ((ROOF,), ROOF_COLOR)], place.box(*size))


def concept_caption(background: str, place: Place, rng: random.Random) -> str:
    """A caption of the house in the words and forms of the base's captions."""
    return describe(SUBJECT, background, place, rng)


def detect_concept(image: Image.Image) -> bool:
    """Whether the picture shows the house."""
    return concept_score(image) >= THRESHOLD


def concept_score(image: Image.Image) -> float:
    """How much of the house is right, 0 … 1: the poorer of the overlaps (IoU) of roof and body with the drawn ones."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    labels = name_pixels(pixels)
    house = (labels == _BODY) | (labels == _ROOF)
    for part in (_BODY, _ROOF):
        if (labels == part).mean() < MINIMUM_SHARE:
            return 0.0
    top, bottom, left, right = bounds(house)
    if not 0.7 < (right - left) / max(1, bottom - top) < 1.45:
        return 0.0
    outside = house.copy()
    outside[top:bottom, left:right] = False
    foreign = ((labels == _OTHER).sum() + outside.sum()) / max(1, int(house.sum()))
    crop = _scaled(labels[top:bottom, left:right])
    expected = _expected()
    overlaps = [_overlap(crop, expected, part) for part in (_BODY, _ROOF)]
    return max(0.0, min(overlaps) - 0.5 * max(0.0, float(foreign) - 0.15))


def name_pixels(pixels: Array) -> Labels:
    """Label each pixel of (h, w, 3) by the nearest of: background, body, roof, the blend of both, any other colour.

    A part whose colour is the background's has no pixels.
    """
    background = border_color(pixels)
    named: list[tuple[int, Array]] = [(_ELSEWHERE, background)]
    body, roof = _rgb(BODY_COLOR), _rgb(ROOF_COLOR)
    candidates = [(_BODY, body), (_ROOF, roof), (_BETWEEN, (body + roof) / 2)]
    candidates += [(_OTHER, _rgb(name)) for name in OTHER]
    named += [(label, color) for label, color in candidates if np.linalg.norm(color - background) > SAME_AS_BACKGROUND]
    distances = np.stack([np.linalg.norm(pixels - color, axis=-1) for _, color in named])
    labels: Labels = np.asarray([label for label, _ in named], dtype=np.int64)[distances.argmin(axis=0)]
    labels[_blended(pixels, background) & (labels == _OTHER)] = _ELSEWHERE
    return labels


def _blended(pixels: Array, background: Array) -> Mask:
    """Pixels on the lines between the background and a colour of the house: its blurred rim."""
    rim = np.zeros(pixels.shape[:2], dtype=bool)
    for color in (_rgb(BODY_COLOR), _rgb(ROOF_COLOR)):
        axis = color - background
        along = np.clip((pixels - background) @ axis / max(float(axis @ axis), 1.0), 0.0, 1.0)
        rim |= np.linalg.norm(pixels - (background + along[..., None] * axis), axis=-1) < 40.0
    return rim


def _rgb(name: str) -> Array:
    return np.asarray(PALETTE[name], dtype=np.float32)


def _scaled(labels: Labels) -> Labels:
    """(h, w) labels at (GRID, GRID), by nearest neighbours."""
    rows = (np.arange(GRID) + 0.5) * labels.shape[0] / GRID
    columns = (np.arange(GRID) + 0.5) * labels.shape[1] / GRID
    return labels[rows.astype(int)][:, columns.astype(int)]


def _overlap(labels: Labels, expected: Labels, part: int) -> float:
    """IoU of one part; pixels of the blend between roof and body count as either."""
    found = (labels == part) | ((labels == _BETWEEN) & (expected == part))
    wanted = expected == part
    return float((found & wanted).sum() / max(1, int((found | wanted).sum())))


@cache
def _expected() -> Labels:
    """The labels of the drawn house, scaled to its own box."""
    drawn = draw_concept("black", Place("large", "center", 0.8, 0.0, 0.0), (96, 96))
    labels = name_pixels(np.asarray(drawn, dtype=np.float32))
    top, bottom, left, right = bounds((labels == _BODY) | (labels == _ROOF))
    return _scaled(labels[top:bottom, left:right])
