"""Which kinds of pictures can be read here."""

from __future__ import annotations

import importlib
from contextlib import suppress

from PIL import Image

_ALWAYS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_WITH_PLUGINS = {".avif": "pillow_avif", ".jxl": "pillow_jxl"}
"""Kinds that newer versions of Pillow read by themselves, and the plugins that teach them to older ones."""


def readable_extensions() -> tuple[str, ...]:
    """Extensions of the pictures that Pillow reads here, with the plugins that are installed."""
    Image.init()
    for extension, plugin in _WITH_PLUGINS.items():
        if not _is_read(extension):
            with suppress(ImportError):
                importlib.import_module(plugin)
    return (*_ALWAYS, *(extension for extension in _WITH_PLUGINS if _is_read(extension)))


def _is_read(extension: str) -> bool:
    return Image.EXTENSION.get(extension) in Image.OPEN


IMAGE_EXTENSIONS = readable_extensions()
"""In lower case, with their dots."""
