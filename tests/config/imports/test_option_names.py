"""Every option of sd-scripts' train_network.py is mapped, explained, or refused in words."""

from __future__ import annotations

import pytest

from lora_ext.config.imports.carry import carry_over
from lora_ext.config.imports.powershell import script_options
from lora_ext.config.train_config import all_settings

OPTIONS = """
adaptive_noise_scale alpha_mask async_upload base_weights base_weights_multiplier blocks_to_swap bucket_no_upscale
bucket_reso_steps cache_info cache_latents cache_latents_to_disk cache_text_encoder_outputs
cache_text_encoder_outputs_to_disk caption_dropout_every_n_epochs caption_dropout_rate caption_extension
caption_extention caption_prefix caption_separator caption_suffix caption_tag_dropout_rate clip_skip color_aug
conditioning_data_dir config_file console_log_file console_log_level console_log_simple cpu_offload_checkpointing
dataset_class dataset_config dataset_repeats ddp_gradient_as_bucket_view ddp_static_graph ddp_timeout
debiased_estimation_loss debug_dataset deepspeed dim_from_weights disable_mmap_load_safetensors dynamo_backend
enable_bucket enable_wildcard face_crop_aug_range flip_aug fp16_master_weights_and_gradients fp8_base fp8_base_unet
full_bf16 full_fp16 fused_backward_pass gradient_accumulation_steps gradient_checkpointing highvram huber_c
huber_scale huber_schedule huggingface_path_in_repo huggingface_repo_id huggingface_repo_type
huggingface_repo_visibility huggingface_token in_json initial_epoch initial_step ip_noise_gamma
ip_noise_gamma_random_strength keep_tokens keep_tokens_separator learning_rate log_config log_prefix
log_tracker_config log_tracker_name log_with logging_dir logit_mean logit_std loss_type lowram lr_decay_steps
lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power
lr_scheduler_timescale lr_scheduler_type lr_warmup_steps masked_loss max_bucket_reso max_data_loader_n_workers
max_grad_norm max_timestep max_token_length max_train_epochs max_train_steps max_validation_steps mem_eff_attn
metadata_author metadata_description metadata_is_negative_embedding metadata_license metadata_merged_from
metadata_preprocessor metadata_tags metadata_thumbnail metadata_title metadata_trigger_phrase metadata_usage_hint
min_bucket_reso min_snr_gamma min_timestep mixed_precision mode_scale multires_noise_discount
multires_noise_iterations network_alpha network_args network_dim network_dropout network_module
network_train_text_encoder_only network_train_unet_only network_weights no_half_vae no_metadata noise_offset
noise_offset_random_strength offload_optimizer_device offload_optimizer_nvme_path offload_param_device
offload_param_nvme_path optimizer_args optimizer_type output_config output_dir output_name
persistent_data_loader_workers pretrained_model_name_or_path prior_loss_weight random_crop reg_data_dir
resize_interpolation resolution resume resume_from_huggingface sample_at_first sample_every_n_epochs
sample_every_n_steps sample_prompts sample_sampler save_every_n_epochs save_every_n_steps save_last_n_epochs
save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_model_as save_n_epoch_ratio save_precision
save_state save_state_on_train_end save_state_to_huggingface scale_v_pred_loss_like_noise_pred scale_weight_norms
sdpa secondary_separator seed shuffle_caption skip_cache_check skip_until_initial_step text_encoder_batch_size
text_encoder_lr token_warmup_min token_warmup_step tokenizer_cache_dir torch_compile train_batch_size
train_data_dir training_comment unet_lr use_8bit_adam use_lion_optimizer use_safetensors v2 v_parameterization
v_pred_like_loss vae vae_batch_size validate_every_n_epochs validate_every_n_steps validation_seed validation_split
wandb_api_key wandb_run_name weighted_captions weighting_scheme xformers zero3_init_flag zero3_save_16bit_model
zero_stage zero_terminal_snr
"""
"""Read from the `add_argument` calls of sd-scripts' train_network.py and sdxl_train_network.py (February 2026)."""

