"""One optimizer update: from batches to changed adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.conditioning import Conditioning
from lora_ext.checkpoint.transfer import Arriving
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import Batch
from lora_ext.protocols import UserError
from lora_ext.training.diffusion import DiffusionLoss
from lora_ext.training.noise import Draw, NoiseSource, SeededNoise, generator_for
from lora_ext.training.out_of_memory import is_out_of_memory
from lora_ext.training.prior import PriorPrediction
from lora_ext.training.random_states import random_states_kept, reseed
from lora_ext.training.retreat import Retreat, free_memory, split_rows
from lora_ext.training.scaling import LossScaler
from lora_ext.training.timesteps import band_means

_Item = TypeVar("_Item")


def windows(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """The items in lists of `size`; the last list holds what is left."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


class BegunUpdate:
    """An update whose numbers may still be on their way from the device.

    `is_bad` is 1.0 there where loss or gradient are not finite, else 0.0. `is_overflow`: such a gradient can come from
    the loss scaler's factor.
    """

    def __init__(self, loss: Tensor, norm: Tensor, noted: list[tuple[Tensor, Tensor]], is_overflow: bool) -> None:
        """`noted` has the losses (batch,) and timesteps (batch,) of every batch, the latter on the CPU."""
        numbers = torch.stack([loss, norm.to(loss)])
        self.is_bad = (~torch.isfinite(numbers).all()).float()
        self.is_overflow = is_overflow
        self._timesteps: list[int] = torch.cat([timesteps for _, timesteps in noted]).tolist()
        self._arriving = Arriving(torch.cat([numbers, *(losses.to(numbers) for losses, _ in noted)]))

    def loss_and_norm(self) -> tuple[float, float]:
        """The mean loss, and the gradient's length before it was clipped."""
        loss, norm, *_ = self._arriving.values()
        return loss, norm

    def bands(self, schedule_steps: int) -> dict[str, float]:
        """The mean loss by timestep band."""
        return band_means(self._arriving.values()[2:], self._timesteps, schedule_steps)


