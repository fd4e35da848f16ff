"""A picture as the dataset knows it: where it lies, what is made of it, and which draws it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lora_ext.checkpoint.conditioning import Frame
from lora_ext.dataset.buckets import Bucket, Size
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.seeds import Occurrence
from lora_ext.dataset.views import Face, View, draw_view, face_of, is_random, plain_view


@dataclass(frozen=True)
class Picture:
    """A picture to encode. `index` is its place in the dataset: with the seed it decides what is drawn for it.

    `original` is its (width, height) in the file; `mask` is a file of its own that says what is learned of it.
    """

    index: int
    path: Path
    bucket: Bucket
    original: Size
    options: SubsetOptions = field(default_factory=SubsetOptions)
    content_hash: str = ""
    mask: Path | None = None

    @cached_property
    def face(self) -> Face | None:
        """The face that its file's name tells of."""
        return face_of(self.path.stem)

    @property
    def is_masked(self) -> bool:
        """Whether only a part of it is learned."""
        return self.mask is not None or self.options.alpha_mask

    @property
    def is_random(self) -> bool:
        """Whether it is another one each time it comes up, apart from being mirrored."""
        return is_random(self.options, self.face)

    @property
    def sides(self) -> tuple[bool, ...]:
        """Whether it is mirrored, for each way round in which it comes up."""
        return (False, True) if self.options.flip_aug else (False,)

    def plain(self, flipped: bool = False) -> View:
        """Its centre in its own colours."""
        return plain_view(self.bucket, self.options.resize_interpolation, flipped)

    def view(self, occurrence: Occurrence, seed: int) -> View:
        """What is shown of it this time."""
        return draw_view(self.original, self.bucket, self.options, self.face, occurrence.random(seed, "view"))

    def frame(self, view: View) -> Frame:
        """What SDXL is told of the picture as it is shown; mirrored, what was cut off at the right is at the left."""
        left, top = view.corner
        if view.flipped:
            left = view.resized[0] - view.size[0] - left
        return Frame(self.original, (left, top), view.size)
