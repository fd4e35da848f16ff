"""The loss of held-out pictures, with the same noise each time: how far a run has come, and which epoch is the best."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import Batch, ImageDataset
from lora_ext.dataset.folders import DatasetScan
from lora_ext.networks.network import Network
from lora_ext.protocols import Control, Events, ValidationReport
from lora_ext.training.diffusion import DiffusionLoss
from lora_ext.training.modes import evaluating
from lora_ext.training.noise import Draw, generator_for
from lora_ext.training.timesteps import timestep_range

_PHASE = "validating"
_MEASURED_TIMESTEPS = 4


@dataclass(frozen=True)
class HeldOut:
    """The held-out pictures: the same `batches` each time, with noise that is a function of `seed`.

    `content` is a digest of the pictures, their captions and the seed: with the same one losses can be compared.
    """

    batches: list[Batch]
    seed: int
    content: str = ""

    @property
    def captions(self) -> list[str]:
        """Every caption once."""
        return list(dict.fromkeys(caption for batch in self.batches for caption in batch.captions))

    def draw(self, batch: Batch, timestep: int) -> Draw:
        """Noise of a batch at one timestep: a picture's depends on its place and the timestep alone."""
        shape = batch.latents.shape[1:]
        noise = [
            torch.randn(shape, generator=generator_for(self.seed, f"validation:{place}:{timestep}"))
            for place in batch.entries
        ]
        return Draw(torch.stack(noise), torch.full((len(noise),), timestep))


def held_out_pictures(
    scan: DatasetScan | None, checkpoint: Checkpoint, config: TrainConfig, events: Events, control: Control
) -> HeldOut | None:
    """The held-out pictures of a scan with latents of their own, at most `max_validation_steps` batches of them.

    None where there is no scan.
    """
    if scan is None:
        return None
    samples, learning = config.samples, config.learning
    seed = learning.seed if samples.validation_seed is None else samples.validation_seed
    dataset = ImageDataset(scan, replace(config, learning=replace(learning, seed=seed)))
    dataset.cache_latents(checkpoint, events, control, generator_for(seed, "validation latents"))
    control.raise_if_stopping()
    batches = list(islice(dataset.batches(1), samples.max_validation_steps))
    held_out = HeldOut(batches, seed, _digest(batches, [entry.content_hash for entry in scan.images], seed))
    count = sum(len(batch.captions) for batch in batches)
    events.message("info", f"{count} picture{'' if count == 1 else 's'} held out to measure progress.")
    return held_out


def _digest(batches: Sequence[Batch], hashes: Sequence[str], seed: int) -> str:
    """Of a seed and of pictures, whose own digests are `hashes`, with their captions."""
    told = [
        [hashes[place], caption]
        for batch in batches
        for place, caption in zip(batch.entries, batch.captions, strict=True)
    ]
    return hashlib.blake2b(json.dumps([seed, told]).encode(), digest_size=16).hexdigest()


