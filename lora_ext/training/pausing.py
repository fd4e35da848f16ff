"""Pauses between two steps: the checkpoint is handed back meanwhile, and the run goes on exactly where it was.

Adapters, optimizer state and generators stay as and where they are, on a GPU too: beside a checkpoint they are small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lora_ext.protocols import Borrow, Control, Events, OtherCheckpointError, PauseReport, ResumeRequest, UserError
from lora_ext.training.out_of_memory import is_out_of_memory
from lora_ext.training.plan import live_name
from lora_ext.training.saving import NetworkSaver
from lora_ext.training.session import Session


@dataclass(frozen=True)
class PausePlace:
    """What lets a run pause: the borrow that is given back meanwhile, and the file for what is trained so far."""

    borrow: Borrow
    file: Path


@dataclass(frozen=True)
class Pauses:
    """The pauses of one run."""

    place: PausePlace
    session: Session
    saver: NetworkSaver
    events: Events
    control: Control

    def stand_still(self, epoch: int, step: int) -> None:
        """Hand the checkpoint back until the run is told to go on or to end; files may be asked for meanwhile.

        Where the pause's file cannot be written, that is reported and there is no pause.
        """
        try:
            self.saver.write_paused(self.place.file, epoch, step)
        except UserError as error:
            self.events.message("error", f"{error}. The run is not paused: training goes on.")
            return
        report = PauseReport(step, epoch, self.place.file, live_name(self.session.config.saving.output_name))
        self.events.paused(report)
        self.session.leave()
        self.place.borrow.suspend()
        while not self.control.stopping:
            self.control.wait_for_request()
            if self.control.take_save_request():
                self.saver.save_step(epoch, step)
            request = self.control.take_resume_request()
            if request is not None and self._goes_on(request, report):
                return

    def _goes_on(self, request: ResumeRequest, report: PauseReport) -> bool:
        """Take the checkpoint again; False where it cannot be had now, which is reported."""
        try:
            self.place.borrow.resume(request.load_checkpoint)
            self.events.resumed()  # at once: who wants the checkpoint from now on ends a run that goes on
            self.session.enter_again(self.place.borrow.checkpoint)
        except UserError as error:
            missing = error.wanted if isinstance(error, OtherCheckpointError) else ""
            self._stay(replace(report, problem=str(error), missing_checkpoint=missing))
            return False
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._stay(replace(report, problem=_no_memory(error)))
            return False
        return True

    def _stay(self, report: PauseReport) -> None:
        """Hand back what was taken so far, and say why the run does not go on."""
        self.session.leave()
        self.place.borrow.suspend()
        self.events.paused(report)


def _no_memory(error: RuntimeError) -> str:
    reason = str(error).partition("\n")[0]
    return f"not enough free memory to go on: close what uses it, then press Resume ({reason})"
