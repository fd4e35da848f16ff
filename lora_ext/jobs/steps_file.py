"""`steps.csv`: one line a step, appended while a run goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from lora_ext.jobs.csv_log import CsvLog, read_rows
from lora_ext.protocols import StepReport

BANDS = ("0-250", "250-500", "500-750", "750-1000")
"""The bands of timesteps that losses are told for, as `StepReport.bands` names them."""

_STEPS_SMOOTHED = 20


@dataclass(frozen=True)
class LoggedStep:
    """One line of a steps file; `loss` is None where it was not finite, `bands` has those that came up.

    `memory` is in GB: the most that was taken of the graphics card so far, or what the program takes of the machine's.
    """

    step: int
    epoch: int
    loss: float | None
    learning_rates: dict[str, float]
    seconds: float
    bands: dict[str, float] = field(default_factory=dict)
    memory: float | None = None


class RunningMean:
    """An exponential moving average over about `steps` values, free of the bias of its start."""

    def __init__(self, steps: int) -> None:
        self._keep = 1 - 1 / steps
        self._sum, self._weight = 0.0, 0.0

    def add(self, value: float) -> float:
        """The average with this value in it; a value that is not finite is left out. nan before the first one."""
        if math.isfinite(value):
            self._sum = self._keep * self._sum + (1 - self._keep) * value
            self._weight = self._keep * self._weight + (1 - self._keep)
        return self._sum / self._weight if self._weight else math.nan


class StepsFile:
    """Appends steps to a file."""

    def __init__(self, path: Path) -> None:
        self._log = CsvLog(path)
        self._mean = RunningMean(_STEPS_SMOOTHED)

    def append(self, report: StepReport, memory: float | None = None) -> None:
        """Write one step, with a column for each band of timesteps and for each learning rate; `memory` in GB."""
        bands = {f"loss_{band}": f"{report.bands[band]:.8g}" if band in report.bands else "" for band in BANDS}
        self._log.append({
            "step": str(report.step),
            "epoch": str(report.epoch),
            "loss": f"{report.loss:.8g}",
            "loss_smoothed": f"{self._mean.add(report.loss):.8g}",
            **bands,
            **{f"lr_{part}": f"{rate:.8g}" for part, rate in report.learning_rates.items()},
            "gradient_norm": "" if report.gradient_norm is None else f"{report.gradient_norm:.6g}",
            "memory_gb": "" if memory is None else f"{memory:.3f}",
            "seconds": f"{report.seconds:.4f}",
        })  # fmt: skip

    def close(self) -> None:
        """Close the file; OSError where the last lines cannot be written."""
        self._log.close()


def read_steps(path: Path) -> list[LoggedStep]:
    """The whole lines of a steps file; a last line that is cut off is left out. Empty where there is no file."""
    return [_logged(row) for row in read_rows(path)]


def _logged(row: dict[str, str]) -> LoggedStep:
    loss = float(row["loss"])
    return LoggedStep(
        step=int(row["step"]),
        epoch=int(row["epoch"]),
        loss=loss if math.isfinite(loss) else None,
        learning_rates={key[3:]: float(value) for key, value in row.items() if key.startswith("lr_") and value},
        seconds=float(row["seconds"]),
        bands={band: float(row[f"loss_{band}"]) for band in BANDS if row.get(f"loss_{band}")},
        memory=float(row["memory_gb"]) if row.get("memory_gb") else None,
    )
