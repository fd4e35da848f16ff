"""One optimizer update: from batches to changed adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import Batch
from lora_ext.protocols import UserError
from lora_ext.training.loss import diffusion_loss, prediction_target, sample_weights
from lora_ext.training.noise import Draw, NoiseSource, SeededNoise
from lora_ext.training.precision import autocasting

_Item = TypeVar("_Item")

BAD_STEPS_IN_A_ROW = 5
"""So many updates without a finite loss or gradient end a run."""


def windows(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """The items in lists of `size`; the last list holds what is left."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


class TrainingStep:
    """Computes the loss of batches and updates the parameters of `optimizer`.

    `encode` gives the text states (batch, tokens, width) of captions. Noise and timesteps come from `noise`, drawn on
    the CPU, so that a run is the same on every device up to rounding.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        encode: Callable[[list[str]], Tensor],
        noise: NoiseSource | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.optimizer = optimizer
        self.bad_steps = 0
        self._bad_in_a_row = 0
        self._encode = encode
        self._noise = noise or SeededNoise(config.learning.seed, len(checkpoint.schedule), config.loss.noise_offset)
        self._parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]

    def update(self, batches: Sequence[Batch], step: int) -> float:
        """Train on the batches of one accumulation window, the `step`th from 0; returns their mean loss.

        An update whose loss or gradient is not finite is left out and counted; UserError after five in a row.
        """
        total = torch.zeros((), device=self.checkpoint.device)
        for part, batch in enumerate(batches):
            loss = self.loss(batch, self._noise(batch.latents, step, part)) / len(batches)
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.learning.max_grad_norm or math.inf)
        mean_loss, length = torch.stack([total, norm.to(total)]).tolist()  # the step's only wait for the device
        if math.isfinite(mean_loss) and math.isfinite(length):
            self._bad_in_a_row = 0
            self.optimizer.step()
        else:
            self._count_bad_step(mean_loss)
        self.optimizer.zero_grad(set_to_none=True)
        return float(mean_loss)

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        """The diffusion loss of one batch with this noise, with its graph."""
        checkpoint, settings = self.checkpoint, self.config.loss
        schedule, kind = checkpoint.schedule, checkpoint.prediction_type
        device = checkpoint.device
        latents = batch.latents.to(device, torch.float32)  # (batch, 4, h, w), scaled
        noise, timesteps = draw.noise.to(device), draw.timesteps.to(device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        with autocasting(self.config, checkpoint):
            context = self._encode(batch.captions)  # (batch, tokens, width)
            prediction = checkpoint.unet(
                noisy.to(checkpoint.dtype), timesteps, context.to(device=device, dtype=checkpoint.dtype)
            )
        target = prediction_target(latents, noise, timesteps, schedule, kind)
        weights = sample_weights(batch.loss_weights.to(device), timesteps, schedule, kind, settings.min_snr_gamma)
        return diffusion_loss(prediction, target, weights)

    def _count_bad_step(self, loss: float) -> None:
        self.bad_steps += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= BAD_STEPS_IN_A_ROW:
            rates = ", ".join(f"{group['part']} {group['initial_lr']:g}" for group in self.optimizer.param_groups)
            precision = self.config.memory.mixed_precision
            raise UserError(
                f"{BAD_STEPS_IN_A_ROW} steps in a row had no finite loss or gradient (the last loss is {loss}). Likely "
                f"causes: the learning rate is too high ({rates}; try a tenth of it), a checkpoint that gives NaN in "
                f"mixed_precision = {precision} (try {'bf16' if precision == 'no' else 'no'}), or a broken checkpoint"
            )
