"""A training run that is entered in the registry while it goes on, in whatever thread it is called."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_ext.config.given_path import given_path
from lora_ext.config.train_config import TrainConfig
from lora_ext.jobs.host_notices import HostNotices, writes_cards
from lora_ext.jobs.live_status import FanOut
from lora_ext.jobs.memory import memory_in_use
from lora_ext.jobs.records import RunRecord
from lora_ext.jobs.registry import OpenRun
from lora_ext.jobs.tensorboard_log import TensorBoardEvents, log_folder
from lora_ext.protocols import (
    Borrow,
    Control,
    EpochReport,
    Events,
    Host,
    PauseReport,
    Sample,
    SavedNetwork,
    StepReport,
    UserError,
    ValidationReport,
)
from lora_ext.training.checks import PreparedRun, check_device
from lora_ext.training.pausing import PausePlace
from lora_ext.training.run import TrainingResult
from lora_ext.training.samples import check_samplers
from lora_ext.training.trainer import Trainer

_SECONDS_BETWEEN_WRITES = 2.0


class RecordingEvents(Events):
    """Writes what happens into the run's folder: every step into steps.csv, the record now and then.

    Where that cannot be written, `events` is told, once: the network's files matter more, and may lie elsewhere.
    """

    def __init__(self, run: OpenRun, events: Events) -> None:
        self.run = run
        self.events = events
        self._written = time.monotonic()
        self._told = False

    def enter(self, **changes: Any) -> None:
        """Change fields of the record, on disk too where that can be."""
        self._try(lambda: self.run.update(**changes))

    def close(self) -> None:
        """Close the run's files."""
        self._try(self.run.close)

    def run_started(self, total_steps: int, total_epochs: int) -> None:
        """Enter how long the run is."""
        self.enter(total_steps=total_steps, total_epochs=total_epochs)

    def step(self, report: StepReport) -> None:
        """Append the step; enter it in the record where the last entry is some seconds old."""
        self._try(lambda: self.run.steps.append(report, memory_in_use()))
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.enter(steps=report.step, epochs=report.epoch, loss=report.loss)
            self._written = time.monotonic()

    def epoch(self, report: EpochReport) -> None:
        """Append the epoch, with the norms where they are held; enter it."""
        row = {"epoch": str(report.epoch), "step": str(report.step), "loss": f"{report.loss:.8g}"}
        norms = {name: f"{norm:.6g}" for name, norm in report.norms.items()}
        self._try(lambda: self.run.epochs.append({**row, **norms}))
        self.enter(steps=report.step, epochs=report.epoch, loss=report.loss)

    def validated(self, report: ValidationReport) -> None:
        """Append the measurement; enter which epoch is the best one so far, where one had a loss at all."""
        self._try(lambda: self.run.validations.append(report))
        if math.isfinite(report.best_loss):
            self.enter(best_epoch=report.best_epoch, best_loss=report.best_loss)

    def saved(self, saved: SavedNetwork) -> None:
        """Enter the file, and leave out those that are no longer there."""
        path = str(saved.path)
        others = [file for file in self.run.record.files if file != path and os.path.exists(file)]
        self.enter(files=(*others, path), steps=saved.step, epochs=saved.epoch)

    def paused(self, report: PauseReport) -> None:
        """Enter that the run stands still, and why it could not go on where it was told to."""
        note = report.problem or f"paused after {report.step} steps; the checkpoint is free until Resume"
        self.enter(state="paused", note=note, steps=report.step, epochs=report.epoch)

    def resumed(self) -> None:
        """Enter that the run goes on."""
        self.enter(state="running", note="")

    def sampled(self, sample: Sample) -> None:
        """Keep the picture in the run's folder; OSError where it cannot be, which ends no run either."""
        self.run.samples.add(sample)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if not self._told:
                self._told = True
                self.events.message(
                    "warning",
                    f"{self.run.folder} cannot be written ({error.strerror or error}): the network's files are not "
                    "touched by that, but the list of runs and the loss chart will lack something. Free some space",
                )


