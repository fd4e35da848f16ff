"""The runs that both programs make: our settings, and sd-scripts' options for the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 8
SEED = 42


@dataclass(frozen=True)
class Limits:
    """The largest differences that pass: of losses, and of trained modules (median and maximum), all relative."""

    loss: float
    median: float
    maximum: float


ADAMW_LIMITS = Limits(loss=1e-4, median=1e-3, maximum=1e-2)
"""AdamW turns the sign of a gradient that is nothing but rounding into a whole step."""
SGD_LIMITS = Limits(loss=1e-4, median=1e-3, maximum=1e-3)


@dataclass(frozen=True)
class Case:
    """One run: what is set beyond `base_settings` here and `base_options` there."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    limits: Limits = ADAMW_LIMITS
    long_captions: bool = False


SGD = {"optimizer_type": "SGD", "learning_rate": 1.0, "weight_decay": None}
SGD_OPTIONS = ("--optimizer_type", "SGD", "--learning_rate", "1.0")

CASES = {
    case.name: case
    for case in (
        Case("plain"),
        Case("plain, SGD", SGD, SGD_OPTIONS, SGD_LIMITS),
        Case(
            "min-SNR 5, noise offset",
            {"min_snr_gamma": 5.0, "noise_offset": 0.05},
            ("--min_snr_gamma", "5", "--noise_offset", "0.05"),
        ),
        Case(
            "v-prediction, min-SNR 5",
            {"prediction_type": "v_prediction", "min_snr_gamma": 5.0},
            ("--v_parameterization", "--min_snr_gamma", "5"),
        ),
        Case(
            "LoCon, SGD",
            {**SGD, "conv_dim": 8, "conv_alpha": 4.0},
            (*SGD_OPTIONS, "--network_args", "conv_dim=8", "conv_alpha=4"),
            SGD_LIMITS,
        ),
        Case("LoCon", {"conv_dim": 8, "conv_alpha": 4.0}, ("--network_args", "conv_dim=8", "conv_alpha=4")),
        Case("max norm", {"scale_weight_norms": 0.02}, ("--scale_weight_norms", "0.02")),
        Case(
            "max norm, SGD",
            {**SGD, "learning_rate": 0.25, "scale_weight_norms": 0.05},
            (*SGD_OPTIONS, "--learning_rate", "0.25", "--scale_weight_norms", "0.05"),
            SGD_LIMITS,
        ),
        Case(
            "clip skip 2, 150 tokens",
            {"clip_skip": 2, "max_token_length": 150, "caption_chunks": "sd-scripts"},
            ("--clip_skip", "2", "--max_token_length", "150"),
            long_captions=True,
        ),
    )
}


def base_settings(pictures: Path, output: Path, resolution: int, batch: int, steps: int) -> dict[str, Any]:
    """Our settings of every run."""
    return {
        "train_data_dir": str(pictures),
        "output_dir": str(output),
        "output_name": "ours",
        "resolution": str(resolution),
        "min_bucket_reso": 64,
        "max_bucket_reso": 2 * resolution,
        "network_dim": RANK,
        "network_alpha": ALPHA,
        "learning_rate": 1e-4,
        "optimizer_type": "AdamW",
        "weight_decay": 0.01,
        "lr_scheduler": "constant",
        "train_batch_size": batch,
        "max_train_epochs": None,
        "max_train_steps": steps,
        "max_token_length": 75,
        "min_snr_gamma": None,
        "seed": SEED,
        "save_every_n_epochs": None,
        "save_precision": "float",
        "save_sidecar": "no",
    }


def base_options(
    checkpoint: Path, tokenizers: Path, pictures: Path, output: Path, resolution: int, batch: int, steps: int
) -> list[str]:
    """sd-scripts' options of every run; a later option of the same name wins."""
    options = {
        "pretrained_model_name_or_path": checkpoint,
        "tokenizer_cache_dir": tokenizers,
        "train_data_dir": pictures,
        "caption_extension": ".txt",
        "output_dir": output,
        "output_name": "theirs",
        "resolution": resolution,
        "min_bucket_reso": 64,
        "max_bucket_reso": 2 * resolution,
        "network_module": "networks.lora",
        "network_dim": RANK,
        "network_alpha": ALPHA,
        "learning_rate": 1e-4,
        "optimizer_type": "AdamW",
        "lr_scheduler": "constant",
        "train_batch_size": batch,
        "max_train_steps": steps,
        "max_data_loader_n_workers": 0,
        "seed": SEED,
        "mixed_precision": "no",
        "save_precision": "float",
    }
    pairs = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*pairs, "--enable_bucket", "--cache_latents", "--sdpa"]
