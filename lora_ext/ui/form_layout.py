"""Which fields stand where on the page: the few at the top, and headings inside the groups."""

from __future__ import annotations

from lora_ext.config.train_config import GROUP_TITLES, all_settings

FOLDER_FIELD = "train_data_dir"
TRIGGER_FIELD = "class_tokens"
MAIN_FIELDS = (
    "output_name",
    "network_dim",
    "network_alpha",
    "learning_rate",
    "max_train_epochs",
    "train_batch_size",
    "resolution",
)

SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "dataset": {
        "Pictures": ("dataset_config", "num_repeats", "caption_extension", "resize_interpolation"),
        "Buckets": (
            "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale",
        ),
        "Varied each time": ("flip_aug", "color_aug", "random_crop", "face_crop_aug_range"),
        "Regularisation": ("reg_data_dir", "prior_loss_weight", "class_prompt", "num_class_images"),
        "Masks": ("alpha_mask", "conditioning_data_dir"),
    },
    "captions": {
        "Order": (
            "shuffle_caption", "keep_tokens", "keep_tokens_separator", "caption_separator", "secondary_separator",
        ),
        "Words": ("caption_prefix", "caption_suffix", "enable_wildcard", "weighted_captions"),
        "Left out": (
            "caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min",
            "token_warmup_step",
        ),
        "Text encoder": ("max_token_length", "caption_chunks", "clip_skip"),
    },
    "network": {
        "Algorithm": ("network_algorithm", "rs_lora", "dora_wd", "wd_on_output", "lora_fa"),
        "Adapted modules": (
            "network_preset", "conv_dim", "conv_alpha", "train_norm", "network_train_unet_only",
            "network_train_text_encoder_only", "network_include", "network_exclude",
        ),
        "Regularisation": (
            "network_dropout", "rank_dropout", "rank_dropout_scale", "module_dropout", "scale_weight_norms",
        ),
        "Begin with": ("network_weights", "dim_from_weights", "base_weights", "base_weights_multiplier"),
        "By block": ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"),
        "Of single algorithms": (
            "use_tucker", "use_scalar", "block_size", "factor", "decompose_both", "full_matrix",
            "unbalanced_factorization", "constraint", "rescaled",
        ),
    },
    "learning": {
        "Rates": (
            "unet_lr", "text_encoder_lr", "text_encoder_2_lr", "stop_text_encoder_training", "loraplus_lr_ratio",
            "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio", "block_lr",
        ),
        "Optimizer": ("optimizer_type", "weight_decay", "max_grad_norm", "ema_decay", "optimizer_args"),
        "Schedule": (
            "lr_scheduler", "lr_warmup_steps", "lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_power",
            "lr_scheduler_timescale", "lr_scheduler_min_lr_ratio", "lr_cycle_warmup_steps", "lr_cycle_decay",
            "lr_scheduler_args",
        ),
        "Length and order": ("max_train_steps", "gradient_accumulation_steps", "stop_after_bad_steps", "seed"),
    },
    "loss": {
        "Weight of timesteps": (
            "min_snr_gamma", "debiased_estimation_loss", "min_timestep", "max_timestep", "timestep_sampling",
            "logit_mean", "logit_std",
        ),
        "Noise": (
            "noise_offset", "noise_offset_random_strength", "adaptive_noise_scale", "multires_noise_iterations",
            "multires_noise_discount", "ip_noise_gamma", "ip_noise_gamma_random_strength",
        ),
        "Loss": ("loss_type", "huber_schedule", "huber_c", "huber_scale", "masked_loss", "masked_loss_normalize",
                 "prior_prediction_weight"),
        "Prediction": (
            "prediction_type", "zero_terminal_snr", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss",
        ),
    },
    "memory": {
        "Memory": ("mixed_precision", "full_bf16", "gradient_checkpointing", "on_out_of_memory"),
        "Kept encodings": (
            "cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs",
            "cache_text_encoder_outputs_to_disk", "caption_variants",
        ),
        "VAE": ("vae", "vae_batch_size"),
    },
    "saving": {
        "Files": (
            "output_dir", "save_every_n_epochs", "save_every_n_steps", "save_last_n_epochs", "save_last_n_steps",
            "save_model_as", "save_precision", "save_sidecar", "on_disk_full",
        ),
        "States": (
            "save_state", "save_state_on_train_end", "save_last_n_epochs_state", "save_last_n_steps_state", "resume",
            "resume_anyway",
        ),
        "Logs": ("log_with", "logging_dir", "log_prefix"),
        "Written into the file": (
            "training_comment", "metadata_title", "metadata_author", "metadata_description", "metadata_license",
            "metadata_tags", "no_metadata",
        ),
    },
    "samples": {
        "Samples": (
            "sample_every_n_epochs", "sample_every_n_steps", "sample_at_first", "sample_sampler", "sample_prompts",
        ),
        "Validation": (
            "validation_split", "validation_data_dir", "validation_seed", "validate_every_n_epochs",
            "validate_every_n_steps", "max_validation_steps", "early_stopping_patience",
        ),
    },
}  # fmt: skip
"""Headings inside a group, and the settings under each; what is listed nowhere comes last under "More"."""


def grouped_fields() -> dict[str, dict[str, list[str]]]:
    """Names of the folded fields by group and heading: every setting that has no place at the top, once."""
    known = all_settings()
    placed = {FOLDER_FIELD, TRIGGER_FIELD, *MAIN_FIELDS}
    groups: dict[str, dict[str, list[str]]] = {}
    for group in GROUP_TITLES:
        sections = {}
        for heading, names in SECTIONS.get(group, {}).items():
            sections[heading] = [name for name in names if name in known and name not in placed]
            placed.update(names)
        rest = [name for name, declared in known.items() if declared.group == group and name not in placed]
        groups[group] = {heading: names for heading, names in {**sections, "More": rest}.items() if names}
    return groups