NETWORK_ARGUMENTS = """
conv_dim conv_alpha rank_dropout module_dropout block_dims block_alphas conv_block_dims conv_block_alphas down_lr_weight
mid_lr_weight up_lr_weight block_lr_zero_threshold loraplus_lr_ratio loraplus_unet_lr_ratio
loraplus_text_encoder_lr_ratio algo use_cp use_tucker preset dropout dora_wd train_norm wd_on_output rs_lora use_scalar
decompose_both full_matrix unbalanced_factorization rescaled factor constraint block_size
"""


@pytest.mark.parametrize("name", OPTIONS.split())
def test_every_option_is_known(name: str) -> None:
    carried = carry_over({name: "1"})
    about = [note for note in carried.notes if note.name == name or note.text.startswith(f"{name} = ")]
    assert about and not any(note.kind == "unknown" for note in about)


@pytest.mark.parametrize("name", NETWORK_ARGUMENTS.split())
def test_every_argument_of_a_network_is_known(name: str) -> None:
    value = ",".join(["1"] * 12) if name in ("down_lr_weight", "up_lr_weight") else "1"
    for options in ({"network_args": [f"{name}={value}"]}, {"network_args": {name: value}}):
        carried = carry_over({"network_module": "lycoris.kohya", **options})
        assert not [note for note in carried.notes if note.kind == "unknown"]


def test_every_setting_that_sd_scripts_knows_is_read_back_by_its_name() -> None:
    known = {*OPTIONS.split(), *NETWORK_ARGUMENTS.split(), "stop_text_encoder_training_pct"}
    assert {declared.sd_scripts for declared in all_settings().values() if declared.sd_scripts} <= known


def test_an_unknown_name_is_listed_with_its_neighbours() -> None:
    notes = carry_over({"unet_Ir": 1e-4, "seed": 1}).notes
    assert [str(note) for note in notes if note.kind == "unknown"] == [
        "unet_Ir: no option that is known here; did you mean unet_lr?"
    ]


OLD_NAMES = """
use_reentrant lowram mem_eff_attn xformers no_half_vae persistent_data_loader_workers max_data_loader_n_workers
dataset_repeats vae logging_dir log_prefix
"""


@pytest.mark.parametrize("name", OLD_NAMES.split())
def test_names_that_old_configurations_hold(name: str) -> None:
    (note,) = [note for note in carry_over({name: "1"}).notes if note.name == name]
    assert note.kind == ("mapped" if name in ("dataset_repeats", "vae", "logging_dir", "log_prefix") else "explained")


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("num_epochs", "max_train_epochs"), ("train_batch_size", "train_batch_size"), ("scheduler", "lr_scheduler"),
        ("lr_scheduler", "lr_scheduler"), ("optimizer_t", "optimizer_type"), ("lr_warmup_ratio", "lr_warmup_steps"),
        ("lr_r_num_cycles", "lr_scheduler_num_cycles"), ("unet_lr", "unet_lr"), ("network_dim", "network_dim"),
        ("text_encoder_lr", "text_encoder_lr"), ("network_alpha", "network_alpha"), ("clip_skip", "clip_skip"),
        ("max_token_length", "max_token_length"), ("shuffle_caption", "shuffle_caption"),
        ("image_dir", "train_data_dir"), ("keep_tokens", "keep_tokens"),
        ("output_dir", "output_dir"), ("output_name", "output_name"),
        ("save_every_n_epochs", "save_every_n_epochs"), ("noise_offset", "noise_offset"), ("resolution", "resolution"),
        ("min_snr_gamma", "min_snr_gamma"),
    ],
)  # fmt: skip
def test_variables_of_the_guides_scripts(variable: str, setting: str) -> None:
    value = {"resolution": "512", "max_token_length": "150"}.get(variable, "1")
    options, skipped = script_options(f"$ckpt = 'a.ckpt'\n${variable} = {value}\n")
    carried = carry_over(options)
    assert carried.base_model == "a.ckpt" and not skipped
    assert [note.kind for note in carried.notes if note.setting == setting] == ["mapped"]
