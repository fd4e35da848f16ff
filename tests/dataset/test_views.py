"""How pictures are shown, on arrays of a few pixels."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_ext.dataset.buckets import Bucket, Size
from lora_ext.dataset.images import load_image
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.scaling import Pixels, resize
from lora_ext.dataset.views import Face, View, draw_view, face_of, is_random, plain_view, with_gamma, with_hue

BUCKET = Bucket((64, 64), (96, 80))
FACE = Face(120, 90, 40, 60)


def numbered(width: int, height: int) -> Pixels:
    """The red channel counts columns, the green one rows."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return pixels


def views(options: SubsetOptions, count: int, face: Face | None = None, original: Size = (192, 160)) -> list[View]:
    return [draw_view(original, BUCKET, options, face, random.Random(seed)) for seed in range(count)]


def test_the_part_is_cut_and_mirrored() -> None:
    view = View((6, 4), (3, 2), (2, 1))
    assert view.cut(numbered(6, 4))[0, :, 0].tolist() == [2, 3, 4]
    assert view.cut(numbered(6, 4))[:, 0, 1].tolist() == [1, 2]
    mirrored = View((6, 4), (3, 2), (2, 1), flipped=True)
    assert mirrored.cut(numbered(6, 4))[0, :, 0].tolist() == [4, 3, 2]
    assert mirrored.cut(numbered(6, 4))[:, 0, 1].tolist() == [1, 2]


def test_the_mirrored_tensor_is_the_mirror_of_the_other(tmp_path: Path) -> None:
    Image.fromarray(numbered(96, 80)).save(tmp_path / "a.png")
    plain = load_image(tmp_path / "a.png", plain_view(BUCKET))
    assert load_image(tmp_path / "a.png", plain_view(BUCKET, flipped=True)).equal(plain.flip(2))
    assert not plain.equal(plain.flip(2))


def test_without_options_every_view_is_the_centre() -> None:
    assert set(views(SubsetOptions(), 50)) == {View((96, 80), (64, 64), (16, 8))}


def test_half_of_the_views_are_mirrored_and_nothing_else_changes_which() -> None:
    flips = [view.flipped for view in views(SubsetOptions(flip_aug=True), 400)]
    assert 160 < sum(flips) < 240
    others = SubsetOptions(flip_aug=True, random_crop=True, color_aug=True)
    assert [view.flipped for view in views(others, 400)] == flips


def test_random_crops_reach_every_place_and_no_other() -> None:
    corners = {view.corner for view in views(SubsetOptions(random_crop=True), 3000)}
    assert {left for left, _ in corners} == set(range(33))
    assert {top for _, top in corners} == set(range(17))


def test_colours_change_a_third_of_the_time() -> None:
    drawn = views(SubsetOptions(color_aug=True), 1000)
    hues = [view.hue for view in drawn if view.hue]
    gammas = [view.gamma for view in drawn if view.gamma != 1]
    assert 120 < len(hues) < 210 and 120 < len(gammas) < 210
    assert -16 <= min(hues) < -14 and 14 < max(hues) <= 16
    assert 0.95 <= min(gammas) < 0.955 and 1.045 < max(gammas) <= 1.05


def test_gamma_keeps_black_and_white() -> None:
    pixels = np.array([[[0, 128, 255]]], dtype=np.uint8)
    assert with_gamma(pixels, 0.95).tolist() == [[[0, 132, 255]]]  # 255 · (128/255)^0.95 = 132.5 − 0.0…
    assert with_gamma(pixels, 1.05).tolist() == [[[0, 124, 255]]]
    assert with_gamma(pixels, 1.0) is pixels


def test_hue_turns_colours_and_leaves_grey() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [7, 7, 7]]], dtype=np.uint8)
    expected = np.array([[0, 255, 0], [0, 0, 255], [7, 7, 7]])
    assert np.abs(with_hue(pixels, 120.0)[0].astype(int) - expected).max() <= 6  # hues are kept in 256 steps
    assert with_hue(pixels, 0.0) is pixels


@pytest.mark.parametrize(
    ("stem", "face"),
    [
        ("cat_120_90_40_60", Face(120, 90, 40, 60)),
        ("a_b_120_90_40_60", Face(120, 90, 40, 60)),
        ("120_90_40_60", None),
        ("cat_0_90_40_60", None),
        ("cat_a_90_40_60", None),
        ("cat", None),
    ],
)
def test_faces_in_file_names(stem: str, face: Face | None) -> None:
    assert face_of(stem) == face


def test_a_face_is_in_the_middle_at_the_wanted_size() -> None:
    """The short side, 64, is to be twice the face's 60 pixels: scale 0.533, where the face's centre is at (64, 48)."""
    options = SubsetOptions(face_crop_aug_range=(2.0, 2.0))
    assert set(views(options, 20, FACE)) == {View((102, 85), (64, 64), (32, 16))}
    assert set(views(options, 20, face=None)) == {plain_view(BUCKET)}


@given(
    seed=st.integers(0, 2**32),
    width=st.integers(20, 400),
    height=st.integers(20, 400),
    face=st.builds(Face, st.integers(1, 400), st.integers(0, 400), st.integers(0, 300), st.integers(0, 300)),
    limits=st.tuples(st.floats(0.5, 10), st.floats(0.5, 10)).map(lambda pair: (min(pair), max(pair))),
    random_crop=st.booleans(),
)
def test_face_crops_stay_inside(
    seed: int, width: int, height: int, face: Face, limits: tuple[float, float], random_crop: bool
) -> None:
    options = SubsetOptions(face_crop_aug_range=limits, random_crop=random_crop)
    view = draw_view((width, height), BUCKET, options, face, random.Random(seed))
    assert view.size == (64, 64)
    for start, length in zip(view.corner, view.resized, strict=True):
        assert 0 <= start <= length - 64


def test_what_makes_a_picture_another_one_each_time() -> None:
    assert not is_random(SubsetOptions(flip_aug=True), FACE)
    assert is_random(SubsetOptions(color_aug=True), None) and is_random(SubsetOptions(random_crop=True), None)
    assert is_random(SubsetOptions(face_crop_aug_range=(2.0, 4.0)), FACE)
    assert not is_random(SubsetOptions(face_crop_aug_range=(2.0, 4.0)), None)


@pytest.mark.parametrize(
    ("name", "pillow"),
    [
        ("lanczos", Image.Resampling.LANCZOS),
        ("bicubic", Image.Resampling.BICUBIC),
        ("nearest", Image.Resampling.NEAREST),
    ],
)
def test_scaling_by_name_is_pillows(name: str, pillow: Image.Resampling) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((9, 7), pillow))
    assert np.array_equal(resize(pixels, (9, 7), name), expected)
    assert not np.array_equal(resize(pixels, (9, 7), "area"), expected)


def test_area_enlarges_by_shares_too_and_takes_one_channel() -> None:
    row = np.array([0, 90, 240], dtype=np.uint8).reshape(1, 3, 1)
    assert resize(row, (4, 1), "area")[0, :, 0].tolist() == [0, 60, 140, 240]  # thirds: 0|90, 90|90…, 240
    assert resize(row, (6, 2), "nearest")[:, :, 0].tolist() == [[0, 0, 90, 90, 240, 240]] * 2
