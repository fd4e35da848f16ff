"""The configuration as a TOML file for sd-scripts' `--config_file`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from lora_ext.config.algorithms import has_kernels
from lora_ext.config.arguments import argument_words
from lora_ext.config.network_arguments import (
    LYCORIS,
    OF_BOTH,
    OF_LEARNING,
    OF_LYCORIS,
    network_arguments,
    network_module,
)
from lora_ext.config.sample_prompts import SAMPLERS, prompts_file
from lora_ext.config.train_config import GROUP_TITLES, TrainConfig, all_settings, flat_values

_ONE_BY_ONE = (
    *OF_BOTH, *OF_LYCORIS, *OF_LEARNING, "lora_fa", "network_algorithm", "network_preset", "block_lr",
    "text_encoder_lr", "text_encoder_2_lr", "optimizer_args", "weight_decay", "lr_scheduler", "prediction_type",
)  # fmt: skip
"""Settings that are written in another form than `name = value`."""

_OPTIMIZERS = (
    "AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion", "Lion8bit", "PagedLion8bit",
    "SGDNesterov", "SGDNesterov8bit", "DAdaptation", "DAdaptAdamPreprint", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan",
    "DAdaptAdanIP", "DAdaptLion", "DAdaptSGD", "Prodigy", "AdaFactor", "AdamWScheduleFree", "RAdamScheduleFree",
    "SGDScheduleFree",
)  # fmt: skip
"""Optimizers that sd-scripts knows by these names."""
_OWN_SCHEDULES = ("rex", "cosine_annealing_warmup_restarts")
_CHANGE_CAPTIONS = (
    "shuffle_caption", "caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate",
    "token_warmup_step", "enable_wildcard",
)  # fmt: skip
_BY_BLOCK = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_NOTHING = "sd-scripts has nothing like it"


def config_to_sd_scripts(config: TrainConfig, base_model: str = "") -> str:
    """The text of a TOML file. What sd-scripts has nothing like stands as a comment, if it is not at its default.

    Where a value says what sd-scripts does anyway when it is told nothing (an empty text, none), it is left out.
    """
    values = flat_values(config)
    lines = ["# Settings of LoRA Workshop for sd-scripts' train_network.py --config_file"]
    if base_model:
        lines.append(f"pretrained_model_name_or_path = {_toml(base_model)}")
    for group, title in GROUP_TITLES.items():
        lines += ["", f"# {title}"]
        for name, declared in all_settings().items():
            if declared.group == group and name not in _ONE_BY_ONE:
                lines += _lines(name, values)
        if group == "network":
            lines += _network_lines(config)
        elif group == "learning":
            lines += _learning_lines(values)
        elif group == "loss" and values["prediction_type"] != "auto":
            lines.append(f"v_parameterization = {_toml(values['prediction_type'] == 'v_prediction')}")
    return "\n".join(lines) + "\n"


def _lines(name: str, values: dict[str, Any]) -> list[str]:
    """A setting's line; a comment where sd-scripts has none like it, or none of this value."""
    declared, value = all_settings()[name], values[name]
    problem = _UNLIKE[name](values) if name in _UNLIKE else "" if declared.sd_scripts else _NOTHING
    if name in _ANOTHER_WAY:
        return [f"# {name} = {_toml(value)} ({_NOTHING})"] if _ANOTHER_WAY[name](values) else []
    if problem:
        return [] if value == declared.default else [f"# {name} = {_toml(value)} ({problem})"]
    written = _FORMS[name](value) if name in _FORMS else value
    return [] if written is None or written in ("", []) else [f"{declared.sd_scripts} = {_toml(written)}"]


def _steps_or_share(value: float) -> int | float:
    """A whole number there counts steps, any other is a share."""
    return int(value) if value == int(value) else value


def _sampler(name: str) -> str:
    return next((theirs for theirs, ours in SAMPLERS.items() if ours == name), name)


_FORMS: dict[str, Callable[[Any], Any]] = {
    "lr_warmup_steps": _steps_or_share,
    "lr_decay_steps": _steps_or_share,
    "max_token_length": lambda value: None if value == 75 else value,
    "log_with": lambda value: None if value == "csv" else value,
    "resize_interpolation": lambda value: None if value == "auto" else value,
    "sample_sampler": _sampler,
    "lr_scheduler_args": argument_words,
    "base_weights": lambda value: [line.strip() for line in value.splitlines() if line.strip()],
    "base_weights_multiplier": lambda value: [float(part) for part in value.replace(",", " ").split()],
}
"""Values that have another form there."""

