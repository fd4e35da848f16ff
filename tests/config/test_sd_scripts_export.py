"""What is exported for sd-scripts is the same configuration when it is imported again."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from lora_ext.config.algorithms import has_kernels
from lora_ext.config.fields import Setting
from lora_ext.config.imports import import_text
from lora_ext.config.network_arguments import LYCORIS, network_module
from lora_ext.config.sd_scripts_export import config_to_sd_scripts
from lora_ext.config.train_config import all_settings, flat_values, make_config
from lora_ext.protocols import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DIFFERENT_THERE = {
    "lr_scheduler": ["constant", "cosine", "polynomial", "some.package.Class"],
    "optimizer_type": ["AdamW", "Lion8bit", "Prodigy", "some.package.Class"],
    "optimizer_args": ["", "weight_decay=0.1 betas=0.9,0.99"],
    "lr_scheduler_args": ["", "gamma=0.5"],
    "caption_extension": [".txt", ".caption"],
    "resize_interpolation": ["auto", "area", "lanczos", "bicubic", "bilinear", "nearest"],
    "sample_sampler": ["Euler a", "DDIM", "DPM++ 2M Karras"],
    "sample_prompts": ["", "prompts.txt"],
    "dataset_config": ["", "dataset.toml"],
    "face_crop_aug_range": ["", "2.0,4.0"],
    "resolution": ["512", "512,768"],
    "base_weights": ["", "one.safetensors\ntwo.safetensors"],
    "base_weights_multiplier": ["", "0.5,1"],
    "block_dims": ["", ",".join(["8"] * 25)],
    "block_alphas": ["", ",".join(["4"] * 25)],
    "conv_block_dims": ["", ",".join(["2"] * 25)],
    "conv_block_alphas": ["", ",".join(["1"] * 25)],
    "block_lr": ["", ",".join(["0.5"] * 12 + ["1"] + ["0"] * 12), ",".join(["1", *["0.25"] * 21, "1"])],
    "output_name": ["cat", "Kätzchen-2"],
    "prediction_type": ["auto", "epsilon", "v_prediction"],
}
"""Texts that have a form of their own."""

WITHOUT_COUNTERPART = ("weight_decay", "resume", "stop_text_encoder_training", "cache_text_encoder_outputs")


def values_of(declared: Setting) -> st.SearchStrategy[Any]:
    """Values that a setting allows, and that say something."""
    strategy: st.SearchStrategy[Any]
    if declared.name in DIFFERENT_THERE or declared.choices:
        strategy = st.sampled_from(DIFFERENT_THERE.get(declared.name) or list(declared.choices or ()))
    elif declared.type is bool:
        strategy = st.booleans()
    elif declared.type is int:
        step = declared.multiple_of or 1
        low, high = int(declared.minimum or 0), int(declared.maximum or 2**31)
        strategy = st.integers(-(-low // step), high // step).map(lambda number: number * step)
    elif declared.type is float:
        strategy = st.floats(declared.minimum, declared.maximum, allow_nan=False, allow_infinity=False)
    else:
        strategy = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
    return st.none() | strategy if declared.optional else strategy


def known_to_sd_scripts() -> dict[str, st.SearchStrategy[Any]]:
    found = {name: values_of(each) for name, each in all_settings().items() if each.sd_scripts or name == "block_lr"}
    return {name: strategy for name, strategy in found.items() if name not in WITHOUT_COUNTERPART}


BUCKETS = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_exported_and_imported_it_is_the_same(data: st.DataObject) -> None:
    known = known_to_sd_scripts()
    chosen = data.draw(st.sets(st.sampled_from(sorted(set(known) - set(BUCKETS))), max_size=12))
    drawn = {name: data.draw(known[name], label=name) for name in sorted(chosen)}
    try:
        config = make_config(drawn)
    except ConfigError:
        reject()
    network = config.network
    if network_module(network) == LYCORIS and (has_kernels(network) or network.conv_alpha is not None):
        reject()  # LyCORIS has no counterpart of attn-mlp with convolutions: another is written, or what has no effect
    imported = import_text(config_to_sd_scripts(config))
    before, after = flat_values(config), flat_values(imported.config)
    assert {name: after[name] for name in known} == {name: before[name] for name in known}
    assert not imported.of_kind("unknown") and not imported.of_kind("lost")


def test_the_file_is_one_for_sd_scripts() -> None:
    config = make_config({
        "output_name": "cat", "conv_dim": 8, "rank_dropout": 0.1, "block_lr": ",".join(["0.5"] * 25),
        "weight_decay": 0.1,
        "optimizer_args": "betas=0.9,0.99", "lr_warmup_steps": 100, "sample_sampler": "Euler a",
        "base_weights": "a.safetensors", "base_weights_multiplier": "0.5", "prediction_type": "v_prediction",
    })  # fmt: skip
    document = tomllib.loads(config_to_sd_scripts(config, "nai.safetensors"))
    assert document["pretrained_model_name_or_path"] == "nai.safetensors"
    assert document["network_module"] == "networks.lora"
    halves = ",".join(["0.5"] * 12)
    assert document["network_args"] == [
        "conv_dim=8", "rank_dropout=0.1", f"down_lr_weight={halves}", "mid_lr_weight=0.5", f"up_lr_weight={halves}",
    ]  # fmt: skip
    assert document["optimizer_args"] == ["betas=0.9,0.99", "weight_decay=0.1"]
    assert document["lr_warmup_steps"] == 100 and type(document["lr_warmup_steps"]) is int
    assert (document["sample_sampler"], document["v_parameterization"]) == ("euler_a", True)
    assert (document["base_weights"], document["base_weights_multiplier"]) == (["a.safetensors"], [0.5])
    assert not [name for name, value in document.items() if isinstance(value, dict)]


@pytest.mark.parametrize(
    ("values", "module", "arguments"),
    [
        ({"conv_dim": 4}, "networks.lora", ["conv_dim=4"]),
        ({"lora_fa": True}, "networks.lora_fa", None),
        ({"network_preset": "full"}, "lycoris.kohya", ["algo=lora", "preset=full"]),
        (
            {"network_algorithm": "lokr", "factor": 8, "dora_wd": True, "wd_on_output": False},
            "lycoris.kohya", ["algo=lokr", "preset=attn-mlp", "dora_wd=True", "wd_on_output=False", "factor=8"],
        ),
        (
            {"network_algorithm": "loha", "conv_dim": 4, "use_tucker": True},
            "lycoris.kohya", ["algo=loha", "preset=full", "conv_alpha=1.0", "conv_dim=4", "use_tucker=True"],
        ),
        ({"network_algorithm": "dylora", "block_size": 8}, "lycoris.kohya",
         ["algo=dylora", "preset=attn-mlp", "block_size=8"]),
        ({"network_algorithm": "ia3", "network_preset": "ia3"}, "lycoris.kohya", ["algo=ia3", "preset=ia3"]),
    ],
)  # fmt: skip
def test_other_algorithms_are_lycoris_own(values: dict[str, Any], module: str, arguments: list[str] | None) -> None:
    config = make_config({"output_name": "cat", **values})
    document = tomllib.loads(config_to_sd_scripts(config))
    assert (document["network_module"], document.get("network_args")) == (module, arguments)
    imported = flat_values(import_text(config_to_sd_scripts(config)).config)
    changed = values if "conv_dim" not in values else {"network_algorithm": values.get("network_algorithm", "lora")}
    assert {name: imported[name] for name in changed} == changed


def test_two_text_encoders_have_a_list_of_rates() -> None:
    text = config_to_sd_scripts(make_config({"text_encoder_lr": 1e-5, "text_encoder_2_lr": 2e-6}))
    assert tomllib.loads(text)["text_encoder_lr"] == [1e-5, 2e-6]
    imported = import_text(text).config.learning
    assert (imported.text_encoder_lr, imported.text_encoder_2_lr) == (1e-5, 2e-6)


def test_what_sd_scripts_lacks_stands_as_a_comment() -> None:
    config = make_config({
        "ema_decay": 0.999, "caption_variants": 4, "optimizer_type": "CAME", "lr_scheduler": "rex",
        "sample_prompts": "a cat\na dog", "stop_text_encoder_training": 50,
    })  # fmt: skip
    text = config_to_sd_scripts(config)
    assert [line for line in text.splitlines() if line.startswith("# ") and " = " in line] == [
        '# caption_chunks = "webui" (sd-scripts has nothing like it)',
        "# stop_text_encoder_training = 50 (sd-scripts' networks have nothing like it)",
        '# optimizer_type = "CAME" (not known there by this name)',
        "# ema_decay = 0.999 (sd-scripts has nothing like it)",
        '# lr_scheduler = "rex" (sd-scripts has nothing like it)',
        "# caption_variants = 4 (sd-scripts has nothing like it)",
        '# sample_prompts = "a cat\\na dog" (write the prompts into a file)',
    ]
    assert not {"optimizer_type", "lr_scheduler", "sample_prompts", "ema_decay"} & set(tomllib.loads(text))


def test_what_lycoris_lacks_stands_as_a_comment() -> None:
    ranks = ",".join(["8"] * 25)
    text = config_to_sd_scripts(make_config({"network_preset": "full", "lora_fa": True, "block_dims": ranks}))
    told = "LyCORIS has nothing like it, and trains without"
    assert f"# block_dims: {told}\n# lora_fa: {told}\n" in text
    assert told not in config_to_sd_scripts(make_config({"lora_fa": True, "block_dims": ranks, "block_lr": ranks}))


def test_arguments_are_one_word_each() -> None:
    """sd-scripts takes each apart at its "=", and has a network's arguments as a list."""
    given = {"optimizer_args": "betas=0.9, 0.95 eps=1e-7", "lr_scheduler_args": "T_0=10 gamma = 0.5"}
    document = tomllib.loads(config_to_sd_scripts(make_config({**given, "weight_decay": 0.1})))
    assert document["optimizer_args"] == ["betas=0.9,0.95", "eps=1e-7", "weight_decay=0.1"]
    assert document["lr_scheduler_args"] == ["T_0=10", "gamma=0.5"]


def test_defaults_that_sd_scripts_does_not_share_are_told_where_they_matter() -> None:
    def told(**values: object) -> list[str]:
        lines = config_to_sd_scripts(make_config(values)).splitlines()
        return [line.split()[1] for line in lines if line.startswith(("# caption_chunks", "# masked_loss_normalize"))]

    assert told(max_token_length=75) == []
    assert told() == ["caption_chunks"] and told(caption_chunks="sd-scripts") == []
    masked = {"alpha_mask": True, "caption_chunks": "sd-scripts"}
    assert told(**masked) == ["masked_loss_normalize"] and told(**masked, masked_loss_normalize=False) == []