def output_folder(config: TrainConfig, host: Host) -> Path:
    """Where a run's files go: `output_dir`, or the host's folder for networks."""
    chosen = config.saving.output_dir
    return given_path(chosen).resolve() if chosen.strip() else host.folders().networks[0]


def check_host(prepared: PreparedRun, host: Host) -> None:
    """Raise UserError where the host cannot do what the settings ask for: its device, its samplers."""
    device = host.checkpoint_info().device
    if device:
        check_device(prepared.config, torch.device(device))
    check_samplers(prepared.config, prepared.sample_prompts, host.samplers(), prepared.report.to_draw)


def train_recorded(
    host: Host, run: OpenRun, config: TrainConfig, control: Control, sinks: Sequence[Events] = ()
) -> RunRecord:
    """Borrow the host's checkpoint, train, and close the run; returns its record in its final state.

    What goes wrong stands in the record (`error`), with the traceback in `error.txt` where it was nobody's input.
    """
    visible = FanOut(sinks)
    notices = HostNotices(host, visible, writes_cards(config, host))
    recording = RecordingEvents(run, visible)
    logs = [TensorBoardEvents(log_folder(config, run.folder), visible)] if config.saving.log_with != "csv" else []
    events = FanOut([notices, *sinks, *logs, recording])  # what the record says is true already
    try:
        visible.phase("waiting for the checkpoint", 0, 0)
        recording.enter(state="running", started=time.time(), note="")
        try:
            with host.borrow() as borrow:
                recording.enter(checkpoint=borrow.checkpoint.name)
                result = _train(host, run, config, control, events, borrow)
        finally:
            notices.end()
        _delete_paused_file(run, visible)
        recording.enter(finished=time.time(), **_fields_of(result))
    except UserError as error:
        visible.message("error", str(error))
        recording.enter(state="failed", error=str(error), note=_note_of_failure(run), finished=time.time())
    except Exception as error:
        text = f"{type(error).__name__}: {error} (traceback in {run.folder / 'error.txt'})"
        visible.message("error", text)
        recording.enter(state="failed", error=text, note=_note_of_failure(run), finished=time.time())
        run.write_error(traceback.format_exc())
    finally:
        for log in logs:
            log.close()
        recording.close()
    return run.record


def _train(
    host: Host, run: OpenRun, config: TrainConfig, control: Control, events: Events, borrow: Borrow
) -> TrainingResult:
    output_dir, place = Path(run.record.output_dir), PausePlace(borrow, run.paused_file)
    trainer = Trainer(
        borrow.checkpoint, config, output_dir, events, control, generator=host, pause_place=place,
        network_folders=host.folders().networks,
    )  # fmt: skip
    return trainer.run()


def _delete_paused_file(run: OpenRun, events: Events) -> None:
    """Delete what the run's pauses have kept: the run has ended as it was told to."""
    try:
        run.paused_file.unlink(missing_ok=True)
    except OSError as error:
        events.message("warning", f"{run.paused_file} could not be deleted: {error.strerror or error}")


def _note_of_failure(run: OpenRun) -> str:
    """What a failed run leaves to a person."""
    return f"what was trained up to its last pause is in {run.paused_file}" if run.paused_file.is_file() else ""


def _fields_of(result: TrainingResult) -> dict[str, Any]:
    """What a run's record says of its end."""
    if result.cancelled:
        state, note = "stopped", f"cancelled after {result.steps} steps; nothing more was written"
    elif result.stopped and not result.steps:
        state, note = "stopped", "stopped before the first step; nothing was trained"
    elif result.stopped:
        state, note = "stopped", f"stopped after {result.steps} steps; what was trained is kept"
    else:
        state, note = "finished", result.note
    if result.bad_steps:
        note = "; ".join(filter(None, [note, f"{result.bad_steps} steps without a finite loss were left out"]))
    return {
        "state": state,
        "note": note,
        "steps": result.steps,
        "epochs": result.epochs,
        "loss": result.final_loss,
        "files": tuple(str(file) for file in result.files),
    }
