"""Whole configurations: all problems together, and what contradicts what."""

from __future__ import annotations

import dataclasses

import pytest

from lora_ext.config.resolution import resolution_of
from lora_ext.config.train_config import GROUP_TITLES, TrainConfig, all_settings, flat_values, make_config
from lora_ext.protocols import ConfigError, UserError


def problems_of(**values: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        make_config(values)
    return raised.value.problems


def test_defaults_are_a_configuration() -> None:
    assert make_config({}) == TrainConfig()
    assert make_config(flat_values(TrainConfig())) == TrainConfig()


def test_every_group_has_a_title_and_names_are_unique() -> None:
    assert list(GROUP_TITLES) == [group.name for group in dataclasses.fields(TrainConfig)]
    names = [f.name for group in dataclasses.fields(TrainConfig) for f in dataclasses.fields(group.default_factory)]  # type: ignore[arg-type]
    assert sorted(names) == sorted(all_settings())


def test_values_go_over_a_base() -> None:
    base = make_config({"network_dim": 8, "seed": 7})
    config = make_config({"seed": "9"}, base)
    assert (config.network.network_dim, config.learning.seed) == (8, 9)


def test_all_problems_are_reported_together() -> None:
    problems = problems_of(
        network_dim=0, unet_Ir=1e-4, learning_rate="fast", min_bucket_reso=1024, max_bucket_reso=512, resolution="big"
    )
    assert problems == (
        "unet_Ir: there is no setting of this name; did you mean unet_lr?",
        "network_dim = 0: allowed is a whole number from 1 to 1024",
        "learning_rate = 'fast': allowed is a number of at least 0",
        "resolution = 'big': allowed is one number or width,height, each a multiple of 8 from 8 on",
        "min_bucket_reso = 1024 is above max_bucket_reso = 512: raise the latter or lower the former",
    )
    with pytest.raises(UserError) as raised:
        make_config({"network_dim": 0, "seed": -1})
    assert str(raised.value) == (
        "2 problems in the settings:\n"
        "  - network_dim = 0: allowed is a whole number from 1 to 1024\n"
        "  - seed = -1: allowed is a whole number from 0 to 4294967295"
    )


def test_a_refused_value_is_not_held_against_others() -> None:
    assert problems_of(min_bucket_reso=10_000, max_bucket_reso=128, resolution=64) == (
        "min_bucket_reso = 10000: allowed is a whole number from 8 to 8192, a multiple of 8",
    )


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"resolution": "2048"}, "max_bucket_reso = 1024 is below the resolution 2048: raise it to 2048 at least"),
        ({"resolution": "32"}, "bucket_reso_steps = 64 is above the resolution 32: lower the step"),
        (
            {"network_train_unet_only": True, "network_train_text_encoder_only": "yes"},
            "network_train_unet_only and network_train_text_encoder_only are both on",
        ),
        (
            {"masked_loss": True},
            "masked_loss is on and there are no masks: switch alpha_mask on (transparency), or give",
        ),
        ({"num_class_images": 200, "reg_data_dir": "x"}, "num_class_images = 200 needs class_prompt"),
        ({"num_class_images": 200, "class_prompt": "x"}, "num_class_images = 200 needs reg_data_dir"),
        (
            {"face_crop_aug_range": "4.0,2.0"},
            "face_crop_aug_range = '4.0,2.0': allowed are the smallest and the largest",
        ),
        ({"caption_separator": " "}, "caption_separator is empty: give what stands between tags"),
        ({"secondary_separator": ","}, "secondary_separator = ',' is caption_separator too"),
        (
            {"lr_scheduler": "cosin"},
            "lr_scheduler = 'cosin': allowed are constant, constant_with_warmup, linear, cosine",
        ),
        ({"log_prefix": "/tmp/x"}, "log_prefix = '/tmp/x': it begins a folder's name"),
        ({"output_name": "a/b"}, "output_name = 'a/b': names of files and tags cannot hold any of"),
        ({"output_name": "a:1"}, "output_name = 'a:1': names of files and tags cannot hold any of"),
        ({"output_name": "Con"}, "output_name = 'Con': Windows keeps this name for a device; add something to it"),
        ({"output_name": "lpt1.v2"}, "output_name = 'lpt1.v2': Windows keeps this name for a device"),
        ({"output_name": ".."}, "output_name = '..': names of files and tags cannot hold any of"),
        ({"output_name": "ü" * 101}, "output_name has 202 bytes: file systems take 200"),
    ],
)
def test_contradictions(values: dict[str, object], problem: str) -> None:
    (found,) = problems_of(**values)
    assert found.startswith(problem)


def test_bucket_limits_do_not_matter_where_buckets_do_not() -> None:
    make_config({"resolution": 2048, "enable_bucket": False})
    make_config({"resolution": 32, "bucket_no_upscale": True})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", (512, 512)),
        (" 512 , 768 ", (512, 768)),
        ("512x768", (512, 768)),
        ("500", None),
        ("0", None),
        ("512,", None),
        ("1,2,3", None),
        ("-512", None),
        ("5²", None),
        ("", None),
    ],
)
def test_resolution(text: str, size: tuple[int, int] | None) -> None:
    assert resolution_of(text) == size
