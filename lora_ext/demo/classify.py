"""Reads a plain picture back by its pixels: background, colour, shape and place, with no trained network.

The background is the border's median colour; the object is what lies nearer to its own colour than to the background;
the shape is the drawn template that overlaps the object best once both are centred and scaled to the same size, each
with its own proportions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_ext.demo.drawing import BACKGROUNDS, COLORS, PALETTE, POSITIONS, SHAPES, draw_layers, shape_polygons

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

GRID = 48
TEMPLATE_PIXELS = 96
MINIMUM_CONTRAST = 30.0
MINIMUM_AREA = 0.01


@dataclass(frozen=True)
class Reading:
    """What a picture shows; `confidence` is the overlap (IoU, 0 … 1) with the best template, 0 for an empty picture."""

    shape: str | None
    color: str | None
    background: str
    position: str | None
    confidence: float


def classify(image: Image.Image) -> Reading:
    """Read a picture of one plain object on a plain background."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    background = border_color(pixels)
    name = nearest_color(background, BACKGROUNDS)
    split = split_object(pixels, background)
    if split is None:
        return Reading(None, None, name, None, 0.0)
    mask, color = split
    overlaps = {shape: overlap(normalized(mask), template(shape)) for shape in SHAPES}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return Reading(best, nearest_color(color, COLORS), name, grid_position(mask), overlaps[best])


def border_color(pixels: Array) -> Array:
    """Median colour (3,) of the outermost two pixels of (h, w, 3)."""
    edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    median: Array = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0).astype(np.float32)
    return median


def nearest_color(color: Array, names: tuple[str, ...]) -> str:
    """The palette colour of `names` that is nearest to `color` in RGB."""
    return min(names, key=lambda name: float(np.sum((color - np.asarray(PALETTE[name], dtype=np.float32)) ** 2)))


def split_object(pixels: Array, background: Array) -> tuple[Mask, Array] | None:
    """The object's mask (h, w) and its colour (3,); None where nothing stands out."""
    distance = np.linalg.norm(pixels - background, axis=-1)
    peak = float(np.quantile(distance, 0.99))
    if peak < MINIMUM_CONTRAST:
        return None
    color = np.median(pixels[distance > 0.7 * peak], axis=0).astype(np.float32)
    axis = color - background
    along = (pixels - background) @ axis / max(float(axis @ axis), 1.0)
    mask = along > 0.5
    if mask.mean() < MINIMUM_AREA:
        return None
    return mask, color


def bounds(mask: Mask) -> tuple[int, int, int, int]:
    """Top, bottom, left, right (ends exclusive) of the rows and columns with at least two pixels of the mask."""
    rows = np.flatnonzero(mask.sum(axis=1) >= 2)
    columns = np.flatnonzero(mask.sum(axis=0) >= 2)
    if not len(rows) or not len(columns):
        return 0, mask.shape[0], 0, mask.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def normalized(mask: Mask) -> Array:
    """The mask's box in the middle of a (GRID, GRID) square that its longer side fills, in 0 … 1."""
    top, bottom, left, right = bounds(mask)
    height, width = bottom - top, right - left
    side = max(height, width)
    square = Image.new("L", (side, side))
    crop = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
    square.paste(crop, ((side - width) // 2, (side - height) // 2))
    scaled = square.resize((GRID, GRID), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float32) / 255


@cache
def template(shape: str) -> Array:
    """The drawn shape, as `normalized` gives it."""
    box = (8.0, 8.0, TEMPLATE_PIXELS - 16.0)
    drawn = draw_layers((TEMPLATE_PIXELS, TEMPLATE_PIXELS), "black", [(shape_polygons(shape), "white")], box)
    return normalized(np.asarray(drawn.convert("L")) > 127)


def overlap(first: Array, second: Array) -> float:
    """Soft intersection over union of two masks in 0 … 1."""
    return float(np.minimum(first, second).sum() / max(float(np.maximum(first, second).sum()), 1e-6))


def grid_position(mask: Mask) -> str:
    """The cell of the 3×3 grid that the object's box leans to, relative to the room that it leaves."""
    top, bottom, left, right = bounds(mask)
    cell = tuple(
        0 if abs(lean) < 0.45 else (1 if lean > 0 else -1)
        for lean in (_lean(left, right, mask.shape[1]), _lean(top, bottom, mask.shape[0]))
    )
    return next(name for name, place in POSITIONS.items() if place == cell)


def _lean(low: int, high: int, length: int) -> float:
    """-1 … 1: where a span lies between the two ends."""
    room = length - (high - low)
    return (low - (length - high)) / room if room > 0 else 0.0
