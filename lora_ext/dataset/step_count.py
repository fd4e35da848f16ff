"""How many updates and epochs a run has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_ext.config.groups import LearningSettings


@dataclass(frozen=True)
class StepCount:
    """Updates of an epoch, and updates and epochs of a whole run."""

    updates_per_epoch: int
    total_steps: int
    total_epochs: int


def count_steps(learning: LearningSettings, batches_per_epoch: int) -> StepCount:
    """The counts of a run with so many batches an epoch; `max_train_epochs` wins over `max_train_steps`."""
    updates = math.ceil(batches_per_epoch / learning.gradient_accumulation_steps)
    if learning.max_train_epochs is not None:
        return StepCount(updates, learning.max_train_epochs * updates, learning.max_train_epochs)
    return StepCount(updates, learning.max_train_steps, math.ceil(learning.max_train_steps / updates))
