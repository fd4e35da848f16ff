"""What a run will do: steps, epochs, files; known from the settings and the dataset's report alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lora_ext.config.advice import advice
from lora_ext.config.groups import SavingSettings
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.folders import some_of
from lora_ext.dataset.report import DatasetReport
from lora_ext.dataset.step_count import StepCount, count_steps
from lora_ext.training.schedules import warms_up, warmup_steps


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

    @property
    def counts(self) -> StepCount:
        """Updates and epochs alone."""
        return StepCount(self.updates_per_epoch, self.total_steps, self.total_epochs)

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
    files = [output_dir / name for name in kept_files(saving, counts)]
    return TrainingPlan(
        images=report.pictures,
        repeats_total=report.repeats,
        batches_per_epoch=report.batches_per_epoch,
        updates_per_epoch=counts.updates_per_epoch,
        total_steps=counts.total_steps,
        total_epochs=counts.total_epochs,
        files=files,
        warnings=_warnings(config, counts, files, output_dir),
    )


def epoch_file_name(saving: SavingSettings, epoch: int) -> str:
    """Name of the file of an epoch that is not the last."""
    return f"{saving.output_name}-{epoch:06d}.{saving.save_model_as}"


def step_file_name(saving: SavingSettings, step: int) -> str:
    """Name of a file that is written in the middle of an epoch."""
    return f"{saving.output_name}-step{step:08d}.{saving.save_model_as}"


def last_file_name(saving: SavingSettings) -> str:
    """Name of the file that a run ends with."""
    return f"{saving.output_name}.{saving.save_model_as}"


def live_name(output_name: str) -> str:
    """Name under which prompts use the network in training while its run is paused."""
    return f"{output_name}-live"


def saves_epoch(saving: SavingSettings, epoch: int, total_epochs: int) -> bool:
    """Whether a file is written after this epoch; the last epoch has the run's last file instead."""
    return bool(saving.save_every_n_epochs) and epoch % (saving.save_every_n_epochs or 1) == 0 and epoch < total_epochs


def saves_step(saving: SavingSettings, step: int) -> bool:
    """Whether a file is written after this update, the last one of a run included, as sd-scripts does."""
    return saving.save_every_n_steps is not None and step % saving.save_every_n_steps == 0


def epoch_to_delete(saving: SavingSettings, epoch: int, keep: int | None) -> int | None:
    """The epoch whose file goes when that of `epoch` has been written, as sd-scripts counts: epoch − every · keep."""
    if saving.save_every_n_epochs is None or keep is None:
        return None
    old = epoch - saving.save_every_n_epochs * keep
    return old if old > 0 else None


def step_to_delete(saving: SavingSettings, step: int, keep: int | None) -> int | None:
    """The step whose file goes when that of `step` has been written: the first that is more than `keep` steps old."""
    if saving.save_every_n_steps is None or keep is None:
        return None
    old = step - keep - 1
    old -= old % saving.save_every_n_steps
    return old if old > 0 else None


def state_name(saving: SavingSettings, *, epoch: int | None = None, step: int | None = None) -> str:
    """Name of the folder with the state after an epoch, after a step, or (with neither) at the end of a run."""
    place = f"-{epoch:06d}" if epoch is not None else f"-step{step:08d}" if step is not None else ""
    return f"{saving.output_name}{place}-state"


def written_files(saving: SavingSettings, counts: StepCount) -> list[str]:
    """Names of the files that a whole run writes, in their order; those that it deletes again are among them."""
    names: list[str] = []
    every = saving.save_every_n_steps or counts.total_steps + 1
    for epoch in range(1, counts.total_epochs + 1):
        before = (epoch - 1) * counts.updates_per_epoch
        last = min(before + counts.updates_per_epoch, counts.total_steps)
        names += [step_file_name(saving, step) for step in range(before - before % every + every, last + 1, every)]
        if saves_epoch(saving, epoch, counts.total_epochs):
            names.append(epoch_file_name(saving, epoch))
    return [*names, last_file_name(saving)]


def kept_files(saving: SavingSettings, counts: StepCount) -> list[str]:
    """Names of the files that are there at the end of a whole run, in the order they are written."""
    epochs = [epoch for epoch in range(1, counts.total_epochs) if saves_epoch(saving, epoch, counts.total_epochs)]
    gone = {epoch_to_delete(saving, epoch, saving.save_last_n_epochs) for epoch in epochs}
    deleted = {epoch_file_name(saving, epoch) for epoch in gone if epoch is not None}
    every = saving.save_every_n_steps or counts.total_steps + 1
    steps = range(every, counts.total_steps + 1, every)
    old = {step_to_delete(saving, step, saving.save_last_n_steps) for step in steps}
    deleted |= {step_file_name(saving, step) for step in old if step is not None}
    return [name for name in written_files(saving, counts) if name not in deleted]


def _warnings(config: TrainConfig, counts: StepCount, files: list[Path], output_dir: Path) -> list[str]:
    learning = config.learning
    warnings = []
    if config.saving.resume.strip():
        files = []  # those of the run that is gone on with
    replaced = [file.name for file in files if file.exists()]
    if replaced:
        warnings.append(f"files that are there already will be replaced: {some_of(replaced, limit=4)}")
    others = _other_epochs(config.saving, files, output_dir) if files else []
    if others:
        warnings.append(
            f"files of an earlier run of this name stay and will be taken for epochs of this one: "
            f"{some_of(others, limit=4)}; "
            "move them away or set another output_name"
        )
    if learning.gradient_accumulation_steps > 1 and counts.updates_per_epoch == 1:
        warnings.append(
            f"gradient_accumulation_steps = {learning.gradient_accumulation_steps} makes each epoch a single step; "
            "a smaller number gives more steps"
        )
    warmup = warmup_steps(learning.lr_warmup_steps, counts.total_steps) if warms_up(learning) else 0
    if warmup >= counts.total_steps:
        warnings.append(
            f"lr_warmup_steps = {learning.lr_warmup_steps:g} leaves nothing of the run's "
            f"{_count(counts.total_steps, 'step')}: the learning rate never comes up to what is set; set it to 0.1 (a "
            "tenth of them) or less"
        )
    return [*warnings, *advice(config)]


def _other_epochs(saving: SavingSettings, files: list[Path], output_dir: Path) -> list[str]:
    """Files in the folder that look like epochs of this name and are not written by this run."""
    if not output_dir.is_dir():
        return []
    pattern = re.compile(re.escape(saving.output_name) + rf"-\d{{6}}\.{saving.save_model_as}")
    written = {file.name for file in files}
    return sorted(
        file.name for file in output_dir.iterdir() if pattern.fullmatch(file.name) and file.name not in written
    )


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
