"""Buckets against literal values; those of whole tables were taken from sd-scripts' own code (Feb 2026)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ext.dataset.buckets import bucket_limits, bucket_resolutions, choose_bucket, training_size
from lora_ext.dataset.options import Sizing
from lora_ext.protocols import UserError

SD1_BUCKETS = (
    (256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512),
    (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256),
)  # fmt: skip


def test_sd1_buckets() -> None:
    assert bucket_resolutions((512, 512), 256, 1024, 64) == SD1_BUCKETS


def test_buckets_of_a_small_resolution() -> None:
    expected = ((32, 96), (32, 112), (32, 128), (48, 80), (64, 64), (80, 48), (96, 32), (112, 32), (128, 32))
    assert bucket_resolutions((64, 64), 32, 128, 16) == expected


def test_a_resolution_below_the_smallest_side_leaves_the_square() -> None:
    assert bucket_resolutions((64, 64), 256, 1024, 64) == ((64, 64),)


def test_a_step_above_the_resolution_is_refused() -> None:
    with pytest.raises(UserError, match="bucket_reso_steps = 64 is above the resolution 32×32"):
        bucket_resolutions((32, 32), 8, 1024, 64)


def test_limits_are_widened_to_whole_steps() -> None:
    settings = Sizing(min_bucket_reso=200, max_bucket_reso=1000, bucket_reso_steps=64)
    assert bucket_limits(settings) == (192, 1024)


@pytest.mark.parametrize(
    ("picture", "settings", "size", "resized"),
    [
        ((512, 512), {}, (512, 512), (512, 512)),
        ((1000, 1000), {}, (512, 512), (512, 512)),
        ((4000, 3000), {}, (576, 448), (597, 448)),
        ((300, 500), {}, (384, 640), (384, 640)),
        ((512, 768), {}, (384, 640), (427, 640)),
        ((320, 704), {}, (320, 704), (320, 704)),
        ((100, 3000), {}, (256, 1024), (256, 7680)),
        ((4000, 3000), {"bucket_no_upscale": True}, (512, 384), (512, 384)),
        ((2000, 900), {"bucket_no_upscale": True}, (704, 320), (711, 320)),
        ((300, 500), {"bucket_no_upscale": True}, (256, 448), (300, 500)),
        ((40, 500), {"bucket_no_upscale": True}, (64, 448), (64, 800)),
        ((4000, 3000), {"enable_bucket": False}, (512, 512), (683, 512)),
        ((300, 600), {"enable_bucket": False}, (512, 512), (512, 1024)),
        ((300, 600), {"enable_bucket": False, "resolution": "256,384"}, (256, 384), (256, 512)),
    ],
)
def test_choice(
    picture: tuple[int, int], settings: dict[str, object], size: tuple[int, int], resized: tuple[int, int]
) -> None:
    bucket = choose_bucket(*picture, Sizing(**settings))  # type: ignore[arg-type]
    assert (bucket.size, bucket.resized) == (size, resized)


def test_cropped_share() -> None:
    assert choose_bucket(300, 600, Sizing(enable_bucket=False)).cropped_share == 0.5


def test_a_resolution_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="resolution = 'large'"):
        training_size(Sizing(resolution="large"))


@settings(deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    resolution=st.sampled_from(["64", "512", "512,768", "1024"]),
    step=st.sampled_from([8, 16, 32, 64]),
    enable=st.booleans(),
    no_upscale=st.booleans(),
)
def test_buckets_are_covered_and_fit(
    width: int, height: int, resolution: str, step: int, enable: bool, no_upscale: bool
) -> None:
    settings = Sizing(
        resolution=resolution,
        min_bucket_reso=64,
        bucket_reso_steps=step,
        enable_bucket=enable,
        bucket_no_upscale=no_upscale,
    )
    bucket = choose_bucket(width, height, settings)
    assert bucket.resized[0] >= bucket.size[0] > 0 and bucket.resized[1] >= bucket.size[1] > 0
    assert 0 <= bucket.cropped_share < 1
    if enable:
        assert bucket.size[0] % step == bucket.size[1] % step == 0
    else:
        assert bucket.size == training_size(settings)
    if enable and no_upscale and min(bucket.size) > step:
        assert bucket.resized[0] <= width + 1 and bucket.resized[1] <= height + 1


@settings(deadline=None)
@given(
    side=st.sampled_from([64, 128, 512, 768, 1024]),
    smallest=st.sampled_from([32, 64, 256]),
    step=st.sampled_from([8, 32, 64]),
)
def test_buckets_keep_area_limits_and_order(side: int, smallest: int, step: int) -> None:
    sizes = bucket_resolutions((side, side), smallest, 2048, step)
    assert list(sizes) == sorted(set(sizes))
    assert {(height, width) for width, height in sizes} == set(sizes)
    assert all(width * height <= side * side for width, height in sizes)
    assert all(smallest <= length <= 2048 for size in sizes for length in size if len(sizes) > 1)
