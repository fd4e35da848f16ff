"""Pictures as PNG files, with what made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo


def infotext_chunk(infotext: str) -> PngInfo:
    """The PNG chunk in which the WebUI and others look for a picture's infotext."""
    from PIL.PngImagePlugin import PngInfo

    chunk = PngInfo()
    chunk.add_text("parameters", infotext)
    return chunk
