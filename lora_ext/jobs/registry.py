"""The runs on disk: one folder a run, readable by any process, honest about runs whose process is gone.

A folder `<id>` holds `run.json` (the record, replaced atomically), `config.toml`, `dataset.json` (the report of the
pictures), `steps.csv`, `epochs.csv`, `validation.csv`, `samples` with pictures, and `lock`, which the process of the
run holds for as long as it lives. `paused.safetensors` is there from a run's first pause to its end. States lie
beside the networks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_ext.config.toml_files import config_to_toml
from lora_ext.config.train_config import TrainConfig
from lora_ext.jobs.csv_log import CsvLog
from lora_ext.jobs.locking import ProcessLock, is_locked
from lora_ext.jobs.records import RunRecord, json_value, record_from_json
from lora_ext.jobs.samples_file import SamplesFolder, SavedSample, read_samples
from lora_ext.jobs.steps_file import LoggedStep, StepsFile, read_steps
from lora_ext.jobs.validation_file import LoggedValidation, ValidationFile, read_validations
from lora_ext.protocols import UserError

if TYPE_CHECKING:
    from lora_ext.training.checks import PreparedRun

_Result = TypeVar("_Result")

_RECORD, _CONFIG, _STEPS, _LOCK = "run.json", "config.toml", "steps.csv", "lock"
_DATASET, _EPOCHS, _VALIDATION = "dataset.json", "epochs.csv", "validation.csv"
_PAUSED = "paused.safetensors"
_SAMPLES = "samples"
_ID = re.compile(r"\d{8}-\d{6}(-[A-Za-z0-9_-]*)?")


class OpenRun:
    """A run of this process: its record may be changed until it is closed."""

    def __init__(self, folder: Path, record: RunRecord, lock: ProcessLock) -> None:
        self.folder = folder
        self.record = record
        self.steps = StepsFile(folder / _STEPS)
        self.validations = ValidationFile(folder / _VALIDATION)
        self.epochs = CsvLog(folder / _EPOCHS)
        self.samples = SamplesFolder(folder / _SAMPLES)
        self._lock = lock

    @property
    def paused_file(self) -> Path:
        """Where a pause keeps what is trained."""
        return self.folder / _PAUSED

    def update(self, **changes: Any) -> RunRecord:
        """Change fields of the record, here and then on disk; OSError where that cannot be written."""
        self.record = dataclasses.replace(self.record, **changes)
        write_text_atomically(self.folder / _RECORD, _json_text(self.record))
        return self.record

    def write_error(self, text: str) -> None:
        """Keep a traceback beside the record."""
        (self.folder / "error.txt").write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Close the files and give the lock back; to be called after the final state has been written.

        OSError where the last steps cannot be written; the lock is given back all the same.
        """
        try:
            self.steps.close()
            self.validations.close()
            self.epochs.close()
        finally:
            self._lock.release()


