"""Settings in TOML files: what is written is read again, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from lora_ext.config.fields import Setting
from lora_ext.config.toml_files import config_to_toml, read_config
from lora_ext.config.train_config import TrainConfig, all_settings, contradictions, flat_values, make_config
from lora_ext.protocols import ConfigError, UserError


def values_of(declared: Setting) -> st.SearchStrategy[Any]:
    """Any value that a setting allows."""
    strategy: st.SearchStrategy[Any]
    if declared.choices:
        strategy = st.sampled_from(declared.choices)
    elif declared.type is bool:
        strategy = st.booleans()
    elif declared.type is int:
        step = declared.multiple_of or 1
        low, high = int(declared.minimum or 0), int(declared.maximum or 2**31)
        strategy = st.integers(-(-low // step), high // step).map(lambda number: number * step)
    elif declared.type is float:
        strategy = st.floats(declared.minimum, declared.maximum, allow_nan=False, allow_infinity=False)
    else:
        strategy = st.text()
    return st.none() | strategy if declared.optional else strategy


def configs() -> st.SearchStrategy[TrainConfig]:
    drawn = {name: values_of(declared) for name, declared in all_settings().items()}
    drawn["resolution"] = st.sampled_from(["512", "64", "512,768", "768x512"])
    drawn["output_name"] = st.text(st.characters(blacklist_characters='<>:"/\\|?*\n,.', blacklist_categories=["Cs"]))
    by_block = ["", ",".join("1" * 25), ",".join("0" * 25)]
    for name in ("block_lr", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"):
        drawn[name] = st.sampled_from(by_block)
    drawn["optimizer_args"] = drawn["lr_scheduler_args"] = st.sampled_from(["", 'betas=0.9,0.99 word="a b"'])
    drawn["lr_scheduler"] = st.sampled_from(["cosine", "some.package.Class"])
    drawn["face_crop_aug_range"] = st.sampled_from(["", "2.0,4.0"])
    drawn["base_weights_multiplier"] = st.sampled_from(["", "1,0.5"])
    for name in ("masked_loss", "dim_from_weights", "full_bf16", "num_class_images"):
        del drawn[name]  # each asks for another setting
    switches = ["network_train_unet_only", "network_train_text_encoder_only"]
    buckets = ["min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"]
    chosen = st.fixed_dictionaries({}, optional={n: s for n, s in drawn.items() if n not in (*switches, *buckets)})
    return st.builds(lambda values, switch: possible({**values, switch: True}), chosen, st.sampled_from(switches))


def possible(values: dict[str, Any]) -> TrainConfig:
    """The configuration, where its values do not fight each other: those are drawn again."""
    try:
        return make_config(values)
    except ConfigError:
        reject()
        raise


@settings(deadline=None)
@given(config=configs())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, config: TrainConfig) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert read_config(path) == config
    assert not list(contradictions(config))


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    config = make_config({"output_name": "Kätzchen", "unet_lr": "1e-5", "training_comment": 'a "quoted"\nline \\ \x7f'})
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert read_config(path) == config


def test_the_file_is_grouped_and_none_is_a_word() -> None:
    lines = config_to_toml(TrainConfig()).splitlines()
    assert lines[:3] == ["# Dataset", "[dataset]", 'train_data_dir = ""']
    assert 'unet_lr = "none"' in lines and "learning_rate = 0.0001" in lines and "enable_bucket = true" in lines
    assert sum(" = " in line for line in lines) == len(flat_values(TrainConfig()))


def test_flat_files_files_with_a_mark_and_a_base(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbfnetwork_dim = 8\n[learning]\nseed = 3\n")
    config = read_config(path, make_config({"seed": 1, "clip_skip": 2}))
    assert (config.network.network_dim, config.learning.seed, config.captions.clip_skip) == (8, 3, 2)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"network_dim = ", "cannot be read as TOML"),
        (b"output_name = '\xe4'", r"is not UTF-8 text .* at byte 15\): save it as UTF-8"),
        (b"seed = 1\n[learning]\nseed = 2\n", "seed stands twice in the file"),
        (b"[network]\nnetwork_dim = 'x'\nrank = 4\n", r"2 problems in the settings:\n.*rank: there is no setting"),
        (b"resolution = [512, 768]\n", r"resolution = \[512, 768\]: allowed is text"),
        (b"seed = 2026-11-20\n", "seed = datetime.date"),
    ],
)
def test_problems(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message):
        read_config(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.toml: there is no such settings file"):
        read_config(tmp_path / "no.toml")
    with pytest.raises(UserError, match="cannot be read as TOML"):
        read_config(tmp_path)


def test_problems_of_a_file_are_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("seed = -1", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_config(path)
    assert raised.value.problems == ("seed = -1: allowed is a whole number from 0 to 4294967295",)
