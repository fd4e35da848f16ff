"""The files of a run: when and under which names they are written, and which of them are deleted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.file import Precision, write_network
from lora_ext.networks.sidecar import delete_sidecar
from lora_ext.protocols import Events, SavedNetwork, UserError
from lora_ext.training.plan import epoch_file_name, epoch_to_delete, last_file_name, live_name, step_file_name


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

        A file that cannot be written is reported; it does not end the run.
        """
        name = self.config.saving.output_name
        self._try_to_write(epoch_file_name(name, epoch), epoch, step)
        old = epoch_to_delete(self.config.saving, epoch)
        if old is not None:
            self._delete(self.output_dir / epoch_file_name(name, old))

    def save_step(self, epoch: int, step: int) -> None:
        """Write the file that was asked for in the middle of an epoch, or report that it cannot be written."""
        self._try_to_write(step_file_name(self.config.saving.output_name, step), epoch, step)

    def save_last(self, epoch: int, step: int) -> None:
        """Write the run's last file.

        Where its place is taken (by a program that holds the old file open, say), it gets the name of its step; only
        where that fails too is UserError raised.
        """
        name = self.config.saving.output_name
        try:
            self._write(last_file_name(name), epoch, step, is_last=True)
        except UserError as error:
            rescue = step_file_name(name, step)
            self._write(rescue, epoch, step, is_last=True)
            self.events.message("error", f"{error}. The network is in {rescue} instead.")

    def write_paused(self, path: Path, epoch: int, step: int) -> None:
        """Write what is trained so far in full precision, as the file of a pause: it is none of the run's files."""
        metadata = self._metadata(live_name(self.config.saving.output_name), epoch, step)
        write_network(path, self._tensors(), metadata, "float")

    def _try_to_write(self, file_name: str, epoch: int, step: int) -> None:
        try:
            self._write(file_name, epoch, step)
        except UserError as error:
            self.events.message("error", f"{error}. Training goes on.")

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
        metadata = self._metadata(path.stem, epoch, step)
        precision = cast(Precision, self.config.saving.save_precision)
        write_network(path, self._tensors(), metadata, precision)
        if path not in self.files:
            self.files.append(path)
        self.events.saved(SavedNetwork(path, epoch, step, is_last))
