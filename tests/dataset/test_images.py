"""Pictures from files to tensors, on drawn pictures of a few pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_ext.dataset.buckets import Bucket
from lora_ext.dataset.images import BrokenImageError, inspect_image, load_image
from lora_ext.dataset.scaling import centre_corner, crop, resize
from lora_ext.dataset.views import View, plain_view
from lora_ext.protocols import UserError

FORMATS = ("png", "jpg", "webp", "bmp")


def two_halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def whole(width: int, height: int) -> View:
    """The picture as it is, at this size."""
    return plain_view(Bucket((width, height), (width, height)))


def noise(width: int, height: int) -> Image.Image:
    """Pixels that no format compresses away."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("extension", [*FORMATS, "jpeg"])
def test_inspect(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    two_halves(24, 16).save(path)
    facts = inspect_image(path)
    assert (facts.width, facts.height, facts.transparent) == (24, 16, False)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_truncated_pictures_are_broken(tmp_path: Path, extension: str, share: float) -> None:
    path = tmp_path / f"a.{extension}"
    noise(64, 48).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BrokenImageError):
        inspect_image(path)


def test_text_in_place_of_a_picture_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("<html>not found</html>", encoding="utf-8")
    with pytest.raises(BrokenImageError, match="this is no picture that can be read"):
        inspect_image(path)
    with pytest.raises(UserError, match=r"a\.png: the picture cannot be read .*: replace or delete it"):
        load_image(path, whole(8, 8))


def test_a_damaged_png_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(64, 48).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(BrokenImageError):
        inspect_image(path)


def test_values_and_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    two_halves(4, 2).save(path)
    image = load_image(path, whole(4, 2))
    assert image.shape == (3, 2, 4) and image.dtype == torch.float32 and image.is_contiguous()
    assert image[0].tolist() == [[1, 1, -1, -1]] * 2
    assert image[1].tolist() == [[-1] * 4] * 2
    assert image[2].tolist() == [[-1, -1, 1, 1]] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """Pillow's own `exif_transpose` is the oracle."""
    from PIL import ImageOps

    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(6, 4).save(path, exif=exif)
    facts = inspect_image(path)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image), dtype=np.float32) / 127.5 - 1
    assert (facts.width, facts.height) == ((6, 4) if orientation < 5 else (4, 6))
    loaded = load_image(path, whole(facts.width, facts.height))
    assert np.array_equal(loaded.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.convert(mode).save(path)
    assert inspect_image(path).transparent
    assert load_image(path, whole(2, 1))[:, 0].T.tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_a_transparent_palette_entry_is_composited_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=1)
    assert inspect_image(path).transparent
    assert load_image(path, whole(2, 1))[:, 0].T.tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_an_opaque_alpha_channel_is_not_transparent(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (2, 2), (9, 9, 9, 255)).save(path)
    assert not inspect_image(path).transparent


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(path)
    assert load_image(path, whole(2, 1))[0].tolist() == [[-1, 1]]


def test_shrinking_averages_areas() -> None:
    pixels = np.zeros((1, 3, 3), dtype=np.uint8)
    pixels[0, :, 0] = [0, 90, 240]
    assert resize(pixels, (2, 1))[0, :, 0].tolist() == [30, 190]  # (0·1 + 90·½)/1.5 and (90·½ + 240·1)/1.5


@pytest.mark.parametrize("size", [(16, 12), (8, 6), (4, 12), (16, 3)])
def test_shrinking_by_whole_numbers_is_torchs_average_pooling(size: tuple[int, int]) -> None:
    pixels = np.asarray(noise(16, 12), dtype=np.uint8)
    tensor = torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1)
    pooled = torch.nn.functional.adaptive_avg_pool2d(tensor, (size[1], size[0])).permute(1, 2, 0)
    assert np.array_equal(resize(pixels, size), pooled.round().numpy().astype(np.uint8))


@pytest.mark.parametrize("size", [(24, 16), (17, 12), (16, 13), (8, 24)])
def test_enlarging_is_pillows_lanczos(size: tuple[int, int]) -> None:
    image = noise(16, 12)
    expected = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    assert np.array_equal(resize(np.asarray(image, dtype=np.uint8), size), expected)


def test_a_constant_stays_constant_whatever_the_size() -> None:
    pixels = np.full((37, 53, 3), 201, dtype=np.uint8)
    for size in [(52, 36), (10, 37), (7, 3), (1, 1)]:
        assert (resize(pixels, size) == 201).all()


def test_centre_crop() -> None:
    pixels = np.repeat(np.arange(7, dtype=np.uint8)[None, :, None], 3, axis=2)  # (1, 7, 3)
    assert crop(pixels, centre_corner((7, 1), (4, 1)), (4, 1))[0, :, 0].tolist() == [1, 2, 3, 4]
    assert crop(pixels, centre_corner((7, 1), (7, 1)), (7, 1))[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_load_scales_and_crops(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    two_halves(40, 10).save(path)
    image = load_image(path, plain_view(Bucket((8, 5), (20, 5))))
    assert image.shape == (3, 5, 8)
    assert image[0, 0].tolist() == [1, 1, 1, 1, -1, -1, -1, -1]
