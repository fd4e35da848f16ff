"""Pictures scaled and cut. Sizes are (width, height) in pixels; arrays are (height, width, channels)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_ext.dataset.buckets import Size

Pixels: TypeAlias = NDArray[np.uint8]

_FILTERS = {
    "auto": Image.Resampling.LANCZOS,
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


def resize(pixels: Pixels, size: Size, scaling: str = "auto") -> Pixels:
    """Scale (h, w, 1 or 3) to `size`; "auto" averages areas when no side grows and takes Lanczos otherwise.

    Pillow's filters look at every pixel when they shrink, so that fine patterns do not turn into coarse ones.
    """
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    if scaling == "area" or (scaling == "auto" and width >= size[0] and height >= size[1]):
        rows = _area_average(pixels, size[1])  # (new h, w, channels)
        both = _area_average(rows.transpose(1, 0, 2), size[0]).transpose(1, 0, 2)  # (new h, new w, channels)
        averaged: Pixels = np.clip(np.rint(both), 0, 255).astype(np.uint8)
        return averaged
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize(size, _FILTERS[scaling]), dtype=np.uint8).reshape(size[1], size[0], -1)


def crop(pixels: Pixels, corner: tuple[int, int], size: Size) -> Pixels:
    """The part of `size` whose upper left corner is at `corner` (left, top)."""
    left, top = corner
    return pixels[top : top + size[1], left : left + size[0]]


def centre_corner(resized: Size, size: Size) -> tuple[int, int]:
    """Where the centre of `size` begins; of an odd number of pixels too many the one right or below goes as well."""
    return max(0, resized[0] - size[0]) // 2, max(0, resized[1] - size[1]) // 2


def _area_average(values: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Averages over `count` equal stretches of the first axis; values that lie in two are shared between them."""
    length = values.shape[0]
    edges = np.arange(count + 1) * (length / count)
    whole = np.minimum(edges.astype(np.int64), length - 1)
    exact = np.uint32 if values.dtype == np.uint8 else np.float64
    sums = np.concatenate([np.zeros((1, *values.shape[1:]), exact), np.cumsum(values, axis=0, dtype=exact)])
    integral = sums[whole] + (edges - whole)[:, None, None] * values[whole]
    averages: NDArray[np.float64] = np.diff(integral, axis=0) * (count / length)
    return averages
