"""Names of sd-scripts and of programs around it that become no setting, with the reason why."""

from __future__ import annotations

_ATTENTION = "not needed: torch's own attention is used"
_LOADING = "not needed: pictures are read and encoded before the first step, not by workers beside it"
_HUGGING_FACE = "not needed: nothing is uploaded"
_ONE_MACHINE = "not needed: one process on one device"
_WANDB = "not needed: logs are written as CSV, and for TensorBoard on request"
_COMPILE = "not carried over: nothing is compiled here, which changes speed alone"
_OTHER_MODELS = "not needed: it is for models of another kind than SD1, SD2 and SDXL"
_PROGRAM = "not needed: it belongs to the program that wrote the file"
_LYCORIS = "not needed beside network_args, where LyCORIS reads it"
_METADATA = "is not written: a file's own words are title, author, description, licence and tags"

EXPLAINED: dict[str, str] = {
    **dict.fromkeys(("xformers", "sdpa", "mem_eff_attn", "split_attn", "use_reentrant"), _ATTENTION),
    **dict.fromkeys(
        ("max_data_loader_n_workers", "persistent_data_loader_workers", "lowram", "highvram", "cache_info"), _LOADING
    ),
    **dict.fromkeys(
        ("disable_mmap_load_safetensors", "tokenizer_cache_dir", "text_encoder_batch_size", "skip_cache_check"),
        "not needed: the checkpoint is loaded already, and caches are checked at all times",
    ),
    **dict.fromkeys(
        (
            "huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token",
            "huggingface_repo_visibility", "save_state_to_huggingface", "resume_from_huggingface", "async_upload",
        ),
        _HUGGING_FACE,
    ),
    **dict.fromkeys(
        (
            "ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph", "deepspeed", "zero_stage",
            "offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device",
            "offload_param_nvme_path", "zero3_init_flag", "zero3_save_16bit_model",
            "fp16_master_weights_and_gradients", "num_processes", "num_machines", "multi_gpu", "gpu_ids",
            "main_process_port", "num_cpu_threads_per_process", "extra_accelerate_launch_args", "device",
        ),
        _ONE_MACHINE,
    ),
    **dict.fromkeys(
        ("wandb_api_key", "wandb_run_name", "use_wandb", "log_tracker_name", "log_tracker_config", "log_config"), _WANDB
    ),
    **dict.fromkeys(
        ("torch_compile", "dynamo_backend", "dynamo_mode", "dynamo_use_dynamic", "dynamo_use_fullgraph"), _COMPILE
    ),
    **dict.fromkeys(
        ("blocks_to_swap", "weighting_scheme", "mode_scale", "cpu_offload_checkpointing", "timestep_sampling",
         "discrete_flow_shift", "sigmoid_scale", "model_prediction_type", "guidance_scale"), _OTHER_MODELS,
    ),
    **dict.fromkeys(("console_log_level", "console_log_file", "console_log_simple", "output_config",
                     "debug_dataset", "print_only", "headless", "training_script"), _PROGRAM),
    **dict.fromkeys(
        ("metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from", "metadata_trigger_phrase",
         "metadata_preprocessor", "metadata_is_negative_embedding"), _METADATA,
    ),
    "no_half_vae": "not needed: the VAE encodes in fp32 or bf16 at all times",
    "fp8_base": "not needed: the loaded checkpoint is trained on in its own precision",
    "fp8_base_unet": "not needed: the loaded checkpoint is trained on in its own precision",
    "full_fp16": "not needed: the trained weights stay in fp32, which loses no small changes",
    "fused_backward_pass": "not needed: the trained weights are few, so it saves nothing here",
    "v2": "not needed: the kind of the loaded checkpoint is found out",
    "sdxl": "not needed: the kind of the loaded checkpoint is found out",
    "use_safetensors": "not needed: safetensors is what is written unless save_model_as says ckpt",
    "initial_epoch": "not needed: a resumed run knows its epoch",
    "initial_step": "not needed: a resumed run knows its step",
    "skip_until_initial_step": "not needed: a resumed run goes on at its step",
    "dataset_class": "not needed: datasets are read from folders and dataset files",
    "block_lr_zero_threshold": "used for the rates by block",
    "no_token_padding": "not needed: captions are padded as the checkpoint was trained",
}  # fmt: skip
"""Options that change nothing of what is trained."""

PROGRAMS: dict[str, str] = {
    **dict.fromkeys(
        (
            "model_list", "train_mode", "save_toml", "save_toml_location", "save_tag_occurrence",
            "tag_occurrence", "tag_occurrence_txt_file", "sort_tag_occurrence_alphabetically", "save_json_folder",
            "save_json_only", "load_json_path", "multi_run_folder", "json_load_skip_list", "sd_scripts_dir",
            "script_paths", "test_run", "do_not_clear_host", "dont_draw_flags", "do_not_interrupt",
            "is_chained_run", "current_version",
            "name", "prefix", "gpu_training_speed", "use_vae", "use_reg_data", "use_separate_lr",
            "training_duration_method", "train_time", "train_speed", "train_speed_type", "use_custom_log_prefix",
            "enable_tensorboard", "check_tensors", "version", "remove_temp_config", "tensorboard_port", "model_name",
            "folder_name", "sd_scripts_path", "enable_args", "enable_netowrk",
        ),
        _PROGRAM,
    ),
    **dict.fromkeys(
        (
            "factor", "train_on_input", "unit", "constrain", "block_size", "bypass_mode", "constraint",
            "weight_decompose_output", "use_upstream_patch",
        ),
        _LYCORIS,
    ),
}  # fmt: skip
"""Names that other programs write into their files, beside those of sd-scripts."""
