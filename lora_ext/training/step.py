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
from lora_ext.training.diffusion import DiffusionLoss
from lora_ext.training.noise import Draw, NoiseSource, SeededNoise
from lora_ext.training.prior import PriorPrediction
from lora_ext.training.timesteps import band_means

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

    `bands` are the last update's losses by timestep band.
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
        prior: PriorPrediction | None = None,
    ) -> None:
        self.diffusion = DiffusionLoss(checkpoint, config, encode)
        self.config = config
        self.optimizer = optimizer
        self.bands: dict[str, float] = {}
        self.bad_steps = 0
        self._bad_in_a_row = 0
        self._prior = prior
        self._noise = noise or SeededNoise(config.learning.seed, len(self.diffusion.schedule), config.loss)
        self._noted: list[tuple[Tensor, Tensor]] = []
        self._parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that is trained on."""
        return self.diffusion.checkpoint

    @checkpoint.setter
    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self.diffusion.checkpoint = checkpoint

    def update(self, batches: Sequence[Batch], step: int) -> float:
        """Train on the batches of one accumulation window, the `step`th from 0; returns their mean loss.

        An update whose loss or gradient is not finite is left out and counted; UserError after five in a row.
        """
        total = torch.zeros((), device=self.checkpoint.device)
        self._noted = []
        for part, batch in enumerate(batches):
            loss = self.loss(batch, self._noise(batch.latents, step, part)) / len(batches)
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.learning.max_grad_norm or math.inf)
        mean_loss, length = self._fetch(total, norm)
        if math.isfinite(mean_loss) and math.isfinite(length):
            self._bad_in_a_row = 0
            self.optimizer.step()
        else:
            self._count_bad_step(mean_loss)
        self.optimizer.zero_grad(set_to_none=True)
        return float(mean_loss)

    def _fetch(self, *numbers: Tensor) -> list[float]:
        """The numbers as floats, and what was noted as `bands`: the step's only wait for the device."""
        losses = [each for each, _ in self._noted]
        values: list[float] = torch.cat([torch.stack([each.to(losses[0]) for each in numbers]), *losses]).tolist()
        timesteps = torch.cat([each for _, each in self._noted]).tolist()
        self.bands = band_means(values[len(numbers) :], timesteps, len(self.diffusion.schedule))
        self._noted = []
        return values[: len(numbers)]

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        """The diffusion loss of one batch with this noise, with its graph; each sample's is noted for the bands."""
        losses = self.diffusion.losses(batch, draw, self._prior)
        self._noted.append((losses.detach(), draw.timesteps))
        return losses.mean()

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
