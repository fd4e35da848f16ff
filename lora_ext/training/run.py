"""A run between its first and its last step, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_ext.dataset.dataset import ImageDataset
from lora_ext.training.conditioning import TextConditioning
from lora_ext.training.learning import Learning
from lora_ext.training.plan import TrainingPlan
from lora_ext.training.samples import SampleDrawer
from lora_ext.training.saving import NetworkSaver
from lora_ext.training.session import Session
from lora_ext.training.step import TrainingStep


@dataclass(frozen=True)
class TrainingResult:
    """What a run has come to.

    `files` are those written and still there, the last one last; `losses` has one entry a step (nan where a step was
    left out), `final_loss` is the mean of the last epoch's. `stopped`: ended on request before its last step;
    `cancelled`: and without writing a last file.
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


@dataclass
class Run:
    """What a run works with, and how far it has come: `epoch` from 1 on, one loss a step in `losses`."""

    plan: TrainingPlan
    session: Session
    dataset: ImageDataset
    conditioning: TextConditioning
    step: TrainingStep
    saver: NetworkSaver
    samples: SampleDrawer
    learning: Learning
    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimizer updates so far, those that were left out included."""
        return len(self.losses)


def mean_finite(losses: Sequence[float]) -> float:
    """Mean of the losses that are numbers; nan where there are none."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan
