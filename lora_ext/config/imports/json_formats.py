"""JSON of kohya_ss, of the older LoRA_Easy_Training_Scripts, of sd_dreambooth, and lines `name: value`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_ext.config.imports.carry import is_on
from lora_ext.config.imports.command_line import options_of
from lora_ext.config.imports.powershell import NAMES

_LORA_TYPES = {
    "standard": ("networks.lora", ""),
    "kohya locon": ("networks.lora", ""),
    "locon": ("networks.lora", ""),
    "lycoris/locon": ("lycoris.kohya", "locon"),
    "kohya dylora": ("networks.dylora", ""),
    "lora-fa": ("networks.lora_fa", ""),
    "lycoris/loha": ("lycoris.kohya", "loha"),
    "lycoris/lokr": ("lycoris.kohya", "lokr"),
    "lycoris/ia3": ("lycoris.kohya", "ia3"),
    "lycoris/dylora": ("lycoris.kohya", "dylora"),
    "lycoris/glora": ("lycoris.kohya", "glora"),
    "lycoris/diag-oft": ("lycoris.kohya", "diag-oft"),
    "lycoris/boft": ("lycoris.kohya", "boft"),
    "lycoris/native fine-tuning": ("lycoris.kohya", "full"),
}
"""kohya_ss' `LoRA_type`: sd-scripts' module and algorithm."""

_KOHYA_NAMES = {
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
    "conv_dims": "conv_block_dims",
    "conv_alphas": "conv_block_alphas",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sdxl_no_half_vae": "no_half_vae",
    "max_train_epoch": "max_train_epochs",
    "caption_extention": "caption_extension",
    "vae_path": "vae",
    "LyCORIS_preset": "preset",
}
_KOHYA_MARKS = ("LoRA_type", "max_resolution", "lr_warmup", "epoch", "model_list", "num_cpu_threads_per_process")
_CONVOLUTIONS = ("conv_dim", "conv_alpha", "preset")
_MULTIRES = ("multires_noise_iterations", "multires_noise_discount")
_ORIGINAL = ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")

_EASY_TRAINING_NAMES = {
    **NAMES,
    "img_folder": "train_data_dir",
    "reg_img_folder": "reg_data_dir",
    "output_folder": "output_dir",
    "change_output_name": "output_name",
    "train_resolution": "resolution",
    "buckets": "enable_bucket",
    "min_bucket_resolution": "min_bucket_reso",
    "max_bucket_resolution": "max_bucket_reso",
    "shuffle_captions": "shuffle_caption",
    "max_clip_token_length": "max_token_length",
    "max_steps": "max_train_steps",
    "num_workers": "max_data_loader_n_workers",
    "persistent_workers": "persistent_data_loader_workers",
    "test_seed": "seed",
    "log_dir": "logging_dir",
    "cosine_restarts": "lr_scheduler_num_cycles",
    "scheduler_power": "lr_scheduler_power",
    "warmup_lr_ratio": "lr_warmup_ratio",
    "no_meta": "no_metadata",
    "save_as": "save_model_as",
    "lora_model_for_resume": "network_weights",
    "net_dim": "network_dim",
    "unet_only": "network_train_unet_only",
    "text_only": "network_train_text_encoder_only",
}

_DREAMBOOTH_NAMES = {
    "lora_rank": "network_dim",
    "lora_unet_rank": "network_dim",
    "lora_learning_rate": "unet_lr",
    "lora_txt_learning_rate": "text_encoder_lr",
    "num_train_epochs": "max_train_epochs",
    "save_embedding_every": "save_every_n_epochs",
    "save_preview_every": "sample_every_n_epochs",
    "learning_rate": "learning_rate",
    "lr_cycles": "lr_scheduler_num_cycles",
    "lr_num_cycles": "lr_scheduler_num_cycles",
    "lr_power": "lr_scheduler_power",
    "gradient_checkpointing": "gradient_checkpointing",
    "hflip": "flip_aug",
    "tag_order": "shuffle_caption",
    "optimizer": "optimizer_type",
    "pretrained_vae_name_or_path": "vae",
    "src": "pretrained_model_name_or_path",
    "offset_noise": "noise_offset",
    "prior_loss_weight": "prior_loss_weight",
    "model_name": "output_name",
    "cache_latents": "cache_latents",
}
_METADATA_KEYS = {"caption", "tags", "train_resolution"}
_DREAMBOOTH_MARKS = ("concepts_list", "lora_learning_rate", "use_lora", "save_preview_every", "concepts_path")
_DREAMBOOTH_OPTIMIZERS = {
    "8bit adamw": "AdamW8bit", "torch adamw": "AdamW", "paged 8bit adamw": "PagedAdamW8bit", "8bit lion": "Lion8bit",
    "paged 8bit lion": "PagedLion8bit", "adamw dadaptation": "DAdaptAdam", "lion dadaptation": "DAdaptLion",
    "adan dadaptation": "DAdaptAdan", "sgd dadaptation": "DAdaptSGD",
}  # fmt: skip


def is_concept_list(document: Any) -> bool:
    """Whether a document is sd_dreambooth's list of concepts."""
    return (
        isinstance(document, list)
        and bool(document)
        and all(isinstance(each, dict) and "instance_data_dir" in each for each in document)
    )


