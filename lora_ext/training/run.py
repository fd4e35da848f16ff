"""A run between its first and its last step, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_ext.config.train_config import flat_values
from lora_ext.dataset.dataset import ImageDataset
from lora_ext.networks.network import Network
from lora_ext.protocols import Events
from lora_ext.training.conditioning import TextConditioning
from lora_ext.training.learning import Learning
from lora_ext.training.plan import TrainingPlan
from lora_ext.training.samples import SampleDrawer
from lora_ext.training.saving import NetworkSaver
from lora_ext.training.session import Session
from lora_ext.training.state_folders import Position, SavedState
from lora_ext.training.state_saving import StateSaver
from lora_ext.training.state_trees import Stateful
from lora_ext.training.step import TrainingStep
from lora_ext.training.validation import Validation


@dataclass(frozen=True)
class TrainingResult:
    """What a run has come to.

    `files` are those written and still there, the last one last; `losses` has one entry a step (nan where a step was
    left out), `final_loss` is the mean of the last epoch's. `stopped`: ended on request before its last step;
    `cancelled`: and without writing a last file. `best_epoch`: the one with the lowest validation loss. `note` says why
    a run has ended early of itself.
    """

    files: list[Path]
    steps: int
    epochs: int
    final_loss: float
    stopped: bool = False
    cancelled: bool = False
    losses: list[float] = field(default_factory=list)
    bad_steps: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None
    note: str = ""


@dataclass
class Run:
    """What a run works with, and how far it has come: `epoch` from 1 on, one loss a step in `losses`.

    `parts` is all that has a state of its own, by name: what stands there goes on where it was after a resume. `facts`
    tells what is trained on, in JSON's types.
    """

    plan: TrainingPlan
    session: Session
    dataset: ImageDataset
    conditioning: TextConditioning
    network: Network
    step: TrainingStep
    saver: NetworkSaver
    samples: SampleDrawer
    validation: Validation
    learning: Learning
    states: StateSaver = field(init=False)
    parts: dict[str, Stateful] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    epoch_ended: bool = True
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimizer updates so far, those that were left out included."""
        return len(self.losses)

    def snapshot(self) -> SavedState:
        """The state of the run, between two steps."""
        config = self.session.config
        return SavedState(
            position=Position(self.epoch, len(self.epoch_losses), self.epoch_ended),
            losses=self.losses,
            network=self.network.state_tensors(),
            parts={name: part.state_dict() for name, part in self.parts.items()},
            settings=flat_values(config),
            facts=self.facts,
        )

    def go_on_from(self, state: SavedState, events: Events) -> None:
        """Take over a saved state, whose weights the network has already, before the first step.

        A part that has no state there, or one that is not its own, begins anew, with a warning.
        """
        for name, part in self.parts.items():
            try:
                part.load_state_dict(state.parts[name])
            except (KeyError, ValueError) as error:
                events.message("warning", f"The saved state has none for the {name} ({error}): it begins anew.")
        self.epoch, self.epoch_ended = state.position.epoch, state.position.ended
        self.losses = list(state.losses)
        self.epoch_losses = self.losses[len(self.losses) - state.position.updates :]


def mean_finite(losses: Sequence[float]) -> float:
    """Mean of the losses that are numbers; nan where there are none."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan
