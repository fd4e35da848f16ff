"""What a run says on a terminal: a progress bar for people, JSON lines for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import TYPE_CHECKING, Any, TextIO

from lora_ext.jobs.records import json_value
from lora_ext.protocols import (
    EpochReport,
    Events,
    MessageLevel,
    Sample,
    SavedNetwork,
    StepReport,
    ValidationReport,
)

if TYPE_CHECKING:
    from tqdm import tqdm

_STEPS = "training"


class TqdmEvents(Events):
    """A progress bar for each phase and one for the steps; messages stand above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._name = ""
        self._average: float | None = None

    def phase(self, name: str, done: int, total: int) -> None:
        """Show how far the phase has come; its bar goes when it is done. The steps' bar stays until their end."""
        if total <= 0 or self._name == _STEPS:
            return
        if name != self._name:
            self._open(name, total, "it")
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def run_started(self, total_steps: int, total_epochs: int) -> None:
        """Begin the steps' bar."""
        self._average = None
        self._open(_STEPS, total_steps, "step")

    def step(self, report: StepReport) -> None:
        """Move the bar, with the epoch and a running mean of the loss."""
        if math.isfinite(report.loss):
            self._average = report.loss if self._average is None else 0.95 * self._average + 0.05 * report.loss
        if self._bar is not None:
            average = math.nan if self._average is None else self._average
            self._bar.set_postfix_str(f"epoch {report.epoch}/{report.total_epochs}, loss {average:.4f}", refresh=False)
            if self._bar.n == 0:
                self._bar.initial = self._bar.n = report.step - 1  # those that an earlier part of the run has taken
            self._bar.update(1)
        if report.step >= report.total_steps:
            self.close()

    def validated(self, report: ValidationReport) -> None:
        """Say what the held-out pictures came to."""
        best = "the best so far" if report.is_best else f"best is epoch {report.best_epoch}: {report.best_loss:.4f}"
        self._write(f"validation after step {report.step}: {report.loss:.4f} ({best})")

    def saved(self, saved: SavedNetwork) -> None:
        """Say which file was written; the last one ends the bar."""
        self._write(f"saved {saved.path}")
        if saved.is_last:
            self.close()

    def sampled(self, sample: Sample) -> None:
        """Say what was drawn."""
        self._write(f"drew “{sample.prompt}” after step {sample.step}")

    def message(self, level: MessageLevel, text: str) -> None:
        """Say it above the bar."""
        self._write(text if level == "info" else f"{level}: {text}")

    def close(self) -> None:
        """End the present bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._name = None, ""

    def _open(self, name: str, total: int, unit: str) -> None:
        from tqdm import tqdm

        self.close()
        self._name = name
        self._bar = tqdm(total=total, desc=name, unit=unit, file=self.stream, dynamic_ncols=True, leave=True)

    def _write(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, file=self.stream)


class JsonLinesEvents(Events):
    """One JSON object a line, each with its kind under "event"; numbers that are not finite are null."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    def phase(self, name: str, done: int, total: int) -> None:
        """Write the phase."""
        self.write("phase", name=name, done=done, total=total)

    def run_started(self, total_steps: int, total_epochs: int) -> None:
        """Write the run's length."""
        self.write("run_started", total_steps=total_steps, total_epochs=total_epochs)

    def step(self, report: StepReport) -> None:
        """Write the step."""
        self.write("step", **dataclasses.asdict(report))

    def epoch(self, report: EpochReport) -> None:
        """Write the epoch."""
        self.write("epoch", **dataclasses.asdict(report))

    def validated(self, report: ValidationReport) -> None:
        """Write the measurement."""
        self.write("validated", **dataclasses.asdict(report))

    def saved(self, saved: SavedNetwork) -> None:
        """Write the file's path."""
        self.write("saved", path=str(saved.path), epoch=saved.epoch, step=saved.step, is_last=saved.is_last)

    def sampled(self, sample: Sample) -> None:
        """Write which picture was drawn."""
        self.write(
            "sampled", prompt=sample.prompt, prompt_number=sample.prompt_number, epoch=sample.epoch, step=sample.step,
            seed=sample.image.seed, infotext=sample.image.infotext,
        )  # fmt: skip

    def message(self, level: MessageLevel, text: str) -> None:
        """Write the message."""
        self.write("message", level=level, text=text)

    def write(self, event: str, **values: Any) -> None:
        """Write one line of any kind, for what a command has to tell besides a run's events."""
        self.stream.write(json.dumps({"event": event, **json_value(values)}, ensure_ascii=False) + "\n")
        self.stream.flush()
