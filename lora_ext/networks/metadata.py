"""What a network file says of itself: sd-scripts' `ss_*` keys and the `modelspec.*` 1.0.1 keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint, PredictionType
from lora_ext.config.face_crop import face_crop_range
from lora_ext.config.groups import LearningSettings
from lora_ext.config.network_arguments import network_arguments, network_module
from lora_ext.config.resolution import resolution_of
from lora_ext.config.train_config import TrainConfig

_MINIMUM = ("v2", "base_model_version", "network_module", "network_dim", "network_alpha", "network_args")
_SGM = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class CheckpointFacts:
    """The checkpoint that was trained on: file name, the WebUI's old 8-digit hash, sha256 (None where unknown).

    The same three of a VAE that stood in for its own.
    """

    name: str
    legacy_hash: str | None
    sha256: str | None
    architecture: Architecture
    prediction_type: PredictionType
    vae_name: str | None = None
    vae_legacy_hash: str | None = None
    vae_sha256: str | None = None


@dataclass(frozen=True)
class RunFacts:
    """What a run knows at the time of a save and its configuration does not.

    Times are Unix seconds. `optimizer` is module.Class(name=value,…), `output_name` the stem of the file that is
    written. Pictures are counted with their repeats. `tag_frequency` is {folder: {tag: count}}, `dataset_dirs`
    {folder: {"n_repeats": n, "img_count": n}}, `bucket_info` {"buckets": {number: {"resolution": (w, h), "count": n}},
    "mean_img_ar_error": x} or None, `datasets` what a dataset file describes, for `ss_datasets`. `validation` are the
    `lw_` keys of the held-out pictures' loss, with their values; `base_networks` the files that were merged into the
    checkpoint first: (name, multiplier, hash).
    """

    output_name: str
    session_id: int
    training_started_at: float
    training_finished_at: float
    checkpoint: CheckpointFacts
    num_train_images: int
    num_batches_per_epoch: int
    num_epochs: int
    max_train_steps: int
    epoch: int
    steps: int
    num_reg_images: int = 0
    optimizer: str = ""
    dataset_dirs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    reg_dataset_dirs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    bucket_info: Mapping[str, Any] | None = None
    datasets: Sequence[Mapping[str, Any]] = ()
    num_validation_images: int = 0
    validation: Mapping[str, str] = field(default_factory=dict)
    base_networks: Sequence[tuple[str, float, str]] = ()


def checkpoint_facts(checkpoint: Checkpoint) -> CheckpointFacts:
    """What a file says of the checkpoint."""
    path, vae = checkpoint.path, checkpoint.vae_path
    known_vae = vae if vae and vae.is_file() else None
    return CheckpointFacts(
        name=path.name if path else checkpoint.name,
        legacy_hash=legacy_file_hash(path) if path and path.is_file() else None,
        sha256=checkpoint.sha256 or None,
        architecture=checkpoint.architecture,
        prediction_type=checkpoint.prediction_type,
        vae_name=vae.name if vae else None,
        vae_legacy_hash=legacy_file_hash(known_vae) if known_vae else None,
        vae_sha256=_sha256(known_vae) if known_vae else None,
    )


def legacy_file_hash(path: Path) -> str:
    """The WebUI's old model hash: 8 digits of the sha256 of 64 KiB from 1 MiB on."""
    with open(path, "rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def network_metadata(config: TrainConfig, facts: RunFacts) -> dict[str, str]:
    """All metadata of a file but its hashes; every value is text, "None" where there is none.

    Options of sd-scripts that are no settings here stand with the value that they have there when they are off. With
    `no_metadata` there is only what programs need to apply the file, as in sd-scripts.
    """
    values = {
        **_run_values(facts),
        **_learning_values(config, facts),
        **_loss_values(config),
        **_validation_values(config),
        **_dataset_values(config, facts),
        **_checkpoint_values(facts),
    }
    own = dict(facts.validation)
    if facts.base_networks:  # sd-scripts merges them and says nothing of it
        own["lw_base_networks"] = json.dumps(facts.base_networks)
    if config.saving.no_metadata:
        values, own = {key: values[key] for key in _MINIMUM}, {}
    return {f"ss_{key}": str(value) for key, value in values.items()} | own | _modelspec(config, facts)


def _run_values(facts: RunFacts) -> dict[str, Any]:
    return {
        "session_id": facts.session_id,
        "training_started_at": facts.training_started_at,
        "training_finished_at": facts.training_finished_at,
        "output_name": facts.output_name,
        "num_train_images": facts.num_train_images,
        "num_validation_images": facts.num_validation_images,
        "num_reg_images": facts.num_reg_images,
        "num_batches_per_epoch": facts.num_batches_per_epoch,
        "num_epochs": facts.num_epochs,
        "max_train_steps": facts.max_train_steps,
        "epoch": facts.epoch,
        "steps": facts.steps,
    }


def _learning_values(config: TrainConfig, facts: RunFacts) -> dict[str, Any]:
    learning, network, memory = config.learning, config.network, config.memory
    return {
        "learning_rate": learning.learning_rate,
        "text_encoder_lr": _text_encoder_rates(learning),
        "unet_lr": learning.unet_lr,
        "gradient_checkpointing": memory.gradient_checkpointing,
        "gradient_accumulation_steps": learning.gradient_accumulation_steps,
        "lr_warmup_steps": learning.lr_warmup_steps,
        "lr_scheduler": learning.lr_scheduler,
        "optimizer": facts.optimizer or learning.optimizer_type,
        "max_grad_norm": learning.max_grad_norm,
        "seed": learning.seed,
        "network_module": network_module(network),
        "network_dim": network.network_dim,
        "network_alpha": network.network_alpha,
        "network_dropout": network.network_dropout or None,
        "network_args": json.dumps(_network_args(config)),
        "scale_weight_norms": network.scale_weight_norms,
        "mixed_precision": memory.mixed_precision,
        "full_fp16": False,
        "lowram": False,
        "cache_latents": memory.cache_latents or memory.cache_latents_to_disk,
        "training_comment": config.saving.training_comment or None,
    }


def _text_encoder_rates(learning: LearningSettings) -> float | list[float | None] | None:
    """The rate, or both as a list, as sd-scripts has them."""
    first, second = learning.text_encoder_lr, learning.text_encoder_2_lr
    return first if second is None else [learning.learning_rate if first is None else first, second]


def _network_args(config: TrainConfig) -> dict[str, str]:
    """What sd-scripts takes as `network_args`, as text; only what is set."""
    return {name: str(value) for name, value in network_arguments(config.network, config.learning).items()}


def _loss_values(config: TrainConfig) -> dict[str, Any]:
    loss = config.loss
    return {
        "noise_offset": loss.noise_offset or None,
        "noise_offset_random_strength": loss.noise_offset_random_strength,
        "multires_noise_iterations": loss.multires_noise_iterations or None,
        "multires_noise_discount": loss.multires_noise_discount,
        "adaptive_noise_scale": loss.adaptive_noise_scale,
        "zero_terminal_snr": loss.zero_terminal_snr,
        "prior_loss_weight": config.dataset.prior_loss_weight,
        "min_snr_gamma": loss.min_snr_gamma,
        "ip_noise_gamma": loss.ip_noise_gamma or None,
        "debiased_estimation": loss.debiased_estimation_loss,
        "loss_type": loss.loss_type,
        "huber_schedule": loss.huber_schedule,
        "huber_scale": loss.huber_scale,
        "huber_c": loss.huber_c,
    }


def _validation_values(config: TrainConfig) -> dict[str, Any]:
    samples = config.samples
    return {
        "validation_seed": samples.validation_seed,
        "validation_split": samples.validation_split,
        "max_validation_steps": samples.max_validation_steps,
        "validate_every_n_epochs": samples.validate_every_n_epochs,
        "validate_every_n_steps": samples.validate_every_n_steps,
    }


def _timestep_range(config: TrainConfig) -> str | None:
    """The range of timesteps that is trained, where it is not all of them."""
    first, end = config.loss.min_timestep, config.loss.max_timestep
    return None if (first, end) == (0, 1000) else f"{first},{end}"


def _dataset_values(config: TrainConfig, facts: RunFacts) -> dict[str, Any]:
    dataset, captions, learning = config.dataset, config.captions, config.learning
    buckets = dataset.enable_bucket
    return {
        "batch_size_per_device": learning.train_batch_size,
        "total_batch_size": learning.train_batch_size * learning.gradient_accumulation_steps,
        "resolution": resolution_of(dataset.resolution),
        "color_aug": dataset.color_aug,
        "flip_aug": dataset.flip_aug,
        "random_crop": dataset.random_crop,
        "face_crop_aug_range": face_crop_range(dataset.face_crop_aug_range),
        "shuffle_caption": captions.shuffle_caption,
        "keep_tokens": captions.keep_tokens,
        "caption_dropout_rate": captions.caption_dropout_rate,
        "caption_dropout_every_n_epochs": captions.caption_dropout_every_n_epochs,
        "caption_tag_dropout_rate": captions.caption_tag_dropout_rate,
        "clip_skip": captions.clip_skip,
        "max_token_length": None if captions.max_token_length == 75 else captions.max_token_length,
        "enable_bucket": buckets,
        "bucket_no_upscale": buckets and dataset.bucket_no_upscale,
        "min_bucket_reso": dataset.min_bucket_reso if buckets else None,
        "max_bucket_reso": dataset.max_bucket_reso if buckets else None,
        "bucket_info": json.dumps(facts.bucket_info),
        "dataset_dirs": json.dumps(facts.dataset_dirs),
        "reg_dataset_dirs": json.dumps(facts.reg_dataset_dirs),
        "tag_frequency": json.dumps(facts.tag_frequency),
    } | ({"datasets": json.dumps(facts.datasets)} if facts.datasets else {})


def _checkpoint_values(facts: RunFacts) -> dict[str, Any]:
    checkpoint = facts.checkpoint
    return {
        "sd_model_name": checkpoint.name,
        "sd_model_hash": checkpoint.legacy_hash,
        "new_sd_model_hash": checkpoint.sha256,
        "vae_name": checkpoint.vae_name,
        "vae_hash": checkpoint.vae_legacy_hash,
        "new_vae_hash": checkpoint.vae_sha256,
        "v2": checkpoint.architecture == "SD2",
        "base_model_version": base_model_version(checkpoint.architecture, checkpoint.prediction_type),
    }


def base_model_version(architecture: Architecture, prediction_type: PredictionType) -> str:
    """What sd-scripts calls a kind of checkpoint in `ss_base_model_version`."""
    if architecture == "SD2":
        return "sd_v2_v" if prediction_type == "v_prediction" else "sd_v2"
    return {"SD1": "sd_v1", "SDXL": "sdxl_base_v1-0"}[architecture]


def modelspec_kind(architecture: Architecture, prediction_type: PredictionType) -> dict[str, str]:
    """The `modelspec.*` keys, without that beginning, that tell for what kind of checkpoint a network is."""
    is_velocity = prediction_type == "v_prediction"
    name = {
        "SD1": "stable-diffusion-v1",
        "SD2": "stable-diffusion-v2-768-v" if is_velocity else "stable-diffusion-v2-512",
        "SDXL": "stable-diffusion-xl-v1-base",
    }[architecture]
    return {
        "sai_model_spec": "1.0.1",
        "architecture": f"{name}/lora",
        "implementation": _SGM if architecture == "SDXL" else "diffusers",
        "prediction_type": "v" if is_velocity else "epsilon",
    }


def _modelspec(config: TrainConfig, facts: RunFacts) -> dict[str, str]:
    """The `modelspec.*` keys, without those that have no value."""
    checkpoint, saving = facts.checkpoint, config.saving
    size = resolution_of(config.dataset.resolution)
    values = {
        **modelspec_kind(checkpoint.architecture, checkpoint.prediction_type),
        "title": saving.metadata_title or facts.output_name,
        "resolution": f"{size[0]}x{size[1]}" if size else None,
        "date": datetime.fromtimestamp(int(facts.training_finished_at)).isoformat(),
        "timestep_range": _timestep_range(config),
        "encoder_layer": str(config.captions.clip_skip),
        "author": saving.metadata_author or None,
        "license": saving.metadata_license or None,
        "description": saving.metadata_description or None,
        "tags": saving.metadata_tags or None,
    }
    return {f"modelspec.{key}": value for key, value in values.items() if value is not None}
