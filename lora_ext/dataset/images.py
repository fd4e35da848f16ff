"""Pictures from files to tensors; arrays are (height, width, channels)."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lora_ext.dataset.scaling import Pixels
from lora_ext.dataset.views import View
from lora_ext.protocols import UserError

_EXIF_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a picture that it cannot read."""


class BrokenImageError(UserError):
    """A picture that cannot be read; the message is the reason alone."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a picture without its pixels; width and height are as it is looked at (EXIF applied)."""

    width: int
    height: int
    transparent: bool
    content_hash: str


def inspect_image(path: Path) -> ImageFacts:
    """Read a picture's facts and check that it is whole; BrokenImageError where it is not.

    PNGs are checked by their checksums, WebPs by their length, JPEGs are decoded at an eighth of their size, others
    decoded: thousands of pictures take seconds. What passes unseen is found when the picture is loaded.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise BrokenImageError("the file is empty")
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if _orientation(image) >= 5:
                width, height = height, width
            transparent = _check_whole(image, content)
    except _READ_ERRORS as error:
        raise BrokenImageError(_reason(error)) from error
    return ImageFacts(width, height, transparent, _digest(content))


def content_hash(path: Path) -> str | None:
    """The hash of a file's content that `inspect_image` gives; None where it cannot be read."""
    try:
        return _digest(path.read_bytes())
    except OSError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def load_image(path: Path, view: View) -> Tensor:
    """What the view shows of a picture: (3, h, w) in −1…1.

    EXIF orientation is applied, transparency is composited on white; UserError names a picture that cannot be read.
    """
    pixels = view.shown(_read(path, _on_white))
    scaled = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1.0)  # (h, w, 3)
    return scaled.permute(2, 0, 1).contiguous()  # (3, h, w)


def read_opacity(path: Path) -> Pixels:
    """How opaque a picture is, 0…255: (h, w, 1), EXIF orientation applied."""
    return _read(path, lambda image: image.convert("RGBA").getchannel("A"))


def read_mask(path: Path) -> Pixels:
    """The red channel of a mask's picture: (h, w, 1), EXIF orientation applied."""
    return _read(path, lambda image: _in_rgb(image).getchannel("R"))


def _read(path: Path, convert: Callable[[Image.Image], Image.Image]) -> Pixels:
    try:
        with Image.open(path) as image:
            orientation = _orientation(image)
            converted = convert(image)
    except _READ_ERRORS as error:
        raise UserError(f"{path}: the picture cannot be read ({_reason(error)}): replace or delete it") from error
    if orientation in _TRANSPOSITIONS:
        converted = converted.transpose(_TRANSPOSITIONS[orientation])
    return np.asarray(converted, dtype=np.uint8).reshape(converted.height, converted.width, -1)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1…8, from what was read when the file was opened; 1 where there is none."""
    raw = image.info.get("exif")
    if not isinstance(raw, bytes):
        return 1
    exif = Image.Exif()
    try:
        exif.load(raw)
        found = exif.get(_EXIF_ORIENTATION, 1)
    except _READ_ERRORS:
        return 1  # viewers show a picture with damaged EXIF data as it is stored
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _may_be_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _check_whole(image: Image.Image, content: bytes) -> bool:
    """Raise one of Pillow's errors where the picture is not whole; True where part of it is transparent."""
    if _may_be_transparent(image):
        alpha = image.convert("RGBA").getchannel("A")
        return int(alpha.getextrema()[0]) < 255
    if image.format == "PNG":
        image.verify()
        return False
    if image.format == "WEBP":
        announced = int.from_bytes(content[4:8], "little") + 8  # RIFF: the length of what follows the first 8 bytes
        if announced > len(content):
            raise OSError(f"{announced - len(content)} bytes are missing at its end")
        return False
    image.draft("L", (1, 1))
    image.load()
    return False


def _on_white(image: Image.Image) -> Image.Image:
    """The picture in RGB, 8 bits a channel."""
    if not _may_be_transparent(image):
        return _in_rgb(image)
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _in_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, 8 bits a channel, whatever lies under what is transparent."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "this is no picture that can be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
