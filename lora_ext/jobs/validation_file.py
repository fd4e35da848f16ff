"""`validation.csv`: one line for each time that the held-out pictures were measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_ext.jobs.csv_log import CsvLog, read_rows
from lora_ext.protocols import ValidationReport


@dataclass(frozen=True)
class LoggedValidation:
    """One line of a validation file; `best` where no earlier one was better."""

    step: int
    epoch: int
    loss: float
    by_timestep: dict[int, float]
    best: bool


class ValidationFile:
    """Appends measurements to a file, which is made with the first of them."""

    def __init__(self, path: Path) -> None:
        self._log = CsvLog(path)

    def append(self, report: ValidationReport) -> None:
        """Write one measurement, with a column for each timestep."""
        self._log.append({
            "step": str(report.step),
            "epoch": str(report.epoch),
            "loss": f"{report.loss:.8g}",
            **{f"loss_{timestep}": f"{loss:.8g}" for timestep, loss in report.by_timestep.items()},
            "best": "yes" if report.is_best else "no",
        })  # fmt: skip

    def close(self) -> None:
        """Close the file; OSError where the last lines cannot be written."""
        self._log.close()


def read_validations(path: Path) -> list[LoggedValidation]:
    """The whole lines of a validation file; empty where there is no file."""
    return [
        LoggedValidation(
            step=int(row["step"]),
            epoch=int(row["epoch"]),
            loss=float(row["loss"]),
            by_timestep={int(key[5:]): float(value) for key, value in row.items() if key.startswith("loss_")},
            best=row["best"] == "yes",
        )
        for row in read_rows(path)
    ]
