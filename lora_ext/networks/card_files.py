"""What a person puts beside a network for its card: words in `name.json`, a picture in `name.png`.

The file names and keys are those of the WebUI's built-in, whose cards show the same.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, PngImagePlugin

from lora_ext.networks.atomic_write import replace_file
from lora_ext.protocols import UserError

WORDS = ("description", "activation text", "preferred weight", "negative text", "notes", "sd version")
"""Keys of a card's words; the preferred weight is a number, 0 where there is none."""

VERSIONS = ("", "SD1", "SD2", "SDXL", "Unknown")
PICTURES = tuple(f"{infix}.{kind}" for kind in ("png", "jpg", "jpeg", "webp") for infix in ("", ".preview"))
"""What stands behind a network's stem in the name of its picture, the first that is there being shown."""

_LONGEST_SIDE = 1024
_MOST_PIXELS = 64 * 2**20


def read_words(network: Path) -> dict[str, Any]:
    """The words of a card, and whatever else the file holds; UserError where it is no file of this kind."""
    path = network.with_suffix(".json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): put it right or delete it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no table of words: put it right or delete it")
    return values


def edit_words(network: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set words of a card, and leave all others in the file as they are; returns what it holds then."""
    values = {**read_words(network), **{key: _word(key, value) for key, value in changes.items()}}
    replace_file(network.with_suffix(".json"), [json.dumps(values, indent=4, ensure_ascii=False).encode("utf-8")])
    return values


def _word(key: str, value: Any) -> Any:
    if key not in WORDS:
        raise UserError(f"a card has no {key!r}: allowed are {', '.join(WORDS)}")
    if key == "sd version" and value not in VERSIONS:
        raise UserError(f"sd version = {value!r}: allowed are {', '.join(VERSIONS[1:])}")
    if key != "preferred weight":
        return str(value)
    try:
        weight = float(value or 0)
    except (TypeError, ValueError) as error:
        raise UserError(f"preferred weight = {value!r} is no number: write one like 0.8") from error
    if not math.isfinite(weight):
        raise UserError(f"preferred weight = {value!r} is no number: write one like 0.8")
    return weight


def cover_name(stem: str, names: Collection[str]) -> str | None:
    """The picture of the network of this stem among the names of the files in its folder."""
    return next((stem + suffix for suffix in PICTURES if stem + suffix in names), None)


def cover_of(network: Path) -> Path | None:
    """The picture beside a network; None where there is none."""
    paths = (network.with_name(network.stem + suffix) for suffix in PICTURES)
    return next((path for path in paths if path.is_file()), None)


def write_cover(network: Path, picture: bytes) -> Path:
    """Put a picture of any usual format beside a network as `name.png`, at most 1024 pixels long.

    An infotext in it stays, so that the card can give its prompt back. UserError where it is no picture.
    """
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise UserError(f"the picture has {opened.width}×{opened.height} pixels: make it smaller first")
            told = str(opened.info.get("parameters", ""))
            small = ImageOps.exif_transpose(opened)
            small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.LANCZOS)
            kept = small.convert("RGBA" if small.mode in ("RGBA", "LA", "PA") else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"this is no picture that can be read ({error}): give a PNG, JPEG or WebP file") from error
    info = PngImagePlugin.PngInfo()
    if told:
        info.add_text("parameters", told)
    stream = io.BytesIO()
    kept.save(stream, "PNG", pnginfo=info)
    path = network.with_name(f"{network.stem}.png")
    replace_file(path, [stream.getvalue()])
    return path