def is_metadata(document: Any) -> bool:
    """Whether a document is sd-scripts' metadata of pictures: {picture: {"caption": …, "tags": …}}."""
    return (
        isinstance(document, dict)
        and bool(document)
        and all(isinstance(each, dict) and _METADATA_KEYS & set(each) for each in document.values())
    )


def is_dreambooth(document: Mapping[str, Any]) -> bool:
    """Whether a document is sd_dreambooth's db_config.json."""
    return sum(mark in document for mark in _DREAMBOOTH_MARKS) >= 2


def is_kohya(document: Mapping[str, Any]) -> bool:
    """Whether a document is a preset of kohya_ss."""
    return sum(mark in document for mark in _KOHYA_MARKS) >= 2


def is_easy_training_json(document: Mapping[str, Any]) -> bool:
    """Whether a document is one of the first LoRA_Easy_Training_Scripts."""
    return "img_folder" in document or "net_dim" in document


def renamed(document: Mapping[str, Any], names: Mapping[str, str] = _EASY_TRAINING_NAMES) -> dict[str, Any]:
    """sd-scripts' options of a flat document by a table of names; a name that is given twice counts once."""
    options: dict[str, Any] = {}
    for name, value in document.items():
        options.setdefault(names.get(name, name), value)
    return options


def kohya_options(document: Mapping[str, Any]) -> dict[str, Any]:
    """sd-scripts' options of a kohya_ss preset; 0 and empty fields mean what its form makes of them."""
    options = renamed(document, _KOHYA_NAMES)
    kind = str(options.pop("LoRA_type", "Standard")).strip()
    module, algorithm = _LORA_TYPES.get(kind.lower(), (kind, ""))
    options["network_module"] = module
    if algorithm:
        options["algo"] = algorithm
    elif kind.lower() == "standard":
        options = {name: value for name, value in options.items() if name not in _CONVOLUTIONS}
    if module != "lycoris.kohya":
        options.pop("preset", None)
    if "dylora" in kind.lower() and "unit" in options:
        options["block_size"] = options.pop("unit")
    if kind.lower() in ("lycoris/diag-oft", "lycoris/boft") and "constrain" in options:
        options["constraint"] = options.pop("constrain")
    _kohya_length(options)
    _kohya_rates(options)
    _kohya_noise(options)
    if not is_on(options.get("v_parameterization", False)):
        options.pop("v_parameterization", None)
    extra = str(options.pop("additional_parameters", "") or "")
    return options | options_of(extra)[0]


def _kohya_length(options: dict[str, Any]) -> None:
    """Epochs or steps, and the warmup, which the form holds as a percentage."""
    epoch = options.pop("epoch", None)
    for name in ("max_train_epochs", "max_train_steps"):
        if _is_nothing(options.get(name)):
            options.pop(name, None)
    if "max_train_epochs" not in options and "max_train_steps" not in options and not _is_nothing(epoch):
        options["max_train_epochs"] = epoch
    percent = options.pop("lr_warmup", None)
    if _is_nothing(options.get("lr_warmup_steps")):
        options.pop("lr_warmup_steps", None)
        if not _is_nothing(percent):
            options["lr_warmup_steps"] = f"{percent}%"
    if str(options.get("lr_scheduler", "")) == "constant":
        options.pop("lr_warmup_steps", None)


def _kohya_rates(options: dict[str, Any]) -> None:
    """A rate of 0 switches a part off where the other has one, and is none where neither has."""
    unet, text = _is_nothing(options.get("unet_lr")), _is_nothing(options.get("text_encoder_lr"))
    if unet:
        options.pop("unet_lr", None)
    if text:
        options.pop("text_encoder_lr", None)
    if unet != text:
        options["network_train_text_encoder_only" if unet else "network_train_unet_only"] = True


def _kohya_noise(options: dict[str, Any]) -> None:
    """The form has both kinds of noise, and `noise_offset_type` says which of them counts."""
    kind = str(options.pop("noise_offset_type", "")).lower()
    for name in _MULTIRES if kind == "original" else _ORIGINAL if kind == "multires" else ():
        options.pop(name, None)


def _is_nothing(value: Any) -> bool:
    return value is None or str(value).strip() in ("", "0", "0.0", "None")


def dreambooth_options(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """(sd-scripts' options, [(name, why it is none)]) of sd_dreambooth's db_config.json."""
    options: dict[str, Any] = {}
    left: list[tuple[str, str]] = []
    for name, value in document.items():
        option = _DREAMBOOTH_NAMES.get(name, name)
        if name == "optimizer":
            value = _DREAMBOOTH_OPTIMIZERS.get(str(value).strip().lower(), value)
        if name == "concepts_list":
            continue
        if name in _DREAMBOOTH_NAMES or name in ("resolution", "train_batch_size", "mixed_precision", "clip_skip",
                                                 "lr_scheduler", "lr_warmup_steps", "max_token_length", "seed",
                                                 "gradient_accumulation_steps", "min_snr_gamma"):  # fmt: skip
            options.setdefault(option, value)
        else:
            left.append((name, "belongs to sd_dreambooth's own way of training"))
    return options, left


def lines_of_settings(text: str) -> dict[str, Any] | None:
    """{name: value} of lines `name: value` below a `version=` line, as LoRA-train-GUI writes; None of another text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("version="):
        return None
    pairs = [line.partition(": ") for line in lines[1:] if not line.startswith("#")]
    return {name.strip(): value.strip() for name, sign, value in pairs if sign}
