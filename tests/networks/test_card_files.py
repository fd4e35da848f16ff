"""The words and the picture beside a network, as the WebUI's cards read them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from lora_ext.networks.card_files import cover_name, cover_of, edit_words, read_words, write_cover
from lora_ext.networks.sidecar import write_sidecar
from lora_ext.protocols import UserError


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return tmp_path / "cat v1.5.safetensors"


def as_bytes(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_words_are_set_and_others_kept(network: Path, tmp_path: Path) -> None:
    path = tmp_path / "cat v1.5.json"
    path.write_text('{"notes": "old", "of others": [1, 2]}', encoding="utf-8")
    edit_words(network, {"notes": "new ✓", "preferred weight": "0.8", "sd version": "SDXL"})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "notes": "new ✓", "of others": [1, 2], "preferred weight": 0.8, "sd version": "SDXL",
    }  # fmt: skip
    assert read_words(network)["notes"] == "new ✓"


def test_a_file_of_ours_that_a_person_edits_is_theirs(network: Path) -> None:
    metadata = {"ss_output_name": "cat", "ss_epoch": "1"}
    assert write_sidecar(network, metadata)
    edit_words(network, {"notes": "mine"})
    assert not write_sidecar(network, {**metadata, "ss_epoch": "2"})
    assert read_words(network)["notes"] == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "a card has no 'colour': allowed are description, activation text"),
        ({"preferred weight": "much"}, "preferred weight = 'much' is no number"),
        ({"preferred weight": [1]}, r"preferred weight = \[1\] is no number"),
        ({"preferred weight": "nan"}, "preferred weight = 'nan' is no number"),
        ({"sd version": "SD9"}, "sd version = 'SD9': allowed are SD1, SD2, SDXL, Unknown"),
    ],
)
def test_wrong_words_write_nothing(network: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        edit_words(network, changes)
    assert list(network.parent.iterdir()) == []


@pytest.mark.parametrize("text", ["{broken", "[1]", b"\xff\xfe"])
def test_a_broken_file_is_not_written_over(network: Path, text: str | bytes) -> None:
    path = network.with_suffix(".json")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    with pytest.raises(UserError, match="put it right or delete it"):
        edit_words(network, {"notes": "new"})
    assert path.read_bytes() == before


def test_covers_are_found_in_this_order(network: Path) -> None:
    assert cover_of(network) is None and cover_name("cat", {"cat2.png"}) is None
    for name in ("cat v1.5.webp", "cat v1.5.jpg", "cat v1.5.preview.png", "cat v1.5.png"):
        (network.parent / name).write_bytes(b"")
        assert cover_of(network) == network.parent / name
        assert cover_name("cat v1.5", {path.name for path in network.parent.iterdir()}) == name


def test_a_cover_is_a_small_png_with_its_infotext(network: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat\nSteps: 4")
    path = write_cover(network, as_bytes(Image.new("RGB", (2048, 512), "red"), "PNG", pnginfo=info))
    assert path.name == "cat v1.5.png"
    with Image.open(path) as opened:
        assert (opened.size, opened.info["parameters"]) == ((1024, 256), "a cat\nSteps: 4")
        assert opened.getpixel((5, 5)) == (255, 0, 0)
    write_cover(network, as_bytes(Image.new("L", (8, 8), 70), "WEBP"))
    with Image.open(path) as opened:
        assert opened.size == (8, 8)


@pytest.mark.parametrize("data", [b"", b"GIF89a nothing", b"<svg/>"])
def test_what_is_no_picture_is_refused(network: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="no picture that can be read"):
        write_cover(network, data)
    assert list(network.parent.iterdir()) == []
