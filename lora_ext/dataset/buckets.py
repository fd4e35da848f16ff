"""Aspect-ratio buckets, as sd-scripts makes and chooses them. All sizes are (width, height) in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from lora_ext.config.resolution import resolution_of
from lora_ext.dataset.options import Sizing
from lora_ext.protocols import UserError

Size = tuple[int, int]


@dataclass(frozen=True)
class Bucket:
    """Where a picture goes: it is scaled to `resized`, which covers `size`, and its centre is cut out."""

    size: Size
    resized: Size

    @property
    def cropped_share(self) -> float:
        """Share of the resized picture that the crop throws away, 0…1."""
        return 1.0 - (self.size[0] * self.size[1]) / (self.resized[0] * self.resized[1])


def training_size(sizing: Sizing) -> Size:
    """The resolution of the settings; UserError where it is none."""
    size = resolution_of(sizing.resolution)
    if size is None:
        raise UserError(f"resolution = {sizing.resolution!r}: give one number or width,height, multiples of 8")
    return size


@lru_cache(maxsize=32)
def bucket_resolutions(area_size: Size, min_size: int, max_size: int, step: int) -> tuple[Size, ...]:
    """Every bucket of at most the area of `area_size`, in order: the square, then both ways round for each width."""
    area = area_size[0] * area_size[1]
    side = math.isqrt(area) // step * step
    if side == 0:
        raise UserError(
            f"bucket_reso_steps = {step} is above the resolution {area_size[0]}×{area_size[1]}: "
            "lower the step or raise the resolution"
        )
    found = {(side, side)}
    for width in range(min_size, max_size + 1, step):
        height = min(max_size, area // width // step * step)
        if height >= min_size:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def bucket_limits(sizing: Sizing) -> Size:
    """(smallest, longest) side of a bucket: the settings', widened to multiples of the step."""
    step = sizing.bucket_reso_steps
    return max(step, sizing.min_bucket_reso // step * step), -(-sizing.max_bucket_reso // step) * step


def choose_bucket(width: int, height: int, sizing: Sizing) -> Bucket:
    """The bucket of a picture of this size."""
    resolution = training_size(sizing)
    if not sizing.enable_bucket:
        return _cover(width, height, resolution)
    if sizing.bucket_no_upscale:
        return _without_enlarging(width, height, resolution[0] * resolution[1], sizing.bucket_reso_steps)
    sizes = bucket_resolutions(resolution, *bucket_limits(sizing), sizing.bucket_reso_steps)
    if (width, height) in sizes:
        return Bucket((width, height), (width, height))
    aspect = width / height
    return _cover(width, height, min(sizes, key=lambda size: abs(size[0] / size[1] - aspect)))


def _cover(width: int, height: int, size: Size) -> Bucket:
    """Scale until the picture just covers `size`."""
    wider = width / height > size[0] / size[1]
    scale = size[1] / height if wider else size[0] / width
    return Bucket(size, (int(width * scale + 0.5), int(height * scale + 0.5)))


def _without_enlarging(width: int, height: int, area: int, step: int) -> Bucket:
    """Shrink what is above the area, keep the rest; the bucket is the picture cut down to whole steps.

    A side shorter than one step is the one case that is enlarged, to a step.
    """
    resized = (width, height)
    if width * height > area:
        resized = _shrunk_to_steps(width / height, area, step)
    size = (resized[0] // step * step, resized[1] // step * step)
    if 0 in size:
        return _cover(width, height, (max(step, size[0]), max(step, size[1])))
    return Bucket(size, resized)


def _shrunk_to_steps(aspect: float, area: int, step: int) -> Size:
    """The size of about `area` with one side a multiple of `step`: the side that keeps the aspect ratio better."""
    exact_width = math.sqrt(area * aspect)
    width, height = _round_down(exact_width, step), _round_down(area / exact_width, step)
    by_height = (_round_down(height * aspect, step), height)
    by_width = (width, _round_down(width / aspect, step))
    possible = [size for size in (by_height, by_width) if 0 not in size]
    if not possible:
        return int(exact_width + 0.5), int(area / exact_width + 0.5)
    if min(possible, key=lambda size: abs(size[0] / size[1] - aspect)) is by_width:
        return width, int(width / aspect + 0.5)
    return int(height * aspect + 0.5), height


def _round_down(length: float, step: int) -> int:
    """The nearest whole pixel, cut down to a multiple of `step`."""
    return int(length + 0.5) // step * step