class TrainingStep:
    """Computes the loss of batches and updates the parameters of `optimizer`.

    `bands` are the last update's losses by timestep band.
    `encode` gives what the U-Net is given of captions. Noise and timesteps come from `noise`, drawn on
    the CPU, so that a run is the same on every device up to rounding.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        encode: Callable[[list[str]], Conditioning],
        noise: NoiseSource | None = None,
        prior: PriorPrediction | None = None,
        retreat: Retreat | None = None,
        told_on_device: bool = False,
    ) -> None:
        """With a `retreat`, a step that memory does not suffice for is taken again in smaller pieces.

        An optimizer that is `told_on_device` of bad gradients (`found_inf`, as torch's GradScaler does it) leaves such
        updates out by itself; not with fp16, whose factor is on the CPU.
        """
        self.diffusion = DiffusionLoss(checkpoint, config, encode)
        self.config = config
        self.optimizer = optimizer
        self.bands: dict[str, float] = {}
        self.bad_steps = 0
        self.left_out = ""
        self.scaler = LossScaler() if config.memory.mixed_precision == "fp16" else None
        self.told_on_device = told_on_device and self.scaler is None
        self._retreat = retreat
        self._bad_in_a_row = 0
        self.gradient_norm: float | None = None
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
        """Go on with another view of it."""
        self.diffusion.checkpoint = checkpoint

    def update(self, batches: Sequence[Batch], step: int) -> float:
        """`begin` and `finish` in one: trains on the batches of one accumulation window; returns their mean loss."""
        return self.finish(self.begin(batches, step))

    def begin(self, batches: Sequence[Batch], step: int) -> BegunUpdate:
        """Train on the batches of one accumulation window, the `step`th from 0.

        As in sd-scripts each batch counts 1 / `gradient_accumulation_steps`, in an epoch's last window too, which may
        have fewer of them. An update whose loss or gradient is not finite is left out: by the device itself where the
        optimizer is `told_on_device`, and then nothing here waits for it. What modules and the optimizer draw depends
        on the seed and the step alone.
        """
        with random_states_kept():
            begun = self._gradients(batches, step)
            if self.told_on_device:
                self.optimizer.found_inf = begun.is_bad  # type: ignore[attr-defined]
                self.optimizer.step()
            elif self._is_good(*begun.loss_and_norm()):
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return begun

    def finish(self, begun: BegunUpdate) -> float:
        """Wait for an update; returns its mean loss, and sets `gradient_norm`, `bands`, and why it was `left_out`.

        Updates that were left out are counted: UserError after `stop_after_bad_steps` in a row.
        """
        loss, norm = begun.loss_and_norm()
        self.gradient_norm, self.bands = norm, begun.bands(len(self.diffusion.schedule))
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.left_out = ""
        if finite:
            self._bad_in_a_row = 0
        elif not begun.is_overflow or not math.isfinite(loss):  # fp16 lives with its factor's own overflows
            self.left_out = f"its loss is {loss}" if not math.isfinite(loss) else f"its gradient is {norm}"
            self._count_bad_step()
        return loss

    def _gradients(self, batches: Sequence[Batch], step: int) -> BegunUpdate:
        """Gradients of a window's batches, clipped; their losses, and the gradient's length before."""
        seed = generator_for(self.config.learning.seed, f"modules:{step}").initial_seed()
        while True:
            reseed(seed)
            try:
                return self._backward(batches, step, self._retreat.pieces if self._retreat else 1)
            except RuntimeError as error:
                if self._retreat is None or not is_out_of_memory(error):
                    raise
                reason = error.with_traceback(None)  # the traceback holds all tensors of the step
            self.optimizer.zero_grad(set_to_none=True)
            free_memory()
            if not self._retreat.further(max(len(batch.captions) for batch in batches)):
                raise reason

    def _backward(self, batches: Sequence[Batch], step: int, pieces: int) -> BegunUpdate:
        """As `_gradients`, each batch in so many pieces."""
        total = torch.zeros((), device=self.checkpoint.device)
        self._noted = []
        for place, batch in enumerate(batches):
            draw = self._noise(batch.latents, step, place)
            for piece, its_draw in zip(split_rows(batch, pieces), split_rows(draw, pieces), strict=True):
                loss = self.loss(piece, its_draw) * (len(piece.captions) / len(batch.captions))
                total += loss.detach()
                loss = loss / self.config.learning.gradient_accumulation_steps
                if loss.requires_grad:  # module dropout may have left out every adapter
                    (self.scaler.scaled(loss) if self.scaler else loss).backward()
        if self.scaler:
            self.scaler.unscale(self._parameters)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.learning.max_grad_norm or math.inf)
        overflows = self.scaler is not None and not self.scaler.is_smallest
        return BegunUpdate(total / len(batches), norm, self._noted, overflows)

    def _is_good(self, loss: float, norm: float) -> bool:
        """Whether the update may be made; the scaler learns of it."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        if self.scaler:
            self.scaler.update(finite)
        return finite

    def state_dict(self) -> dict[str, Any]:
        """Bad steps, the scaler, and how far the run has drawn back."""
        return {
            "bad_steps": self.bad_steps,
            "bad_in_a_row": self._bad_in_a_row,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "retreat": self._retreat.state_dict() if self._retreat else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.bad_steps, self._bad_in_a_row = state["bad_steps"], state["bad_in_a_row"]
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self._retreat and state["retreat"]:
            self._retreat.load_state_dict(state["retreat"])

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        """The diffusion loss of one batch with this noise, with its graph; each sample's is noted for the bands."""
        losses = self.diffusion.losses(batch, draw, self._prior)
        self._noted.append((losses.detach(), draw.timesteps))
        return losses.mean()

    def _count_bad_step(self) -> None:
        self.bad_steps += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self.config.learning.stop_after_bad_steps:
            rates = ", ".join(f"{group['part']} {group['initial_lr']:g}" for group in self.optimizer.param_groups)
            precision = self.config.memory.mixed_precision
            other = "bf16, or no" if precision == "fp16" else "no" if precision == "bf16" else "bf16"
            raise UserError(
                f"{self._bad_in_a_row} steps in a row had no finite loss or gradient (of the last one, "
                f"{self.left_out}). Likely causes: the learning rate is too high ({rates}; try a tenth of it), a "
                f"checkpoint that gives NaN in mixed_precision = {precision} (try {other}), or a broken checkpoint"
            )
