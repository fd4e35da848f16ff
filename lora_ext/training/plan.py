"""What a run will do: steps, epochs, files; known from the settings and the dataset's report alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lora_ext.config.advice import advice
from lora_ext.config.groups import SavingSettings
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.report import DatasetReport
from lora_ext.dataset.step_count import count_steps


@dataclass(frozen=True)
class TrainingPlan:
    """A run before its first step.

    `repeats_total` counts each picture as often as it comes up in an epoch; an update is one optimizer step over
    `gradient_accumulation_steps` batches. `files` are those that will be there at the end.
    """

    images: int
    repeats_total: int
    batches_per_epoch: int
    updates_per_epoch: int
    total_steps: int
    total_epochs: int
    files: list[Path]
    warnings: list[str]

    def summary(self) -> list[str]:
        """The plan in short lines for a person; warnings are not among them."""
        return [
            f"{_count(self.total_steps, 'step')} in {_count(self.total_epochs, 'epoch')} of "
            f"{_count(self.updates_per_epoch, 'step')} ({_count(self.batches_per_epoch, 'batch', 'batches')} each)",
            f"{_count(len(self.files), 'file')}, the last one {self.files[-1].name}",
        ]


def make_plan(config: TrainConfig, report: DatasetReport, output_dir: Path) -> TrainingPlan:
    """Steps, epochs and files of a run. `max_train_epochs` wins over `max_train_steps`."""
    saving = config.saving
    counts = count_steps(config.learning, report.batches_per_epoch)
    files = [output_dir / name for name in kept_files(saving, counts.total_epochs)]
    return TrainingPlan(
        images=report.pictures,
        repeats_total=report.repeats,
        batches_per_epoch=report.batches_per_epoch,
        updates_per_epoch=counts.updates_per_epoch,
        total_steps=counts.total_steps,
        total_epochs=counts.total_epochs,
        files=files,
        warnings=_warnings(config, counts.updates_per_epoch, files, output_dir),
    )


def epoch_file_name(output_name: str, epoch: int) -> str:
    """Name of the file of an epoch that is not the last."""
    return f"{output_name}-{epoch:06d}.safetensors"


def step_file_name(output_name: str, step: int) -> str:
    """Name of a file that was asked for in the middle of an epoch."""
    return f"{output_name}-step{step:08d}.safetensors"


def last_file_name(output_name: str) -> str:
    """Name of the file that a run ends with."""
    return f"{output_name}.safetensors"


def live_name(output_name: str) -> str:
    """Name under which prompts use the network in training while its run is paused."""
    return f"{output_name}-live"


def saves_epoch(saving: SavingSettings, epoch: int, total_epochs: int) -> bool:
    """Whether a file is written after this epoch; the last epoch has the run's last file instead."""
    return bool(saving.save_every_n_epochs) and epoch % (saving.save_every_n_epochs or 1) == 0 and epoch < total_epochs


def epoch_to_delete(saving: SavingSettings, epoch: int) -> int | None:
    """The epoch whose file goes when that of `epoch` has been written, as sd-scripts counts: epoch − every · keep."""
    if saving.save_every_n_epochs is None or saving.save_last_n_epochs is None:
        return None
    old = epoch - saving.save_every_n_epochs * saving.save_last_n_epochs
    return old if old > 0 else None


def written_files(saving: SavingSettings, total_epochs: int) -> list[str]:
    """Names of the files that a whole run writes, in their order; those that it deletes again are among them."""
    epochs = [epoch for epoch in range(1, total_epochs + 1) if saves_epoch(saving, epoch, total_epochs)]
    return [*(epoch_file_name(saving.output_name, epoch) for epoch in epochs), last_file_name(saving.output_name)]


def kept_files(saving: SavingSettings, total_epochs: int) -> list[str]:
    """Names of the files that are there at the end of a whole run, in the order they are written."""
    gone = [
        epoch_to_delete(saving, epoch) for epoch in range(1, total_epochs) if saves_epoch(saving, epoch, total_epochs)
    ]
    deleted = {epoch_file_name(saving.output_name, epoch) for epoch in gone if epoch is not None}
    return [name for name in written_files(saving, total_epochs) if name not in deleted]


def _warnings(config: TrainConfig, updates_per_epoch: int, files: list[Path], output_dir: Path) -> list[str]:
    learning = config.learning
    warnings = []
    replaced = [file.name for file in files if file.exists()]
    if replaced:
        warnings.append(f"files that are there already will be replaced: {_named(replaced)}")
    others = _other_epochs(config.saving.output_name, files, output_dir)
    if others:
        warnings.append(
            f"files of an earlier run of this name stay and will be taken for epochs of this one: {_named(others)}; "
            "move them away or set another output_name"
        )
    if learning.gradient_accumulation_steps > 1 and updates_per_epoch == 1:
        warnings.append(
            f"gradient_accumulation_steps = {learning.gradient_accumulation_steps} makes each epoch a single step; "
            "a smaller number gives more steps"
        )
    return [*warnings, *advice(config)]


def _other_epochs(output_name: str, files: list[Path], output_dir: Path) -> list[str]:
    """Files in the folder that look like epochs of this name and are not written by this run."""
    if not output_dir.is_dir():
        return []
    pattern = re.compile(re.escape(output_name) + r"-\d{6}\.safetensors")
    written = {file.name for file in files}
    return sorted(
        file.name for file in output_dir.iterdir() if pattern.fullmatch(file.name) and file.name not in written
    )


def _named(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
