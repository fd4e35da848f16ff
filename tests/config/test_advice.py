"""The guides' warnings: each comes for its reason, says what to set, and is gone when that is set."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ext.config.advice import advice
from lora_ext.config.presets import compose, presets
from lora_ext.config.train_config import make_config

PRODIGY = {
    "optimizer_type": "Prodigy",
    "optimizer_args": "decouple=True weight_decay=0.01",
    "learning_rate": 1.0,
    "lr_scheduler": "constant",
}
DADAPT = {**PRODIGY, "optimizer_type": "DAdaptAdam"}


def test_the_defaults_give_no_reason() -> None:
    assert advice(make_config({})) == []


@pytest.mark.parametrize("card", [each for each in presets() if each.kind == "card"], ids=lambda each: each.name)
@pytest.mark.parametrize("subject", [each for each in presets() if each.kind == "subject"], ids=lambda each: each.name)
def test_the_presets_give_one_reason_at_most(subject: Any, card: Any) -> None:
    found = advice(make_config(compose([subject, card])))
    assert all(text.startswith("text_encoder_lr has no effect") for text in found)


@pytest.mark.parametrize(
    ("values", "begins", "remedy"),
    [
        ({"network_dim": 8, "network_alpha": 16},
         "network_alpha = 16 is above network_dim = 8: a step counts 2 times",
         {"network_alpha": 4}),
        ({"conv_dim": 8, "conv_alpha": 32}, "conv_alpha = 32 is above conv_dim = 8", {"conv_alpha": 4}),
        ({"network_dim": 256}, "network_dim = 256: above 128 the file grows", {"network_dim": 128}),
        ({"mixed_precision": "fp16", "network_alpha": 1},
         "mixed_precision = fp16 with network_alpha = 1: small weights",
         {"network_alpha": 16}),
        ({"text_encoder_lr": 2e-4},
         "text_encoder_lr = 0.0002 is above the U-Net's rate of 0.0001", {"text_encoder_lr": 5e-5}),
        ({**PRODIGY, "learning_rate": 1e-4}, "Prodigy finds the rate by itself and takes learning rates as factors: "
         "unet_lr = 0.0001, text_encoder_lr = 0.0001 leaves next to nothing", {"learning_rate": 1}),
        ({"optimizer_type": "AdaFactor"},
         "optimizer_type = AdaFactor sets the rate by itself (relative_step, its default)",
         {"lr_scheduler": "adafactor"}),
        ({"lr_scheduler": "constant"}, "lr_scheduler = constant with AdamW, which wants a falling rate",
         {"lr_scheduler": "cosine"}),
        ({"lr_scheduler": "constant", "optimizer_type": "adamw8bit"}, "lr_scheduler = constant with adamw8bit",
         {"lr_scheduler": "cosine"}),
        ({**DADAPT, "network_alpha": 1}, "DAdaptAdam with network_alpha = 1 at rank 32: it may find too high a rate",
         {"network_alpha": 16}),
        ({**DADAPT, "optimizer_args": ""}, "DAdaptAdam without decouple=True does not work well",
         {"optimizer_args": "decouple=True weight_decay=0.01 betas=0.9,0.99"}),
        ({"optimizer_type": "Lion"}, "Lion wants rates 10 to 15 times below AdamW's, and unet_lr = 0.0001",
         {"learning_rate": 1e-5}),
        ({"noise_offset": 0.05}, "noise_offset = 0.05 stacks badly", {"noise_offset": 0}),
        ({"multires_noise_iterations": 6},
         "multires_noise_iterations = 6: guides disagree", {"multires_noise_iterations": 0}),
        ({"debiased_estimation_loss": True}, "debiased_estimation_loss and min_snr_gamma = 5 weigh",
         {"min_snr_gamma": None}),
        ({"zero_terminal_snr": True, "prediction_type": "epsilon"}, "zero_terminal_snr with noise prediction",
         {"zero_terminal_snr": False}),
        ({"caption_dropout_rate": 1}, "every caption is left out each time", {"caption_dropout_rate": 0.1}),
        ({"keep_tokens": 1}, "keep_tokens = 1 has no effect", {"shuffle_caption": True}),
        ({"flip_aug": True}, "flip_aug is on: a parting", {"flip_aug": False}),
        ({"reg_data_dir": "x"}, "regularisation pictures double the time", {"reg_data_dir": ""}),
        ({"random_crop": True, "color_aug": True}, "random_crop and color_aug change the picture each time",
         {"random_crop": False, "color_aug": False}),
        ({"cache_latents": False}, "cache_latents is off: every step encodes", {"cache_latents": True}),
        ({"save_every_n_steps": 10}, "save_every_n_steps = 10: training stands still", {"save_every_n_steps": 50}),
        ({"sample_every_n_steps": 10},
         "sample_every_n_steps = 10: training stands still", {"sample_every_n_steps": 50}),
        ({"network_train_unet_only": True, "text_encoder_lr": 5e-5}, "text_encoder_lr has no effect",
         {"text_encoder_lr": None}),
        ({"network_train_text_encoder_only": True, "unet_lr": 5e-5}, "unet_lr has no effect", {"unet_lr": None}),
        ({"caption_variants": 8}, "caption_variants = 8 has no effect, because the text encoder is trained",
         {"network_train_unet_only": True}),
        ({"save_last_n_steps": 100}, "save_last_n_steps = 100 has no effect", {"save_every_n_steps": 50}),
        ({"save_last_n_epochs": 2, "save_every_n_epochs": None}, "save_last_n_epochs = 2 has no effect without",
         {"save_every_n_epochs": 1}),
        ({"save_last_n_epochs_state": 2}, "save_last_n_epochs_state = 2 has no effect", {"save_state": True}),
        ({"logging_dir": "logs"}, "logging_dir has no effect", {"log_with": "tensorboard"}),
        ({"class_prompt": "a cat"}, "class_prompt has no effect", {"prior_prediction_weight": 1}),
        ({"token_warmup_min": 3}, "token_warmup_min = 3 has no effect", {"token_warmup_step": 100}),
        ({"noise_offset_random_strength": True}, "noise_offset_random_strength has no effect",
         {"noise_offset_random_strength": False}),
        ({"ip_noise_gamma_random_strength": True}, "ip_noise_gamma_random_strength has no effect",
         {"ip_noise_gamma": 0.1}),
        ({"logit_std": 0.5}, "logit_std has no effect", {"timestep_sampling": "logit_normal"}),
        ({"sample_prompts": "a cat"}, "sample_prompts has no effect before Sample now", {"sample_at_first": True}),
        ({"max_validation_steps": 4}, "max_validation_steps = 4 has no effect", {"validation_split": 0.1}),
        ({"sample_every_n_steps": 100, "sample_every_n_epochs": 1}, "sample_every_n_steps = 100 has no effect",
         {"sample_every_n_epochs": None}),
        ({"random_crop": True, "cache_latents": False, "cache_latents_to_disk": True}, "random_crop change",
         {"random_crop": False}),
        ({"lr_scheduler_num_cycles": 4}, "lr_scheduler_num_cycles = 4 has no effect with lr_scheduler = cosine",
         {"lr_scheduler": "cosine_with_restarts"}),
        ({"lr_cycle_decay": 0.5}, "lr_cycle_decay = 0.5 has no effect",
         {"lr_scheduler": "cosine_annealing_warmup.CosineAnnealingWarmupRestarts", "lr_scheduler_args": "T_0=10"}),
        ({"lr_warmup_steps": 10, "lr_scheduler": "torch.optim.lr_scheduler.ExponentialLR"},
         "lr_warmup_steps = 10 has no effect", {"lr_warmup_steps": 0}),
    ],
)  # fmt: skip
def test_a_warning_and_its_remedy(values: dict[str, Any], begins: str, remedy: dict[str, Any]) -> None:
    (found,) = advice(make_config(values))
    assert found.startswith(begins)
    assert advice(make_config({**values, **remedy})) == []


def test_all_of_them_come_together() -> None:
    found = advice(
        make_config({"network_alpha": 64, "lr_scheduler": "constant", "noise_offset": 0.1, "flip_aug": True})
    )
    assert [text.split(" ")[0] for text in found] == ["network_alpha", "lr_scheduler", "noise_offset", "flip_aug"]
