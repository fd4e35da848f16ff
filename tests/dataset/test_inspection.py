"""Which kinds of pictures are read, and what is remembered of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from lora_ext.dataset.image_formats import readable_extensions
from lora_ext.dataset.images import BrokenImageError
from lora_ext.dataset.inspection import RememberedFacts


def test_the_usual_kinds_are_always_read() -> None:
    assert readable_extensions()[:5] == (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def test_further_kinds_where_pillow_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    for extension in (".avif", ".jxl"):
        monkeypatch.delitem(Image.EXTENSION, extension, raising=False)
    monkeypatch.setattr("importlib.import_module", _no_plugin)
    assert readable_extensions() == (".png", ".jpg", ".jpeg", ".webp", ".bmp")
    monkeypatch.setitem(Image.EXTENSION, ".avif", "PNG")
    monkeypatch.setitem(Image.EXTENSION, ".jxl", "PDF")  # Pillow writes PDFs, and reads none
    assert readable_extensions() == (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")


def _no_plugin(name: str) -> None:
    raise ImportError(name)


def test_a_picture_is_read_again_where_it_has_changed(tmp_path: Path) -> None:
    path, facts = tmp_path / "a.png", RememberedFacts()
    Image.new("RGB", (8, 16)).save(path)
    first = facts(path)
    assert facts(path) is first and (first.width, first.height) == (8, 16)
    Image.new("RGB", (16, 16)).save(path)
    os.utime(path, ns=(1, 1))
    assert facts(path).width == 16


def test_what_is_wrong_is_not_remembered(tmp_path: Path) -> None:
    path, facts = tmp_path / "a.png", RememberedFacts()
    with pytest.raises(BrokenImageError):
        facts(path)
    path.write_bytes(b"nothing")
    with pytest.raises(BrokenImageError, match="no picture"):
        facts(path)
    Image.new("RGB", (8, 8)).save(path)
    assert facts(path).width == 8