class RunRegistry:
    """The runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(
        self, config: TrainConfig, output_dir: Path, report: dict[str, Any] | None = None, **fields: Any
    ) -> OpenRun:
        """Enter a new run, queued, and hold its lock; UserError where that cannot be written."""
        created = time.time()
        folder = self._new_folder(created, config.saving.output_name)
        lock = ProcessLock(folder / _LOCK)
        record = RunRecord(
            id=folder.name,
            name=config.saving.output_name,
            state="queued",
            created=created,
            output_dir=str(output_dir),
            **fields,
        )
        run = OpenRun(folder, record, lock)
        try:
            if not lock.acquire():
                raise UserError(f"{folder} is in use by another run: start again")
            (folder / _CONFIG).write_text(config_to_toml(config), encoding="utf-8")
            if report is not None:
                text = json.dumps(json_value(report), ensure_ascii=False, indent=1)
                (folder / _DATASET).write_text(text, encoding="utf-8")
            run.update()
        except OSError as error:
            lock.release()
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(
                f"the run cannot be entered in {self.folder} ({error.strerror or error}): free some space"
            ) from error
        return run

    def create_prepared(self, prepared: PreparedRun, **fields: Any) -> OpenRun:
        """Enter a run that has passed its checks, with what was found and planned."""
        return self.create(
            prepared.config,
            prepared.output_dir,
            prepared.report.to_dict(),
            total_steps=prepared.plan.total_steps,
            total_epochs=prepared.plan.total_epochs,
            dataset=tuple(prepared.report.summary()),
            plan=tuple(prepared.plan.summary()),
            warnings=tuple(prepared.warnings),
            trial_prompt=prepared.trial_prompt,
            **fields,
        )

    def records(self) -> list[RunRecord]:
        """All runs, the newest first; folders that are no runs are left out (see `notes`)."""
        return self._scan()[0]

    def notes(self) -> list[str]:
        """What stands in the folder and could not be read as a run, each with the reason."""
        return self._scan()[1]

    def record(self, run_id: str) -> RunRecord:
        """The record of a run; UserError for an unknown id."""
        if not _ID.fullmatch(run_id) or not (self.folder / run_id / _RECORD).is_file():
            raise UserError(f"there is no run {run_id!r} in {self.folder}")
        try:
            return self._read(self.folder / run_id)
        except (OSError, ValueError) as error:
            raise UserError(f"the record of run {run_id} cannot be read: {error}") from error

    def config_path(self, run_id: str) -> Path:
        """The settings file of a run."""
        return self.folder / self.record(run_id).id / _CONFIG

    def steps(self, run_id: str) -> list[LoggedStep]:
        """Every step of a run, as far as they were written."""
        return read_steps(self.folder / self.record(run_id).id / _STEPS)

    def validations(self, run_id: str) -> list[LoggedValidation]:
        """Every measurement of a run's held-out pictures."""
        return read_validations(self.folder / self.record(run_id).id / _VALIDATION)

    def samples(self, run_id: str) -> list[SavedSample]:
        """The sample pictures of a run, in the order in which they were drawn."""
        return read_samples(self.folder / self.record(run_id).id / _SAMPLES)

    def _scan(self) -> tuple[list[RunRecord], list[str]]:
        records, notes = [], []
        folders = sorted(self.folder.iterdir(), reverse=True) if self.folder.is_dir() else []
        for folder in folders:
            if not folder.is_dir() or not _ID.fullmatch(folder.name):
                notes.append(f"{folder.name} is not the folder of a run")
                continue
            try:
                records.append(self._read(folder))
            except (OSError, ValueError) as error:
                notes.append(f"{folder.name} has no record that can be read: {error}")
        return sorted(records, key=lambda record: (record.created, record.id), reverse=True), notes

    def _read(self, folder: Path) -> RunRecord:
        """The record in a folder; an active run without a living process is a crashed one."""
        record = record_from_json(_read_text(folder / _RECORD))
        if record.id != folder.name:
            raise ValueError(f"it belongs to run {record.id!r}")
        files = tuple(file for file in record.files if os.path.exists(file))
        if not record.active or is_locked(folder / _LOCK):
            return dataclasses.replace(record, files=files)
        again = record_from_json(_read_text(folder / _RECORD))  # it may have ended between the two looks
        return again if not again.active else _crashed(again, files, folder)

    def _new_folder(self, created: float, name: str) -> Path:
        """A new folder whose name sorts by time: `20261120-142233-name`, with a number where that is taken."""
        word = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60]
        stem = time.strftime("%Y%m%d-%H%M%S", time.localtime(created)) + f"-{word}"
        number = 1
        while True:
            folder = self.folder / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                number += 1
            except OSError as error:
                raise UserError(f"the run cannot be entered in {self.folder}: {error}") from error


_MOMENTS = {"running": "while it was training", "paused": "while it was paused", "queued": "before its turn came"}


def _crashed(record: RunRecord, files: tuple[str, ...], folder: Path) -> RunRecord:
    steps = read_steps(folder / _STEPS)
    last = steps[-1] if steps else None
    return dataclasses.replace(
        record,
        state="crashed",
        files=files,
        steps=last.step if last else record.steps,
        loss=last.loss if last else record.loss,
        note="",
        error="; ".join([f"The program ended {_MOMENTS[record.state]}", *_what_is_left(files, folder / _PAUSED)]) + ".",
    )


def _what_is_left(files: tuple[str, ...], paused: Path) -> list[str]:
    """What a run whose program has ended leaves to a person."""
    left = [f"{len(files)} saved files are whole"] if files else []
    return left + ([f"what was trained up to its last pause is in {paused}"] if paused.is_file() else [])


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one go; a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _patiently(lambda: os.replace(temporary, path))


def _read_text(path: Path) -> str:
    return _patiently(lambda: path.read_text(encoding="utf-8"))


def _patiently(action: Callable[[], _Result], attempts: int = 20) -> _Result:
    """Windows refuses for a moment to replace a file that is being read, and to read one that is being replaced."""
    for _ in range(attempts - 1):
        try:
            return action()
        except PermissionError:
            time.sleep(0.05)
    return action()


def _json_text(record: RunRecord) -> str:
    return json.dumps(record.as_json(), ensure_ascii=False, indent=1)
