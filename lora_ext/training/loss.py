"""The diffusion loss, from what the U-Net predicts to one number a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_ext.checkpoint.checkpoint import PredictionType
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.checkpoint.transfer import on_device
from lora_ext.config.groups import LossSettings

_LARGEST_SNR = 1000.0
"""Cap on the signal-to-noise ratio in weights that divide by it or by its root; its inverse is the floor, which no
schedule but one of zero terminal SNR comes near."""


def prediction_target(
    latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule, prediction_type: PredictionType
) -> Tensor:
    """What the U-Net should predict: ε, or v = √ᾱ·ε − √(1−ᾱ)·x₀; the shape of `latents`."""
    if prediction_type == "v_prediction":
        return schedule.velocity(latents, noise, timesteps)
    return noise


def elementwise_loss(prediction: Tensor, target: Tensor, loss_type: str, thresholds: Tensor | None = None) -> Tensor:
    """Loss of every number of a prediction (batch, channels, h, w), fp32: `l2`, `l1`, `huber` or `smooth_l1`.

    The latter two have the pseudo-Huber shape with `thresholds` c (batch,): 2c(√(d²+c²)−c), 2(√(d²+c²)−c).
    """
    if prediction.shape != target.shape:
        raise ValueError(f"the U-Net predicts {tuple(prediction.shape)} where {tuple(target.shape)} is wanted")
    prediction, target = prediction.float(), target.float()
    if loss_type == "l2":
        return F.mse_loss(prediction, target, reduction="none")
    if loss_type == "l1":
        return F.l1_loss(prediction, target, reduction="none")
    if thresholds is None:
        raise ValueError(f"loss_type = {loss_type} needs a threshold for each sample")
    c = on_device(thresholds, prediction.device).reshape(-1, *([1] * (prediction.ndim - 1)))
    loss = 2 * (torch.sqrt((prediction - target) ** 2 + c**2) - c)
    return loss * c if loss_type == "huber" else loss


def huber_thresholds(timesteps: Tensor, schedule: NoiseSchedule, settings: LossSettings) -> Tensor | None:
    """Where the huber losses turn from squares to straight lines, (batch,) fp32; None for other losses.

    `constant` c·scale; `exponential` c^(t/T)·scale, from 1 down to c over the T steps; `snr` (1−c)/(1+σ)² + c with
    σ² = (1−ᾱ)/ᾱ (Khrapov et al. 2024, arXiv:2403.16728), which takes no scale.
    """
    if settings.loss_type not in ("huber", "smooth_l1"):
        return None
    c, scale = settings.huber_c, settings.huber_scale
    if settings.huber_schedule == "constant":
        return torch.full(timesteps.shape, c * scale, device=timesteps.device)
    if settings.huber_schedule == "exponential":
        return torch.exp(math.log(c) / len(schedule) * timesteps) * scale
    alphas = schedule.alphas_cumprod[timesteps.cpu()]
    sigmas = ((1 - alphas) / alphas).sqrt()
    return ((1 - c) / (1 + sigmas) ** 2 + c).float().to(timesteps.device)


def mean_over_picture(loss: Tensor, masks: Tensor | None, normalize: bool) -> Tensor:
    """Mean over channels and places of a loss (batch, channels, h, w), each place times its mask: (batch,).

    `masks` are (batch, 1, h, w) in 0…1. With `normalize` the mean is one over the mask's area, and 0 where that is
    nothing; without, black places count as places without an error.
    """
    if masks is not None:
        if normalize:
            area = masks.mean(dim=(1, 2, 3), keepdim=True)
            masks = masks / area.clamp(min=torch.finfo(torch.float32).tiny)
        loss = loss * masks
    return loss.mean(dim=list(range(1, loss.ndim)))


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Min-SNR-γ weights (Hang et al. 2023, arXiv:2303.09556), (batch,): min(s,γ)/s for ε, min(s,γ)/(s+1) for v.

    At s = 0 the weight for ε is 1, as it is for every s below γ.
    """
    clipped = snr.clamp(max=gamma)
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return torch.where(snr > 0, clipped / snr, 1.0)


def debiased_weights(snr: Tensor, prediction_type: PredictionType) -> Tensor:
    """Debiased estimation (Yu et al. 2023, arXiv:2310.08442), (batch,): 1/√s for ε, 1/(s+1) for v, s capped."""
    if prediction_type == "v_prediction":
        return 1 / (snr.clamp(max=_LARGEST_SNR) + 1)
    return 1 / _capped(snr).sqrt()


def noise_like_weights(snr: Tensor) -> Tensor:
    """s/(s+1), (batch,): gives a loss on v the weight of one on ε."""
    capped = snr.clamp(max=_LARGEST_SNR)
    return capped / (capped + 1)


def velocity_like_weights(snr: Tensor, share: float) -> Tensor:
    """1 + share·(s+1)/s, (batch,): adds so much of a loss that is weighted as one on v."""
    capped = _capped(snr)
    return 1 + share / (capped / (capped + 1))


def _capped(snr: Tensor) -> Tensor:
    return snr.clamp(1 / _LARGEST_SNR, _LARGEST_SNR)


def timestep_weights(
    timesteps: Tensor, schedule: NoiseSchedule, prediction_type: PredictionType, settings: LossSettings
) -> Tensor:
    """What the settings multiply a sample's loss with for its timestep, (batch,) fp32 on the device of `timesteps`."""
    snr = schedule.snr(timesteps)
    weights = torch.ones_like(snr)
    if settings.min_snr_gamma is not None:
        weights = weights * min_snr_weights(snr, settings.min_snr_gamma, prediction_type)
    if settings.scale_v_pred_loss_like_noise_pred:
        weights = weights * noise_like_weights(snr)
    if settings.v_pred_like_loss:
        weights = weights * velocity_like_weights(snr, settings.v_pred_like_loss)
    if settings.debiased_estimation_loss:
        weights = weights * debiased_weights(snr, prediction_type)
    return weights
