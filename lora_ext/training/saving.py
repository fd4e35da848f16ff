"""The files of a run: when and under which names they are written, and which of them are deleted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.ckpt_file import write_ckpt
from lora_ext.networks.file import Precision, write_network
from lora_ext.networks.sidecar import delete_sidecar
from lora_ext.protocols import Events, SavedNetwork, UserError
from lora_ext.training.plan import (
    epoch_file_name,
    epoch_to_delete,
    last_file_name,
    live_name,
    saves_step,
    step_file_name,
    step_to_delete,
)


class NetworkSaver:
    """Writes the network's files and keeps count of them.

    `tensors` gives what there is to write at the moment; `metadata(stem, epoch, step)` what is to be said of it.
    """

    def __init__(
        self,
        config: TrainConfig,
        output_dir: Path,
        events: Events,
        tensors: Callable[[], Mapping[str, Tensor]],
        metadata: Callable[[str, int, int], Mapping[str, str]],
    ) -> None:
        self.config = config
        self.output_dir = output_dir
        self.events = events
        self.files: list[Path] = []
        self._tensors = tensors
        self._metadata = metadata

    def save_epoch(self, epoch: int, step: int) -> None:
        """Write an epoch's file, then delete the one that `save_last_n_epochs` no longer keeps.

        A file that cannot be written is reported, and the old one stays; it ends the run with UserError only where
        `on_disk_full` says so.
        """
        saving = self.config.saving
        if not self._try_to_write(epoch_file_name(saving, epoch), epoch, step):
            return
        old = epoch_to_delete(saving, epoch, saving.save_last_n_epochs)
        if old is not None:
            self._delete(self.output_dir / epoch_file_name(saving, old))

    def save_step(self, epoch: int, step: int) -> None:
        """Write a file in the middle of an epoch; the rest is as with `save_epoch`."""
        saving = self.config.saving
        if not self._try_to_write(step_file_name(saving, step), epoch, step):
            return
        old = step_to_delete(saving, step, saving.save_last_n_steps) if saves_step(saving, step) else None
        if old is not None:
            self._delete(self.output_dir / step_file_name(saving, old))

    def save_last(self, epoch: int, step: int) -> None:
        """Write the run's last file.

        Where its place is taken (by a program that holds the old file open, say), it gets the name of its step; only
        where that fails too is UserError raised.
        """
        saving = self.config.saving
        try:
            self._write(last_file_name(saving), epoch, step, is_last=True)
        except UserError as error:
            rescue = step_file_name(saving, step)
            self._write(rescue, epoch, step, is_last=True)
            self.events.message("error", f"{error}. The network is in {rescue} instead.")

    def write_paused(self, path: Path, epoch: int, step: int) -> None:
        """Write what is trained so far in full precision, as the file of a pause: it is none of the run's files."""
        metadata = self._metadata(live_name(self.config.saving.output_name), epoch, step)
        write_network(path, self._tensors(), metadata, "float")

    def state_dict(self) -> dict[str, Any]:
        """The run's files so far."""
        return {"files": [path.name for path in self.files]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there: files that are gone, or in another folder, are no longer the run's."""
        self.files = [path for name in state["files"] if (path := self.output_dir / name).is_file()]

    def _try_to_write(self, file_name: str, epoch: int, step: int) -> bool:
        """Write a file; whether that was possible."""
        try:
            self._write(file_name, epoch, step)
        except UserError as error:
            told_or_raised(error, self.config, self.events)
            return False
        return True

    def _delete(self, path: Path) -> None:
        """Delete a file of this run and its card; one that another program holds open stays, with a warning."""
        if path not in self.files:
            return
        try:
            path.unlink(missing_ok=True)
            self.files.remove(path)
            delete_sidecar(path)
        except OSError as error:
            self.events.message("warning", f"{error.filename} could not be deleted: {error.strerror or error}")

    def _write(self, file_name: str, epoch: int, step: int, is_last: bool = False) -> None:
        path = self.output_dir / file_name
        precision = cast(Precision, self.config.saving.save_precision)
        if self.config.saving.save_model_as == "ckpt":
            write_ckpt(path, self._tensors(), precision)
        else:
            write_network(path, self._tensors(), self._metadata(path.stem, epoch, step), precision)
        self.files = [*(file for file in self.files if file != path), path]
        self.events.saved(SavedNetwork(path, epoch, step, is_last))


def told_or_raised(error: UserError, config: TrainConfig, events: Events) -> None:
    """Report what could not be written and go on, or end the run with it, as `on_disk_full` says."""
    if config.saving.on_disk_full == "stop":
        raise UserError(
            f"{error}. The run ends here, as on_disk_full = stop says; what was written before is whole"
        ) from error
    events.message("error", f"{error}. Training goes on.")
