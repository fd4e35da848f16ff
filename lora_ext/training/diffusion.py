"""From a batch and its noise to the loss of each sample, through text encoder and U-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.conditioning import Conditioning, Frame
from lora_ext.checkpoint.inpainting import UNetInput
from lora_ext.checkpoint.transfer import on_device
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import Batch
from lora_ext.training.loss import (
    elementwise_loss,
    huber_thresholds,
    mean_over_picture,
    prediction_target,
    timestep_weights,
)
from lora_ext.training.noise import Draw
from lora_ext.training.precision import autocasting
from lora_ext.training.prediction import prediction_type_of, schedule_of
from lora_ext.training.prior import PriorPrediction


class DiffusionLoss:
    """The loss of a run on its checkpoint; `checkpoint` may be replaced by another view of the same one.

    `encode` gives what the U-Net is given of captions. Timesteps stay on the CPU until the U-Net takes them: looking
    anything up for them would wait for the device, which nothing here does.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: TrainConfig, encode: Callable[[list[str]], Conditioning]
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.schedule = schedule_of(config, checkpoint)
        self._kind = prediction_type_of(config, checkpoint)
        self._encode = encode
        self._input = UNetInput()

    def losses(self, batch: Batch, draw: Draw, prior: PriorPrediction | None = None) -> Tensor:
        """The loss of each sample, (batch,) fp32, with its graph: weighted, so that their mean is the batch's."""
        schedule, device, timesteps = self.schedule, self.checkpoint.device, draw.timesteps
        latents = on_device(batch.latents, device, torch.float32)  # (batch, 4, h, w), scaled
        noise = on_device(draw.noise, device)
        input_noise = noise if draw.input_noise is None else on_device(draw.input_noise, device)
        noisy = schedule.add_noise(latents, input_noise, timesteps)
        target = prediction_target(latents, noise, timesteps, schedule, self._kind)
        weights = batch.loss_weights.float() * self._timestep_weights(timesteps)
        if prior is not None:  # first, while the graph of the prediction takes no memory yet
            target = prior.target(self.predict, noisy, timesteps, batch, target)
            weights = prior.weights(weights, batch)
        prediction = self.predict(noisy, timesteps, batch.captions, batch.frames)
        losses = self._mean_errors(prediction, target, timesteps, batch.masks)
        losses = losses * on_device(weights, device)
        if prior is not None and prior.caption is not None:
            own, base = prior.of_training_pictures(self.predict, noisy, timesteps, batch.frames)
            weights = prior.weight * self._timestep_weights(timesteps)
            losses = losses + self._mean_errors(own, base, timesteps) * on_device(weights, device)
        return losses

    def predict(self, noisy: Tensor, timesteps: Tensor, captions: list[str], frames: Sequence[Frame] = ()) -> Tensor:
        """What the U-Net predicts for noisy latents (batch, 4, h, w) at `timesteps` (batch,), with its graph.

        SDXL needs `frames`, one for each picture.
        """
        checkpoint = self.checkpoint
        device, dtype = checkpoint.device, checkpoint.dtype
        latents = self._input(checkpoint, noisy.to(dtype))
        with autocasting(self.config, checkpoint):
            given = self._encode(captions).map(lambda tensor: on_device(tensor, device, dtype))
            vector = given.vector(frames)
            beside = {} if vector is None else {"y": vector}
            prediction: Tensor = checkpoint.unet(latents, on_device(timesteps, device), given.context, **beside)
        return prediction

    def _timestep_weights(self, timesteps: Tensor) -> Tensor:
        return timestep_weights(timesteps, self.schedule, self._kind, self.config.loss)

    def _mean_errors(
        self, prediction: Tensor, target: Tensor, timesteps: Tensor, masks: Tensor | None = None
    ) -> Tensor:
        """Unweighted loss of each sample, (batch,)."""
        settings, device = self.config.loss, self.checkpoint.device
        thresholds = huber_thresholds(timesteps, self.schedule, settings)
        error = elementwise_loss(prediction, target, settings.loss_type, thresholds)
        there = None if masks is None else on_device(masks, device, torch.float32)
        return mean_over_picture(error, there, settings.masked_loss_normalize)
