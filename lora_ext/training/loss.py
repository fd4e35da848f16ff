"""The diffusion loss, from what the U-Net predicts to one number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_ext.checkpoint.checkpoint import PredictionType
from lora_ext.checkpoint.schedule import NoiseSchedule


def prediction_target(
    latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule, prediction_type: PredictionType
) -> Tensor:
    """What the U-Net should predict: ε, or v = √ᾱ·ε − √(1−ᾱ)·x₀; the shape of `latents`."""
    if prediction_type == "v_prediction":
        return schedule.velocity(latents, noise, timesteps)
    return noise


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Min-SNR-γ weights (Hang et al. 2023, arXiv:2303.09556), (batch,): min(s,γ)/s for ε, min(s,γ)/(s+1) for v."""
    clipped = snr.clamp(max=gamma)
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped / snr


def diffusion_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over the batch of weight · mean squared error, in fp32.

    `prediction` and `target` are (batch, channels, h, w); `weights` (batch,), one for each sample.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"the U-Net predicts {tuple(prediction.shape)} where {tuple(target.shape)} is wanted")
    error = F.mse_loss(prediction.float(), target.float(), reduction="none")
    per_sample = error.mean(dim=list(range(1, error.ndim)))  # (batch, channels, h, w) -> (batch,)
    return (per_sample * weights).mean()


def sample_weights(
    loss_weights: Tensor, timesteps: Tensor, schedule: NoiseSchedule, prediction_type: PredictionType,
    min_snr_gamma: float | None,
) -> Tensor:  # fmt: skip
    """Weight of each sample's loss, (batch,) fp32: the dataset's, times min-SNR where a γ is given."""
    weights = loss_weights.to(torch.float32)
    if min_snr_gamma is not None:
        weights = weights * min_snr_weights(schedule.snr(timesteps), min_snr_gamma, prediction_type).to(weights.device)
    return weights