_ANOTHER_WAY: dict[str, Callable[[dict[str, Any]], bool]] = {
    "caption_chunks": lambda v: v["caption_chunks"] != "sd-scripts" and v["max_token_length"] > 75,
    "masked_loss_normalize": lambda v: v["masked_loss_normalize"] and (v["masked_loss"] or v["alpha_mask"]),
}
"""Settings whose default is not what sd-scripts does: whether that makes a difference."""

_UNLIKE: dict[str, Callable[[dict[str, Any]], str]] = {
    "caption_extension": lambda v: "sd-scripts reads one kind only" if v["caption_extension"] == "auto" else "",
    "resize_interpolation": lambda v: _NOTHING if v["resize_interpolation"] == "box" else "",
    "optimizer_type": lambda v: (
        "" if "." in v["optimizer_type"] or v["optimizer_type"] in _OPTIMIZERS else "not known there by this name"
    ),
    "stop_text_encoder_training": lambda v: "sd-scripts' networks have nothing like it",
    "dataset_config": lambda v: "write the text into a file" if "\n" in v["dataset_config"].strip() else "",
    "sample_prompts": lambda v: (
        "write the prompts into a file" if v["sample_prompts"] and prompts_file(v["sample_prompts"]) is None else ""
    ),
    "resume": lambda v: "states are kept in another form there" if v["resume"] else "",
    "cache_text_encoder_outputs": lambda v: (
        "only with network_train_unet_only, and where captions do not change"
        if v["cache_text_encoder_outputs"]
        and (not v["network_train_unet_only"] or any(v[name] for name in _CHANGE_CAPTIONS))
        else ""
    ),
}
"""Why a value has no counterpart; empty where it has."""


def _network_lines(config: TrainConfig) -> list[str]:
    """The module and its arguments."""
    network, learning = config.network, config.learning
    arguments = [f"{name}={_plain(value)}" for name, value in network_arguments(network, learning).items()]
    factors = learning.block_lr.replace(" ", "").split(",") if learning.block_lr.strip() else []
    comments = []
    if len(factors) == 23 and not factors[0] == factors[-1] == "1" or len(factors) not in (0, 23, 25):
        arguments = [each for each in arguments if "_lr_weight=" not in each]
        comments = [f"# block_lr = {_toml(learning.block_lr)} ({_NOTHING})"]
    module = network_module(network)
    if module == LYCORIS and network.network_preset.strip() == "attn-mlp" and has_kernels(network):
        comments.append("# preset=full also adapts the first and the last convolution of SD1, which attn-mlp leaves")
    if module == LYCORIS:
        ignored = [name for name in (*_BY_BLOCK, "lora_fa") if getattr(network, name)]
        ignored += ["block_lr"] if learning.block_lr.strip() else []
        comments += [f"# {name}: LyCORIS has nothing like it, and trains without" for name in ignored]
    lines = [f'network_module = "{module}"']
    return [*lines, *([f"network_args = {_toml(arguments)}"] if arguments else []), *comments]


def _learning_lines(values: dict[str, Any]) -> list[str]:
    """The optimizer's arguments with the weight decay, and the schedule."""
    arguments = argument_words(values["optimizer_args"])
    if values["weight_decay"] is not None:
        arguments.append(f"weight_decay={_plain(values['weight_decay'])}")
    lines = [f"optimizer_args = {_toml(arguments)}"] if arguments else []
    first, second = values["text_encoder_lr"], values["text_encoder_2_lr"]
    if second is not None:
        lines.append(f"text_encoder_lr = {_toml([values['learning_rate'] if first is None else first, second])}")
    elif first is not None:
        lines.append(f"text_encoder_lr = {_toml(first)}")
    schedule = values["lr_scheduler"]
    if schedule in _OWN_SCHEDULES:
        return [*lines, f"# lr_scheduler = {_toml(schedule)} ({_NOTHING})"]
    return [*lines, f"{'lr_scheduler_type' if '.' in schedule else 'lr_scheduler'} = {_toml(schedule)}"]


def _plain(value: Any) -> str:
    """A value as it stands in network_args."""
    return repr(value) if isinstance(value, float) else str(value).replace(" ", "")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return '"none"' if value is None else repr(value)
