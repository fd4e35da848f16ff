"""The loop over a run's epochs and steps, with everything that happens between them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import Batch
from lora_ext.protocols import Control, EpochReport, Events, StepReport
from lora_ext.training.pausing import PausePlace, Pauses
from lora_ext.training.plan import saves_epoch, saves_step
from lora_ext.training.run import Run, mean_finite
from lora_ext.training.step import BegunUpdate, windows


@dataclass(frozen=True)
class _Untold:
    """An update that was not reported yet: its numbers, its rates, and when it began."""

    update: BegunUpdate
    rates: dict[str, float]
    began: float


class TrainingLoop:
    """Takes a run from its first step to its last file; without a `pause_place` it is never paused."""

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        events: Events,
        control: Control,
        pause_place: PausePlace | None,
    ) -> None:
        self.run = run
        self.config = config
        self.events = events
        self.control = control
        self.pause_place = pause_place
        self._untold: _Untold | None = None
        self._told = 0.0

    def train(self) -> None:
        """All epochs, or as many as there are until the run is to end, and the last file."""
        run, plan = self.run, self.run.plan
        self.events.run_started(plan.total_steps, plan.total_epochs)
        if not run.steps:
            run.samples.before_first_step()
        self.control.raise_if_stopping()
        for epoch in range(run.epoch + run.epoch_ended, plan.total_epochs + 1):
            if self._ends_early:  # a state of a run that its held-out pictures have ended
                break
            if run.epoch_ended:
                run.epoch, run.epoch_ended, run.epoch_losses = epoch, False, []
            self._take_epoch()
            self._tell()
            if self._ends_early:
                break
            self._end_epoch()
        if not self.control.cancelled:
            run.saver.save_last(run.epoch, run.steps)
            run.states.save_last()
        if run.steps == plan.total_steps:
            run.samples.after_last_step(run.epoch, run.steps)

    @property
    def _ends_early(self) -> bool:
        """Whether somebody has said so, or the held-out pictures do before the last step."""
        if self.control.stopping:
            return True
        return self.run.validation.exhausted and self.run.steps < self.run.plan.total_steps

    def _take_epoch(self) -> None:
        """The steps of one epoch that are still to be taken, up to the run's last or until the run is to end."""
        run = self.run
        if run.steps == run.plan.total_steps:
            return
        accumulation = self.config.learning.gradient_accumulation_steps
        batches_done = len(run.epoch_losses) * accumulation
        for batches in windows(run.dataset.batches(run.epoch, batches_done), accumulation):
            self._take_step(batches)
            if run.validation.measures_after(run.steps) or run.samples.draws_after(run.steps):
                self._tell()
            run.validation.after_step(run.epoch, run.steps)
            if run.steps < run.plan.total_steps:
                self._pause_where_asked()
            if self.control.cancelled:
                return
            if self.control.take_save_request() or saves_step(self.config.saving, run.steps):
                self._tell()
                run.saver.save_step(run.epoch, run.steps)
                run.states.save_step(run.steps)
            if self.control.stopping or run.steps == run.plan.total_steps:
                return
            run.samples.after_step(run.epoch, run.steps)
            if self._ends_early:
                return

    def _end_epoch(self) -> None:
        """Report an epoch that is complete; its file and its samples where they are wanted."""
        run, plan = self.run, self.run.plan
        norms = run.learning.norm_report()
        mean, told = mean_finite(run.epoch_losses), norms.as_dict() if norms is not None else {}
        self.events.epoch(EpochReport(run.epoch, plan.total_epochs, run.steps, mean, told))
        run.epoch_ended = len(run.epoch_losses) == plan.updates_per_epoch
        if norms is not None:
            self.events.message("info", f"Epoch {run.epoch}: {norms.sentence()}.")
        run.validation.after_epoch(run.epoch, run.steps, is_last=run.steps == plan.total_steps)
        if saves_epoch(self.config.saving, run.epoch, plan.total_epochs):
            run.saver.save_epoch(run.epoch, run.steps)
            run.states.save_epoch(run.epoch)
        if run.steps < plan.total_steps:
            run.samples.after_epoch(run.epoch, run.steps)

    def _pause_where_asked(self) -> None:
        """Hand the checkpoint back until the run goes on, perhaps with another instance of it, or is to end."""
        if self.pause_place is None or self.control.stopping or not self.control.take_pause_request():
            return
        self._tell()
        run = self.run
        run.states.save_step(run.steps)  # a pause may be long
        run.dataset.release_checkpoint()
        Pauses(self.pause_place, run.session, run.saver, self.events, self.control).stand_still(run.epoch, run.steps)
        checkpoint = run.session.checkpoint
        run.step.checkpoint = checkpoint
        run.conditioning.encoders = checkpoint.text_encoders
        run.dataset.use_checkpoint(checkpoint)

    def _take_step(self, batches: Sequence[Batch]) -> None:
        """One optimizer update; it is told at once, or after the next one where nothing waits for the device."""
        run = self.run
        began = time.perf_counter()
        run.learning.begin_step(run.steps)
        begun = run.step.begin(batches, run.steps)
        self._tell()
        run.losses.append(math.nan)
        run.epoch_losses.append(math.nan)
        self._untold = _Untold(begun, run.learning.rates(), began)
        if not run.step.told_on_device:
            self._tell()

    def _tell(self) -> None:
        """Report the last update, where that was not done yet: waits for the device."""
        untold, self._untold = self._untold, None
        if untold is None:
            return
        run, plan = self.run, self.run.plan
        loss = run.step.finish(untold.update)
        run.losses[-1] = run.epoch_losses[-1] = loss
        if run.step.left_out:
            self.events.message("warning", f"Step {run.steps} was left out: {run.step.left_out}.")
        now = time.perf_counter()
        seconds, self._told = now - max(untold.began, self._told), now
        self.events.step(
            StepReport(
                run.steps, plan.total_steps, run.epoch, plan.total_epochs, loss, untold.rates, seconds, run.step.bands,
                run.step.gradient_norm,
            )
        )  # fmt: skip
