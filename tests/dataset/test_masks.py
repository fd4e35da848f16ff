"""Masks from transparency and from folders, on drawn pictures of a few latent positions."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_ext.config.train_config import make_config
from lora_ext.dataset.buckets import Bucket
from lora_ext.dataset.folders import DatasetScan
from lora_ext.dataset.masks import latent_mask, masks_of
from lora_ext.dataset.sources import scan_dataset
from lora_ext.dataset.views import View, plain_view
from lora_ext.protocols import UserError


def scanned(folder: Path, masks: Path) -> DatasetScan:
    values = {"train_data_dir": str(folder), "conditioning_data_dir": str(masks), "masked_loss": True}
    return scan_dataset(make_config(values))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """1_cat with a.png and b.jpg, 24×16."""
    folder = tmp_path / "pictures" / "1_cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (24, 16), (9, 9, 9)).save(folder / "a.png")
    Image.new("RGB", (24, 16), (9, 9, 9)).save(folder / "b.jpg")
    return folder.parent


def test_opacity_becomes_shares_of_each_latent_position(tmp_path: Path) -> None:
    """24×16: the left third is transparent, the top left quarter of the middle one half opaque."""
    image = Image.new("RGBA", (24, 16), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    image.paste((0, 0, 0, 51), (8, 0, 12, 4))
    image.save(tmp_path / "a.png")
    view = plain_view(Bucket((24, 16), (24, 16)))
    expected = [[0.0, 0.8, 1.0], [0.0, 1.0, 1.0]]  # 16 of 64 pixels at 51/255: (48 + 16 · 0.2) / 64 = 0.8
    mask = latent_mask(tmp_path / "a.png", None, view)
    assert mask.shape == (1, 2, 3)
    assert mask[0].tolist() == [pytest.approx(row) for row in expected]
    mirrored = latent_mask(tmp_path / "a.png", None, plain_view(Bucket((24, 16), (24, 16)), flipped=True))
    assert mirrored.equal(mask.flip(2))
    part = latent_mask(tmp_path / "a.png", None, View((24, 16), (8, 16), (8, 0)))
    assert part[0].tolist() == [pytest.approx([0.8]), [1.0]]
    shrunk = latent_mask(tmp_path / "a.png", None, View((12, 8), (8, 8), (0, 0)))
    assert shrunk[0].tolist() == [[pytest.approx(0.45)]]  # (32 · 0 + 4 · 0.2 + 28 · 1) / 64


def test_an_opaque_picture_counts_as_a_whole(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert latent_mask(tmp_path / "a.png", None, plain_view(Bucket((16, 16), (16, 16)))).tolist() == [[[1, 1], [1, 1]]]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_masks_red_channel_counts(tmp_path: Path, mode: str) -> None:
    red = Image.new("RGB", (16, 8), (0, 255, 255) if mode in ("RGB", "RGBA") else (0, 0, 0))
    red.paste((255, 0, 0) if mode in ("RGB", "RGBA") else (255, 255, 255), (0, 0, 8, 8))
    red.convert(mode).save(tmp_path / "mask.png")
    view = plain_view(Bucket((16, 8), (16, 8)))
    assert latent_mask(tmp_path / "none.png", tmp_path / "mask.png", view).tolist() == [[[1.0, 0.0]]]


def test_masks_are_found_by_name_whatever_their_type(pictures: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (masks / "1_cat").mkdir(parents=True)
    Image.new("L", (24, 16)).save(masks / "a.bmp")
    Image.new("L", (24, 16)).save(masks / "b.png")
    Image.new("L", (24, 16)).save(masks / "1_cat" / "b.webp")
    scan = scanned(pictures, masks)
    assert scan.problems == []
    assert masks_of(scan) == [masks / "a.bmp", masks / "1_cat" / "b.webp"]


def test_without_a_mask_folder_there_are_none(pictures: Path) -> None:
    assert masks_of(scan_dataset(make_config({"train_data_dir": str(pictures)}))) == [None, None]


def test_missing_odd_sized_and_broken_masks_are_named_together(pictures: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("RGB", (24, 16)).save(pictures / "1_cat" / "c.png")
    Image.new("L", (16, 24)).save(masks / "a.png")
    (masks / "c.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as caught:
        scanned(pictures, masks).raise_on_problems()
    text = str(caught.value)
    assert "a.png: the mask is 16×24, its picture a.png is 24×16: make both the same size" in text
    assert "b.jpg: has no mask in" in text and "called b with any extension" in text
    assert "c.png: broken mask of c.png" in text


def test_a_mask_folder_that_is_not_there(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"conditioning_data_dir = .*nowhere: there is no such folder"):
        scanned(pictures, tmp_path / "nowhere").raise_on_problems()
