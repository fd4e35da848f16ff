"""`steps.csv`: one line a step, appended while a run goes on."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lora_ext.protocols import StepReport


@dataclass(frozen=True)
class LoggedStep:
    """One line of a steps file; `loss` is None where it was not finite."""

    step: int
    epoch: int
    loss: float | None
    learning_rates: dict[str, float]
    seconds: float


class StepsFile:
    """Appends steps to a file; each line is handed to the system at once, so a crash loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def append(self, report: StepReport) -> None:
        """Write one step; the first one brings the header, with a column for each part's learning rate."""
        rates = report.learning_rates
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8", newline="")
            columns = ["step", "epoch", "loss", *(f"lr_{part}" for part in rates), "seconds"]
            self._file.write(",".join(columns) + "\n")
        numbers = [f"{report.loss:.8g}", *(f"{rate:.8g}" for rate in rates.values()), f"{report.seconds:.4f}"]
        self._file.write(",".join([str(report.step), str(report.epoch), *numbers]) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; OSError where the last lines cannot be written."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def read_steps(path: Path) -> list[LoggedStep]:
    """The whole lines of a steps file; a last line that is cut off is left out. Empty where there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [_logged(row) for row in csv.DictReader(whole.splitlines())]


def _logged(row: dict[str, str]) -> LoggedStep:
    loss = float(row["loss"])
    return LoggedStep(
        step=int(row["step"]),
        epoch=int(row["epoch"]),
        loss=loss if math.isfinite(loss) else None,
        learning_rates={key[3:]: float(value) for key, value in row.items() if key.startswith("lr_")},
        seconds=float(row["seconds"]),
    )
