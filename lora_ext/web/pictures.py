"""Pictures for the page: a route serves exactly those files for which the program itself made an address.

An address carries a signature over path, size and modification time with a secret of this process, so no path that
somebody makes up is ever read.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import secrets
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image, ImageOps

from lora_ext.protocols import UserError

ROUTES = "lora-workshop/api"
"""Where the routes live, relative to the page."""

THUMBNAIL = 160
"""Longest side of a thumbnail, in pixels."""

SAMPLE_THUMBNAIL = 256
"""Longest side of a sample in the row of samples, in pixels."""

_SECRET = secrets.token_bytes(32)


def picture_url(path: Path, size: int = 0) -> str:
    """The address of a picture relative to the page; `size` is the longest side in pixels, 0 the file itself."""
    changed = path.stat().st_mtime_ns
    query = {"path": str(path), "size": size, "changed": changed, "key": _signature(str(path), size, changed)}
    return f"{ROUTES}/picture?{urlencode(query)}"


def check_signature(path: str, size: int, changed: int, key: str) -> None:
    """Raise UserError unless `picture_url` made this address."""
    if not hmac.compare_digest(_signature(path, size, changed), key):
        raise UserError(f"{path}: this picture is not shown here; load the page again")


@lru_cache(maxsize=512)
def thumbnail(path: Path, size: int, changed: int) -> bytes:
    """The picture as JPEG (PNG where it is that small itself), its longest side at most `size` pixels."""
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            small = max(picture.size) <= size
            flat = _on_white(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be shown: {error}") from error
    flat.thumbnail((size, size), Image.LANCZOS)
    stream = io.BytesIO()
    flat.save(stream, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 88}))
    return stream.getvalue()


def media_type(data: bytes) -> str:
    """The media type of what `thumbnail` gives."""
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        flat = Image.new("RGB", layered.size, (255, 255, 255))
        flat.paste(layered, mask=layered.getchannel("A"))
        return flat
    return picture.convert("RGB")


def _signature(path: str, size: int, changed: int) -> str:
    return hmac.new(_SECRET, f"{size}:{changed}:{path}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
