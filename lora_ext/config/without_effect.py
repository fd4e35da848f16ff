"""Settings that others leave without effect: said, never passed over in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lora_ext.config.algorithms import trains_text_encoder
from lora_ext.config.network_rules import WITHOUT_EFFECT

if TYPE_CHECKING:
    from lora_ext.config.train_config import TrainConfig

_Test = Callable[["TrainConfig"], bool]


def without_effect(config: TrainConfig) -> Iterator[str]:
    """Each setting that is not at its default and does nothing, why, and what to set."""
    for group, names, idle, why in (*_RULES, *WITHOUT_EFFECT):
        if not idle(config):
            continue
        settings = getattr(config, group)
        for name in names:
            value = getattr(settings, name)
            if value and value != getattr(type(settings), name):
                shown = f" = {value}" if type(value) is int else ""
                yield f"{name}{shown} has no effect{why}"


def _measures_nothing(config: TrainConfig) -> bool:
    samples = config.samples
    held_out = samples.validation_split or samples.validation_data_dir.strip() or config.dataset.dataset_config.strip()
    return not held_out


def _draws_nothing(config: TrainConfig) -> bool:
    return not (
        config.dataset.num_class_images or config.loss.prior_prediction_weight or config.dataset.dataset_config.strip()
    )


def _draws_no_samples(config: TrainConfig) -> bool:
    samples = config.samples
    return not (samples.sample_every_n_epochs or samples.sample_every_n_steps or samples.sample_at_first)


_RULES: tuple[tuple[str, tuple[str, ...], _Test, str], ...] = (
    ("learning",
     ("text_encoder_lr", "text_encoder_2_lr", "loraplus_text_encoder_lr_ratio", "stop_text_encoder_training"),
     lambda c: not trains_text_encoder(c.network),
     ", because network_train_unet_only or network_preset leaves the text encoder as it is"),
    ("learning", ("unet_lr", "loraplus_unet_lr_ratio", "block_lr"),
     lambda c: c.network.network_train_text_encoder_only,
     ", because network_train_text_encoder_only leaves the U-Net as it is"),
    ("saving", ("save_last_n_steps",), lambda c: c.saving.save_every_n_steps is None,
     " without save_every_n_steps: set both, or save_last_n_epochs"),
    ("saving", ("save_last_n_epochs",), lambda c: c.saving.save_every_n_epochs is None,
     " without save_every_n_epochs: set both, or save_last_n_steps"),
    ("saving", ("save_last_n_epochs_state", "save_last_n_steps_state"), lambda c: not c.saving.save_state,
     ", because no states are saved on the way: switch save_state on"),
    ("saving", ("logging_dir", "log_prefix"), lambda c: c.saving.log_with == "csv",
     ", because it is for TensorBoard's files: set log_with to tensorboard"),
    ("dataset", ("class_prompt",), _draws_nothing,
     ", because no picture is drawn from it: set num_class_images to as many as there should be"),
    ("captions", ("token_warmup_min",), lambda c: not c.captions.token_warmup_step,
     ", because token_warmup_step is 0, which switches the tag warmup off"),
    ("loss", ("noise_offset_random_strength",), lambda c: not c.loss.noise_offset,
     ", because noise_offset is 0: give it too"),
    ("loss", ("ip_noise_gamma_random_strength",), lambda c: not c.loss.ip_noise_gamma,
     ", because ip_noise_gamma is 0: give it too"),
    ("loss", ("logit_mean", "logit_std"), lambda c: c.loss.timestep_sampling != "logit_normal",
     ", because it is for timestep_sampling = logit_normal: set that too"),
    ("samples", ("validate_every_n_steps", "max_validation_steps"), _measures_nothing,
     ", because no pictures are held out: set validation_split (0.1, say) or validation_data_dir"),
    ("samples", ("sample_prompts",), _draws_no_samples,
     " before Sample now is pressed: set sample_every_n_epochs to draw them during the run"),
    ("samples", ("sample_every_n_steps",), lambda c: c.samples.sample_every_n_epochs is not None,
     ", because sample_every_n_epochs wins: set the latter to none"),
)  # fmt: skip
"""(group, settings, whether they are idle, why and what to set).

The numbers of other schedules are in learning_rules. Not here is what programs that are imported from write beside
everything else (huber_c, multires_noise_discount): it would be said of every import.
"""
