"""From sd-scripts' option names and values to settings: every name is mapped, explained, lost, or unknown."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from lora_ext.config.groups.learning import OPTIMIZERS
from lora_ext.config.imports.explained import EXPLAINED, PROGRAMS
from lora_ext.config.imports.networks import HIGHEST_RANK, arguments_of, carry_network, stands_for_whole
from lora_ext.config.imports.result import Carried, joined
from lora_ext.config.imports.schedules import carry_schedule
from lora_ext.config.resolution import resolution_of
from lora_ext.config.sample_prompts import sampler_name
from lora_ext.config.train_config import all_settings

SD_SCRIPTS_DEFAULTS: dict[str, Any] = {
    "network_dim": 4,
    "network_alpha": 1.0,
    "learning_rate": 2e-6,
    "lr_scheduler": "constant",
    "max_train_epochs": None,
    "enable_bucket": False,
    "max_token_length": 75,
    "caption_chunks": "sd-scripts",
    "min_snr_gamma": None,
    "masked_loss_normalize": False,
    "cache_latents": False,
    "save_every_n_epochs": None,
    "save_precision": "float",
    "sample_sampler": "DDIM",
}
"""What sd-scripts does where it is told nothing, and our own defaults differ from."""

NETWORK_ARGUMENTS = frozenset({
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims",
    "conv_block_alphas", "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "algo", "preset", "use_cp",
    "train_norm", "dora_wd", "wd_on_output", "rs_lora", "use_tucker", "use_scalar", "decompose_both", "full_matrix",
    "unbalanced_factorization", "rescaled",
})  # fmt: skip
"""Arguments of networks, which some programs write beside the options."""

_BLOCK_LISTS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_INTERPOLATIONS = {"linear": "bilinear", "cubic": "bicubic"}
_SUBSTITUTES: dict[str, Mapping[str, str]] = {
    "resize_interpolation": _INTERPOLATIONS,
    "save_model_as": {"pt": "ckpt"},
    "save_precision": {"no": "float", "fp32": "float", "float32": "float"},
    "log_with": {"all": "tensorboard", "wandb": "csv"},
    "caption_extension": {"txt": ".txt", "caption": ".caption"},
}
"""Values that are called otherwise here."""

_ALIASES = {
    "caption_extention": "caption_extension",
    "lr_scheduler_num_cycle": "lr_scheduler_num_cycles",
    "dim_from_weight": "dim_from_weights",
    "stop_text_encoder_training": "stop_text_encoder_training_pct",
    "batch_size": "train_batch_size",
    "use_bucket": "enable_bucket",
}
"""Old and abbreviated names of options; argparse takes abbreviations too."""


@cache
def setting_names() -> dict[str, str]:
    """{sd-scripts' option: our setting}, of those that have the same meaning and form."""
    return {declared.sd_scripts: name for name, declared in all_settings().items() if declared.sd_scripts}


def is_left_out(name: str, value: Any) -> bool:
    """Whether an option's value says nothing: none, an empty list or text, or the word none where no text is wanted."""
    if value is None or value in ([], {}) or (isinstance(value, str) and not value.strip()):
        return True
    declared = all_settings().get(setting_names().get(name, ""))
    return declared is not None and declared.type is not str and str(value).strip().lower() == "none"


def carry_over(options: Mapping[str, Any]) -> Carried:
    """Settings and notes from sd-scripts' options, over sd-scripts' own defaults."""
    carried = Carried(values=dict(SD_SCRIPTS_DEFAULTS))
    known = setting_names()
    present = {_ALIASES.get(name, name): value for name, value in options.items() if not is_left_out(name, value)}
    for name in options:
        if is_left_out(name, options[name]):
            carried.note(name, "explained", "is empty: sd-scripts' own value is taken")
        elif name in _ALIASES:
            carried.note(name, "explained", f"another name of {_ALIASES[name]}")
    _carry_network_options(carried, present)
    carry_schedule(carried, present)
    for name, value in present.items():
        if name in NETWORK_ARGUMENTS or name in _DONE_BEFORE:
            continue
        if name in _SPECIAL:
            _SPECIAL[name](carried, name, value)
        elif name in known:
            carry_plain(carried, name, known[name], value)
        elif name in EXPLAINED or name in PROGRAMS:
            carried.note(name, "explained", EXPLAINED.get(name) or PROGRAMS[name])
        elif name in all_settings():
            carry_plain(carried, name, name, value)
        else:
            carried.note(name, "unknown", unknown_option(name))
    _say_what_differs(carried, present)
    carried.drop_what_does_not_fit(SD_SCRIPTS_DEFAULTS)
    return carried


def carry_plain(carried: Carried, name: str, setting: str, value: Any) -> None:
    """A value in our form: lists as text, 0 as "none" where a setting can only be off or above 0, other words."""
    declared = all_settings()[setting]
    if isinstance(value, list | tuple) and declared.type is str:
        value = joined(value)
    if isinstance(value, str):
        value = _SUBSTITUTES.get(setting, {}).get(value.strip().lower(), value)
    if declared.optional and declared.minimum and declared.type in (int, float) and _number(value) == 0:
        value = None
    carried.set(name, setting, value)


def unknown_option(name: str) -> str:
    """What is said of a name that nothing is known of, with names that are near."""
    near = difflib.get_close_matches(name, [*setting_names(), *EXPLAINED], n=2, cutoff=0.75)
    return (
        f"no option that is known here; did you mean {' or '.join(near)}?" if near else "no option that is known here"
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def is_on(value: Any) -> bool:
    """Whether a switch is on, as files, scripts and shells write it."""
    return str(value).strip().lower() in ("true", "1", "yes", "on", "$true", "1.0")


def _carry_network_options(carried: Carried, present: Mapping[str, Any]) -> None:
    arguments = {name: arguments_of({name: present[name]})[name] for name in present if name in NETWORK_ARGUMENTS}
    if "network_args" in present:
        arguments |= arguments_of(present["network_args"])
        carried.note("network_args", "explained", "its parts are listed by their own names")
    rank, alpha = present.get("network_dim", 4), present.get("network_alpha", 1.0)
    sdxl = is_on(present.get("sdxl", False))
    if sdxl:
        for name in [name for name in _BLOCK_LISTS if arguments.get(name, "").count(",") == 24]:
            carried.note(name, "lost", f"{arguments.pop(name)}: SDXL has 23 blocks, and these are SD1's 25")
    carry_network(carried, str(present.get("network_module", "")), arguments, rank, alpha, sdxl)


def _base_model(carried: Carried, name: str, value: Any) -> None:
    carried.base_model = str(value).strip().strip('"')
    carried.note(name, "explained", f"{carried.base_model}: the run trains on the checkpoint that is loaded or chosen")


def _v_parameterization(carried: Carried, name: str, value: Any) -> None:
    carried.set(name, "prediction_type", "v_prediction" if is_on(value) else "epsilon")


def _resolution(carried: Carried, name: str, value: Any) -> None:
    text = joined(value) if isinstance(value, list | tuple) else str(value).strip()
    sides = [side.strip() for side in text.replace("x", ",").split(",")]
    if resolution_of(text) is None:
        carried.note(name, "lost", f"{text}: allowed is one number or width,height, each a multiple of 8")
    else:
        carried.set(name, "resolution", sides[0] if len(sides) == 2 and sides[0] == sides[1] else text)


def _text_encoder_lr(carried: Carried, name: str, value: Any) -> None:
    rates = value if isinstance(value, list | tuple) else str(value).replace(",", " ").split()
    if not rates:
        carried.note(name, "lost", f"{value!r}: there is no rate in it")
        return
    if len(rates) > 2:
        carried.note(name, "lost", f"{joined(rates)}: there are two text encoders at most; the first two are taken")
    carry_plain(carried, name, "text_encoder_lr", rates[0])
    if len(rates) > 1 and str(rates[0]) != str(rates[1]):
        carry_plain(carried, name, "text_encoder_2_lr", rates[1])


def _rank(carried: Carried, name: str, value: Any) -> None:
    whole = carried.values.get("network_algorithm") == "lokr" and stands_for_whole(value)
    carry_plain(carried, name, "network_dim", HIGHEST_RANK if whole else value)


def _optimizer(carried: Carried, name: str, value: Any) -> None:
    text = str(value).strip()
    named = {each.lower(): each for each in OPTIMIZERS}
    carried.set(name, "optimizer_type", named.get(text.lower(), text))


def _old_optimizer_switch(carried: Carried, name: str, value: Any) -> None:
    if is_on(value):
        carried.set(name, "optimizer_type", "AdamW8bit" if name == "use_8bit_adam" else "Lion")
    else:
        carried.note(name, "explained", "is off")


def _arguments(carried: Carried, name: str, value: Any) -> None:
    carried.set(name, name, " ".join(f"{key}={text}" for key, text in arguments_of(value).items()))


def _lines(carried: Carried, name: str, value: Any) -> None:
    carried.set(name, name, "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _epoch_ratio(carried: Carried, name: str, value: Any) -> None:
    carried.note(name, "lost", f"{value}: set save_every_n_epochs to the number of epochs divided by {value}")


def _config_file(carried: Carried, name: str, value: Any) -> None:
    carried.note(name, "lost", f"{value}: settings stand in that file too, import it as well")


def _in_json(carried: Carried, name: str, value: Any) -> None:
    carried.set(name, "dataset_config", str(value), "a file of captions and tags, for the pictures in train_data_dir")


def _stop_text_encoder(carried: Carried, name: str, value: Any) -> None:
    percent = _number(value)
    if percent == 0:
        carried.note(name, "explained", "is off")
    elif percent is not None and percent < 0:
        carried.set(name, "network_train_unet_only", True, "below 0 the text encoder is not trained at all")
    else:
        carried.set(name, "stop_text_encoder_training", value)


def _caption_extension(carried: Carried, name: str, value: Any) -> None:
    text = "." + str(value).strip().lstrip(".").lower()
    if text in (".txt", ".caption"):
        carried.set(name, "caption_extension", text)
    else:
        carried.note(name, "lost", f"{value}: captions are read from .txt and .caption files; rename yours")


def _sampler(carried: Carried, name: str, value: Any) -> None:
    carried.set(name, "sample_sampler", sampler_name(str(value)))


def _vae_batch(carried: Carried, name: str, value: Any) -> None:
    carried.set(name, "vae_batch_size", 1 if _number(value) == 0 else value)


_SPECIAL: dict[str, Callable[[Carried, str, Any], None]] = {
    "pretrained_model_name_or_path": _base_model,
    "v_parameterization": _v_parameterization,
    "resolution": _resolution,
    "text_encoder_lr": _text_encoder_lr,
    "network_dim": _rank,
    "optimizer_type": _optimizer,
    "use_8bit_adam": _old_optimizer_switch,
    "use_lion_optimizer": _old_optimizer_switch,
    "optimizer_args": _arguments,
    "base_weights": _lines,
    "save_n_epoch_ratio": _epoch_ratio,
    "config_file": _config_file,
    "in_json": _in_json,
    "stop_text_encoder_training_pct": _stop_text_encoder,
    "caption_extension": _caption_extension,
    "vae_batch_size": _vae_batch,
    "sample_sampler": _sampler,
}
_DONE_BEFORE = frozenset({
    "network_module", "network_args", "lr_scheduler", "lr_scheduler_type", "lr_scheduler_args", "lr_warmup_steps",
    "lr_decay_steps", "lr_warmup_ratio",
})  # fmt: skip


def _say_what_differs(carried: Carried, present: Mapping[str, Any]) -> None:
    """What sd-scripts leaves to chance or does otherwise, where the source says nothing."""
    if "seed" not in present:
        carried.note("seed", "explained", "is not given: sd-scripts draws one anew each time, here it is 42")
    if "caption_extension" not in present:
        carried.note("caption_extension", "explained", "is not given: both .txt and .caption files are read")
    if "logging_dir" in present and "log_with" not in present:
        carried.note(
            "log_with", "explained", "is not given: sd-scripts writes TensorBoard's files then; set it to tensorboard"
        )
    if is_on(present.get("masked_loss", False)) or is_on(present.get("alpha_mask", False)):
        carried.note(
            "masked_loss", "explained", "masks are not evened out, as in sd-scripts: see masked_loss_normalize"
        )
    if not present.get("output_name"):
        carried.note("output_name", "explained", "is not given: the network needs a name before it can be trained")
