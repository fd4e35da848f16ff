"""How a picture is shown: at which size, which part of it, mirrored or not, in which colours."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from lora_ext.dataset.buckets import Bucket, Size
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.scaling import Pixels, centre_corner, crop, resize

FLIP_SHARE = 0.5
COLOUR_SHARE = 0.33
"""Share of the times that `color_aug` changes anything."""

_HUE_LIMIT = 16.0  # degrees
_GAMMA_RANGE = (0.95, 1.05)
_LEAST_FACE = 40  # pixels; smaller faces are not moved about
_FACE_SHIFT = 20  # a face moves by up to its size divided by this


@dataclass(frozen=True)
class Face:
    """Where a face is in a picture: its centre and its size, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """A picture scaled to `resized`, the part of `size` at `corner` (left, top) cut out, then mirrored or not.

    `hue` in degrees and `gamma` change its colours.
    """

    resized: Size
    size: Size
    corner: tuple[int, int]
    scaling: str = "auto"
    flipped: bool = False
    hue: float = 0.0
    gamma: float = 1.0

    def cut(self, pixels: Pixels) -> Pixels:
        """Scale, cut and mirror (h, w, channels)."""
        part = crop(resize(pixels, self.resized, self.scaling), self.corner, self.size)
        return part[:, ::-1] if self.flipped else part

    def shown(self, pixels: Pixels) -> Pixels:
        """The same, in the view's colours, of (h, w, 3)."""
        return with_gamma(with_hue(self.cut(pixels), self.hue), self.gamma)


def plain_view(bucket: Bucket, scaling: str = "auto", flipped: bool = False) -> View:
    """The centre of a picture in its own colours."""
    return View(bucket.resized, bucket.size, centre_corner(bucket.resized, bucket.size), scaling, flipped)


def is_random(options: SubsetOptions, face: Face | None) -> bool:
    """Whether a picture is another one each time it is shown, apart from being mirrored."""
    return options.random_crop or options.color_aug or (options.face_crop_aug_range is not None and face is not None)


def draw_view(original: Size, bucket: Bucket, options: SubsetOptions, face: Face | None, rng: random.Random) -> View:
    """A view as the options want it; `original` is the picture's size in its file.

    The same draws in the same order whatever is switched on: whether a picture is mirrored does not depend on the rest.
    """
    flipped = rng.random() < FLIP_SHARE and options.flip_aug
    view = plain_view(bucket, options.resize_interpolation, flipped)
    if options.face_crop_aug_range is not None and face is not None:
        view = _face_view(view, original, face, options.face_crop_aug_range, options.random_crop, rng)
    elif options.random_crop:
        spare = [length - wanted for length, wanted in zip(bucket.resized, bucket.size, strict=True)]
        view = replace(view, corner=(rng.randint(0, spare[0]), rng.randint(0, spare[1])))
    return _with_drawn_colours(view, rng) if options.color_aug else view


def _face_view(
    view: View, original: Size, face: Face, face_range: tuple[float, float], random_crop: bool, rng: random.Random
) -> View:
    """A part around the face, at a scale at which the part's short side is so many times the face (sd-scripts' rule).

    A picture is not enlarged for that, except to cover the part.
    """
    size = view.size
    face_size = max(face.width, face.height, 1)
    cover = max(size[0] / original[0], size[1] / original[1])
    smallest_face, largest_face = (min(1.0, min(size) / (face_size * factor)) for factor in reversed(face_range))
    lowest = max(cover, smallest_face)
    scale = rng.uniform(lowest, max(lowest, largest_face))
    resized = (max(size[0], int(original[0] * scale + 0.5)), max(size[1], int(original[1] * scale + 0.5)))
    moves = face_range[0] != face_range[1] and face_size > min(size) // 10 and face_size >= _LEAST_FACE
    corner = []
    for centre, length, wanted in zip((face.x, face.y), resized, size, strict=True):
        place = int(centre * scale + 0.5)
        start = place - wanted // 2
        if random_crop:
            reach = max(length - place, place)
            start += rng.randint(0, reach) + rng.randint(0, reach) - reach
        elif moves:
            start += rng.randint(-(face_size // _FACE_SHIFT), face_size // _FACE_SHIFT)
        corner.append(max(0, min(start, length - wanted)))
    return replace(view, resized=resized, corner=(corner[0], corner[1]))


def _with_drawn_colours(view: View, rng: random.Random) -> View:
    """Now and then another hue or another brightness, as sd-scripts' `color_aug`."""
    if rng.random() > COLOUR_SHARE:
        return view
    if rng.random() > 0.5:
        return replace(view, hue=rng.uniform(-_HUE_LIMIT, _HUE_LIMIT))
    return replace(view, gamma=rng.uniform(*_GAMMA_RANGE))


def face_of(stem: str) -> Face | None:
    """The face that a file's name tells of (`name_x_y_width_height`); None where it tells of none."""
    parts = stem.split("_")
    if len(parts) < 5 or not all(part.isdecimal() for part in parts[-4:]):
        return None
    x, y, width, height = map(int, parts[-4:])
    return Face(x, y, width, height) if x > 0 else None


def with_hue(pixels: Pixels, degrees: float) -> Pixels:
    """(h, w, 3) with every hue turned by so many degrees."""
    if degrees == 0:
        return pixels
    hsv = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(degrees * 256 / 360)) % 256
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"), dtype=np.uint8)


def with_gamma(pixels: Pixels, gamma: float) -> Pixels:
    """(h, w, 3) with each value, as a share of white, raised to the power of `gamma`.

    sd-scripts raises values from 0 to 255, which lets no white be: 0.95 makes 255 a light grey of 193.
    """
    if gamma == 1:
        return pixels
    table = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return table[pixels]
