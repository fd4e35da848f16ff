"""The states of a run: when and under which names they are written, and which of them are deleted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_ext.config.train_config import TrainConfig
from lora_ext.protocols import Events, UserError
from lora_ext.training.plan import epoch_to_delete, saves_step, state_name, step_to_delete
from lora_ext.training.saving import told_or_raised
from lora_ext.training.state_folders import SavedState, delete_state, write_state


class StateSaver:
    """Writes the states that the settings ask for, each beside the network file of its time.

    `snapshot` gives the state of the moment; `metadata(stem, epoch, step)` what the network in it says of itself.
    """

    def __init__(
        self,
        config: TrainConfig,
        output_dir: Path,
        events: Events,
        snapshot: Callable[[], SavedState],
        metadata: Callable[[str, int, int], Mapping[str, str]],
    ) -> None:
        self.config = config
        self.output_dir = output_dir
        self.events = events
        self.states: list[Path] = []
        self._snapshot = snapshot
        self._metadata = metadata

    def save_epoch(self, epoch: int) -> None:
        """Write the state after an epoch, then delete the one that is no longer kept; as with the network's files."""
        saving = self.config.saving
        if not saving.save_state or not self._write(state_name(saving, epoch=epoch)):
            return
        old = epoch_to_delete(saving, epoch, saving.save_last_n_epochs_state or saving.save_last_n_epochs)
        if old is not None:
            self._delete(self.output_dir / state_name(saving, epoch=old))

    def save_step(self, step: int) -> None:
        """Write the state after a step, then delete the one that is no longer kept."""
        saving = self.config.saving
        if not saving.save_state or not self._write(state_name(saving, step=step)) or not saves_step(saving, step):
            return
        old = step_to_delete(saving, step, saving.save_last_n_steps_state or saving.save_last_n_steps)
        if old is not None:
            self._delete(self.output_dir / state_name(saving, step=old))

    def save_last(self) -> None:
        """Write the state at the end of the run."""
        saving = self.config.saving
        if saving.save_state or saving.save_state_on_train_end:
            self._write(state_name(saving))

    def state_dict(self) -> dict[str, Any]:
        """The states so far."""
        return {"states": [path.name for path in self.states]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there, with those that are still in the folder."""
        self.states = [path for name in state["states"] if (path := self.output_dir / name).is_dir()]

    def _write(self, name: str) -> bool:
        """Write a state; whether that was possible."""
        path = self.output_dir / name
        if path not in self.states:
            self.states.append(path)  # the state knows of itself: whoever goes on from it may delete it
        state = self._snapshot()
        try:
            write_state(path, state, self.config, self._metadata(name, state.position.epoch, len(state.losses)))
        except UserError as error:
            self.states.remove(path)
            told_or_raised(error, self.config, self.events)
            return False
        self.events.message("info", f"The run can be gone on with from {path.name}.")
        return True

    def _delete(self, path: Path) -> None:
        """Delete a state of this run; one that cannot be deleted stays, with a warning."""
        if path not in self.states:
            return
        try:
            delete_state(path)
            self.states.remove(path)
        except OSError as error:
            self.events.message("warning", f"{path} could not be deleted: {error.strerror or error}")