class Validation:
    """Measures the held-out pictures when that is due, and remembers how they have come along.

    Without any nothing is ever due. `weights_for_use` gives the context in which the network has the weights that its
    files take. A measurement draws nothing and leaves nothing behind: training goes on as if it had not been.
    """

    def __init__(
        self,
        held_out: HeldOut | None,
        diffusion: DiffusionLoss,
        network: Network,
        events: Events,
        control: Control,
        weights_for_use: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.reports: list[ValidationReport] = []
        self._held_out = held_out
        self._diffusion = diffusion
        self._network = network
        self._events = events
        self._control = control
        self._weights_for_use = weights_for_use
        self._settings = diffusion.config.samples

    @property
    def best(self) -> ValidationReport | None:
        """The measurement with the lowest loss, the first of several; None before there is one."""
        return next((report for report in reversed(self.reports) if report.is_best), None)

    @property
    def exhausted(self) -> bool:
        """Whether `early_stopping_patience` measurements in a row were no better than the best before them."""
        patience = self._settings.early_stopping_patience
        return patience is not None and self._since_best >= patience

    @property
    def note(self) -> str:
        """Why the run ends early; empty where it does not."""
        best = self.best
        if best is None or not self.exhausted:
            return ""
        return (
            f"ended early: none of the last {self._since_best} measurements was better than that of epoch {best.epoch} "
            f"(validation loss {best.loss:.4g} after {best.step} steps)"
        )

    @property
    def _since_best(self) -> int:
        return next((count for count, report in enumerate(reversed(self.reports)) if report.is_best), 0)

    def measures_after(self, step: int) -> bool:
        """Whether `after_step` measures there."""
        every = self._settings.validate_every_n_steps
        return every is not None and step % every == 0

    def after_step(self, epoch: int, step: int) -> None:
        """Measure where the step is one of those wanted."""
        if self.measures_after(step):
            self._measure(epoch, step)

    def after_epoch(self, epoch: int, step: int, is_last: bool) -> None:
        """Measure where the epoch is one of those wanted or the last one."""
        if is_last or epoch % self._settings.validate_every_n_epochs == 0:
            self._measure(epoch, step)

    def metadata(self, step: int) -> dict[str, str]:
        """What a file that is written after `step` updates says: its own loss, and the best epoch so far."""
        best = self.best
        if best is None:
            return {}
        found = {"lw_best_epoch": str(best.epoch), "lw_best_validation_loss": f"{best.loss:.6g}"}
        for report in self.reports:
            if report.step == step:
                found["lw_validation_loss"] = f"{report.loss:.6g}"
        return found

    def state_dict(self) -> dict[str, Any]:
        """All measurements, in JSON's types, and of which pictures they are."""
        return {"pictures": self._content, "reports": [dataclasses.asdict(report) for report in self.reports]}

    @property
    def _content(self) -> str:
        return self._held_out.content if self._held_out is not None else ""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as if they had been made here; KeyError or ValueError where they are none of these pictures."""
        if state["reports"] and state.get("pictures", "") != self._content:
            raise ValueError("other pictures were held out")
        try:
            self.reports = [
                ValidationReport(**{**each, "by_timestep": {int(t): loss for t, loss in each["by_timestep"].items()}})
                for each in state["reports"]
            ]
        except TypeError as error:
            raise ValueError(f"not the measurements of a validation: {error}") from error

    def _measure(self, epoch: int, step: int) -> None:
        """Measure, unless that was just done, and tell; a run that is to end is not kept waiting."""
        if self._held_out is None or (self.reports and self.reports[-1].step == step):
            return
        losses = self._losses(self._held_out)
        if losses is None:
            return
        loss, best = sum(losses.values()) / len(losses), self.best
        is_best = best is None or loss < best.loss or (math.isnan(best.loss) and not math.isnan(loss))
        best_epoch, best_loss = (epoch, loss) if best is None or is_best else (best.epoch, best.loss)
        self.reports.append(ValidationReport(step, epoch, loss, losses, best_epoch, best_loss, is_best))
        self._events.validated(self.reports[-1])

    @torch.no_grad()
    def _losses(self, held_out: HeldOut) -> dict[int, float] | None:
        """Mean loss of the pictures at each timestep; None where the run is to end before all is measured."""
        timesteps = measured_timesteps(self._diffusion.config, len(self._diffusion.schedule))
        batches = held_out.batches
        sums: dict[int, Tensor] = {}
        with self._weights_for_use(), evaluating(self._network):
            for number, batch in enumerate(batches):
                self._events.phase(_PHASE, number, len(batches))
                for timestep in timesteps:
                    if self._control.stopping:
                        return None
                    losses = self._diffusion.losses(batch, held_out.draw(batch, timestep))
                    sums[timestep] = sums.get(timestep, 0.0) + losses.sum()
        self._events.phase(_PHASE, len(batches), len(batches))
        pictures = sum(len(batch.captions) for batch in batches)
        totals = torch.stack(list(sums.values())).tolist()  # the only wait for the device
        return {timestep: total / pictures for timestep, total in zip(timesteps, totals, strict=True)}


def measured_timesteps(config: TrainConfig, steps: int) -> list[int]:
    """The timesteps that are measured: 200, 400, 600, 800, or as evenly in the range that is trained."""
    first, end = timestep_range(config.loss, steps)
    parts = _MEASURED_TIMESTEPS + 1
    return sorted({first + (end - first) * part // parts for part in range(1, parts)})
