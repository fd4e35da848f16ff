"""Metadata: the keys, literally, and the values that other programs look at."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint, PredictionType
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.networks.metadata import CheckpointFacts, RunFacts, checkpoint_facts, legacy_file_hash, network_metadata

SS_KEYS = """
session_id training_started_at training_finished_at output_name learning_rate text_encoder_lr unet_lr num_train_images
num_validation_images num_reg_images num_batches_per_epoch num_epochs gradient_checkpointing
gradient_accumulation_steps max_train_steps lr_warmup_steps lr_scheduler network_module network_dim network_alpha
network_dropout network_args mixed_precision full_fp16 v2 base_model_version clip_skip max_token_length cache_latents
seed lowram noise_offset noise_offset_random_strength multires_noise_iterations multires_noise_discount
adaptive_noise_scale zero_terminal_snr training_comment optimizer max_grad_norm caption_dropout_rate
caption_dropout_every_n_epochs caption_tag_dropout_rate face_crop_aug_range prior_loss_weight min_snr_gamma
scale_weight_norms ip_noise_gamma debiased_estimation loss_type huber_schedule huber_scale huber_c validation_seed
validation_split max_validation_steps validate_every_n_epochs validate_every_n_steps
batch_size_per_device total_batch_size resolution color_aug flip_aug random_crop shuffle_caption
enable_bucket bucket_no_upscale min_bucket_reso max_bucket_reso keep_tokens reg_dataset_dirs bucket_info tag_frequency
dataset_dirs sd_model_name sd_model_hash new_sd_model_hash vae_name vae_hash new_vae_hash steps epoch
"""
MODELSPEC_KEYS = "sai_model_spec architecture implementation title resolution date prediction_type encoder_layer"

SD1 = CheckpointFacts("base.safetensors", "0123abcd", "f" * 64, "SD1", "epsilon")
FACTS = RunFacts(
    output_name="cat-000002",
    session_id=1234567,
    training_started_at=1700000000.25,
    training_finished_at=1700000100.5,
    checkpoint=SD1,
    num_train_images=30,
    num_batches_per_epoch=15,
    num_epochs=4,
    max_train_steps=60,
    epoch=2,
    steps=30,
    optimizer="torch.optim.adamw.AdamW(weight_decay=0.01)",
    dataset_dirs={"3_cat": {"n_repeats": 3, "img_count": 10}},
    tag_frequency={"3_cat": {"a cat": 10}},
    bucket_info={"buckets": {0: {"resolution": (512, 512), "count": 30}}, "mean_img_ar_error": 0.0},
)


def test_the_keys() -> None:
    metadata = network_metadata(TrainConfig(), FACTS)
    assert set(metadata) == {f"ss_{key}" for key in SS_KEYS.split()} | {
        f"modelspec.{key}" for key in MODELSPEC_KEYS.split()
    }
    assert all(isinstance(value, str) for value in metadata.values())


def test_optional_modelspec_keys_stand_when_there_is_something_to_say() -> None:
    config = make_config({
        "metadata_author": "me", "metadata_license": "CC0", "metadata_description": "a cat",
        "metadata_tags": "cat, pet", "metadata_title": "Cat", "min_timestep": 200,
    })  # fmt: skip
    metadata = network_metadata(config, FACTS)
    assert (metadata["modelspec.title"], metadata["modelspec.tags"]) == ("Cat", "cat, pet")
    optional = {key: metadata[f"modelspec.{key}"] for key in ("author", "license", "description", "timestep_range")}
    assert optional == {"author": "me", "license": "CC0", "description": "a cat", "timestep_range": "200,1000"}


def test_values() -> None:
    config = make_config(
        {
            "unet_lr": 1e-4,
            "text_encoder_lr": 5e-5,
            "resolution": "512,768",
            "network_dim": 8,
            "network_alpha": 4,
            "train_batch_size": 2,
            "gradient_accumulation_steps": 3,
            "max_token_length": 75,
            "min_snr_gamma": "none",
            "training_comment": "größer",
        }
    )
    metadata = network_metadata(config, FACTS)
    expected = {
        "ss_output_name": "cat-000002",
        "ss_session_id": "1234567",
        "ss_training_started_at": "1700000000.25",
        "ss_unet_lr": "0.0001",
        "ss_text_encoder_lr": "5e-05",
        "ss_resolution": "(512, 768)",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_network_dropout": "None",
        "ss_network_args": "{}",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01)",
        "ss_total_batch_size": "6",
        "ss_max_token_length": "None",
        "ss_min_snr_gamma": "None",
        "ss_noise_offset": "None",
        "ss_training_comment": "größer",
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "base.safetensors",
        "ss_sd_model_hash": "0123abcd",
        "ss_new_sd_model_hash": "f" * 64,
        "ss_vae_name": "None",
        "ss_epoch": "2",
        "ss_steps": "30",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "cat-000002",
        "modelspec.resolution": "512x768",
        "modelspec.prediction_type": "epsilon",
        "modelspec.encoder_layer": "1",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["ss_dataset_dirs"]) == {"3_cat": {"n_repeats": 3, "img_count": 10}}
    assert json.loads(metadata["ss_tag_frequency"]) == {"3_cat": {"a cat": 10}}
    assert json.loads(metadata["ss_bucket_info"])["buckets"]["0"] == {"resolution": [512, 512], "count": 30}


def test_a_vae_in_place_of_the_checkpoints_own() -> None:
    with_vae = replace(SD1, vae_name="mse.safetensors", vae_legacy_hash="89abcdef", vae_sha256="e" * 64)
    metadata = network_metadata(TrainConfig(), replace(FACTS, checkpoint=with_vae))
    values = [metadata[f"ss_{key}"] for key in ("vae_name", "vae_hash", "new_vae_hash")]
    assert values == ["mse.safetensors", "89abcdef", "e" * 64]


def test_without_buckets_their_sizes_are_none() -> None:
    metadata = network_metadata(make_config({"enable_bucket": False}), replace(FACTS, bucket_info=None))
    values = [metadata[f"ss_{key}"] for key in ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_info")]
    assert values == ["False", "None", "None", "null"]


@pytest.mark.parametrize(
    ("architecture", "prediction", "version", "spec"),
    [
        ("SD1", "epsilon", "sd_v1", "stable-diffusion-v1/lora"),
        ("SD2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
        ("SD2", "v_prediction", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        ("SDXL", "epsilon", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_the_kind_of_checkpoint(
    architecture: Architecture, prediction: PredictionType, version: str, spec: str
) -> None:
    facts = replace(FACTS, checkpoint=replace(SD1, architecture=architecture, prediction_type=prediction))
    metadata = network_metadata(TrainConfig(), facts)
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == str(architecture == "SD2")
    assert metadata["modelspec.architecture"] == spec
    assert metadata["modelspec.prediction_type"] == ("v" if prediction == "v_prediction" else "epsilon")


def test_two_runs_differ_in_times_and_session_only() -> None:
    other = replace(FACTS, session_id=7, training_started_at=1.0, training_finished_at=2.0)
    first, second = network_metadata(TrainConfig(), FACTS), network_metadata(TrainConfig(), other)
    differing = {key for key in first if first[key] != second[key]}
    assert differing == {"ss_session_id", "ss_training_started_at", "ss_training_finished_at", "modelspec.date"}


def test_the_checkpoints_file_and_hashes(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "base.ckpt"
    data = torch.arange(1_200_000 // 8).numpy().tobytes()
    path.write_bytes(data)
    expected = hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert legacy_file_hash(path) == expected
    facts = checkpoint_facts(replace(checkpoint, path=path, sha256="abc"))
    assert (facts.name, facts.legacy_hash, facts.sha256) == ("base.ckpt", expected, "abc")
    nowhere = checkpoint_facts(replace(checkpoint, path=None, name="in memory", sha256=""))
    assert (nowhere.name, nowhere.legacy_hash, nowhere.sha256) == ("in memory", None, None)


def test_without_metadata_there_is_what_programs_need() -> None:
    facts = replace(FACTS, base_networks=[("style.safetensors", 0.5, "ab")], validation={"lw_best_epoch": "1"})
    metadata = network_metadata(make_config({"no_metadata": True}), facts)
    assert {key for key in metadata if not key.startswith("modelspec.")} == {
        "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
    }  # fmt: skip


def test_networks_merged_into_the_base_are_named() -> None:
    metadata = network_metadata(TrainConfig(), replace(FACTS, base_networks=[("style.safetensors", 0.5, "ab")]))
    assert json.loads(metadata["lw_base_networks"]) == [["style.safetensors", 0.5, "ab"]]
