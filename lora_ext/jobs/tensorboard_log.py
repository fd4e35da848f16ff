"""A run's numbers for TensorBoard, under the names that sd-scripts gives them where it has such."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_ext.config.given_path import given_path
from lora_ext.config.train_config import TrainConfig
from lora_ext.jobs.memory import memory_in_use
from lora_ext.jobs.steps_file import RunningMean
from lora_ext.protocols import EpochReport, Events, StepReport, UserError, ValidationReport

_STEPS_SMOOTHED = 20


def check_logs(config: TrainConfig) -> None:
    """Raise UserError where the settings ask for a log that cannot be written on this machine."""
    if config.saving.log_with == "tensorboard":
        summary_writer()


def summary_writer() -> Callable[[str], Any]:
    """What makes a writer of event files; UserError where no package for that is installed, or works."""
    reason = "neither tensorboard nor tensorboardX is installed here"
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            writer: Callable[[str], Any] = importlib.import_module(module).SummaryWriter
            return writer
        except ImportError:
            continue
        except Exception as error:  # as tensorboard raises beside a protobuf of another age
            reason = f"{module} cannot be used here ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    raise UserError(
        f"log_with = tensorboard: {reason}; install one of them into this program's environment (pip install "
        "tensorboard), or set log_with = csv"
    )


def log_folder(config: TrainConfig, run_folder: Path) -> Path:
    """Where the event files of a run go: a folder of its own, named by prefix and time, under the one that is set."""
    name = config.saving.log_prefix.strip() + time.strftime("%Y%m%d%H%M%S")
    chosen = config.saving.logging_dir
    return (given_path(chosen) if chosen.strip() else run_folder / "tensorboard") / name


class TensorBoardEvents(Events):
    """Writes event files; where that fails, `events` is told once, and the run goes on without."""

    def __init__(self, folder: Path, events: Events) -> None:
        self.folder = folder
        self.events = events
        self._writer: Any = None
        self._failed = False
        self._mean = RunningMean(_STEPS_SMOOTHED)

    def step(self, report: StepReport) -> None:
        """Write the losses, the rates, the memory and the time of a step."""
        numbers = {
            "loss/current": report.loss,
            "loss/average": self._mean.add(report.loss),
            **{f"loss/timesteps/{band}": loss for band, loss in report.bands.items()},
            **{f"lr/{part}": rate for part, rate in report.learning_rates.items()},
            "time/seconds_per_step": report.seconds,
        }
        others = {"memory/gb": memory_in_use(), "norm/gradient": report.gradient_norm}
        known = {name: number for name, number in others.items() if number is not None}
        self._write({**numbers, **known}, report.step)

    def epoch(self, report: EpochReport) -> None:
        """Write the mean loss of an epoch, and the norms."""
        norms = {f"max_norm/{name}": norm for name, norm in report.norms.items()}
        self._write({"loss/epoch_average": report.loss, **norms}, report.step)

    def validated(self, report: ValidationReport) -> None:
        """Write the loss of the held-out pictures, and that of each timestep."""
        steps = {f"loss/validation/timestep_{timestep}": loss for timestep, loss in report.by_timestep.items()}
        self._write({"loss/validation": report.loss, **steps}, report.step)

    def close(self) -> None:
        """Write what is left."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._try(writer.close)

    def _write(self, numbers: dict[str, float], step: int) -> None:
        self._try(lambda: self._add(numbers, step))

    def _add(self, numbers: dict[str, float], step: int) -> None:
        if self._writer is None:
            self._writer = summary_writer()(str(self.folder))
        for name, number in numbers.items():
            if math.isfinite(number):
                self._writer.add_scalar(name, number, step)

    def _try(self, write: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            write()
        except OSError as error:
            self._failed = True
            self.events.message("warning", f"TensorBoard's files in {self.folder} cannot be written: {error}")
