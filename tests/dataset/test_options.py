"""A subset's options and sizes, from the settings of a run."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from lora_ext.config.face_crop import face_crop_range
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.dataset.options import Sizing, SubsetOptions, run_sizing, subset_options

OPTIONS: dict[str, Any] = {
    "num_repeats": 3, "class_tokens": "zbx", "caption_extension": ".caption", "caption_prefix": "a",
    "caption_suffix": "b", "caption_separator": ";", "keep_tokens": 2, "keep_tokens_separator": "|||",
    "secondary_separator": "+", "shuffle_caption": True, "enable_wildcard": True, "caption_dropout_rate": 0.1,
    "caption_dropout_every_n_epochs": 4, "caption_tag_dropout_rate": 0.2, "token_warmup_min": 5,
    "token_warmup_step": 0.5, "flip_aug": True, "color_aug": True, "random_crop": True, "alpha_mask": True,
    "conditioning_data_dir": "masks", "resize_interpolation": "area", "validation_split": 0.3, "validation_seed": 7,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "resolution": "256", "enable_bucket": False, "min_bucket_reso": 64, "max_bucket_reso": 512, "bucket_reso_steps": 8,
    "bucket_no_upscale": True,
}  # fmt: skip


def test_the_defaults_are_the_settings() -> None:
    config = TrainConfig()
    assert subset_options(config) == SubsetOptions(validation_seed=config.learning.seed)
    assert run_sizing(config) == Sizing()
    assert not SubsetOptions().changes_tags and not SubsetOptions().drops_captions


def test_every_option_has_its_setting() -> None:
    values = {**OPTIONS, "face_crop_aug_range": "2.0, 4.5"}
    found = subset_options(make_config(values))
    assert found == SubsetOptions(**OPTIONS, face_crop_aug_range=(2.0, 4.5))
    assert {each.name for each in fields(SubsetOptions)} == set(values)


def test_every_size_has_its_setting() -> None:
    assert run_sizing(make_config({**SIZES, "train_batch_size": 6})) == Sizing(**SIZES, batch_size=6)
    assert {each.name for each in fields(Sizing)} == {*SIZES, "batch_size"}


def test_the_validation_seed_is_the_runs_where_none_is_given() -> None:
    assert subset_options(make_config({"seed": 5})).validation_seed == 5
    assert subset_options(make_config({"seed": 5, "validation_seed": 0})).validation_seed == 0


@pytest.mark.parametrize(("text", "expected"), [("", None), (" ", None), ("2,4", (2, 4)), ("1.5,1.5", (1.5, 1.5))])
def test_face_crop_range(text: str, expected: tuple[float, float] | None) -> None:
    assert face_crop_range(text) == expected


@pytest.mark.parametrize("text", ["2", "4,2", "0,1", "a,b", "1,2,3", "1,inf", "nan,nan"])
def test_what_is_no_face_crop_range(text: str) -> None:
    with pytest.raises(ValueError):
        face_crop_range(text)
