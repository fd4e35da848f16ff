"""Going on with less memory: a step is taken again in smaller pieces, which come to the same gradient."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from lora_ext.protocols import Events

_Rows = TypeVar("_Rows")


class Retreat:
    """How far a run has drawn back: each batch is trained in so many `pieces`; at last with gradient checkpointing.

    `checkpoint_gradients` switches that on, and says whether it was off.
    """

    def __init__(self, events: Events, checkpoint_gradients: Callable[[], bool]) -> None:
        self.pieces = 1
        self.checkpointing = False
        self._events = events
        self._checkpoint_gradients = checkpoint_gradients

    def further(self, largest_batch: int) -> bool:
        """Draw back one step more, and tell; False where there is none."""
        if math.ceil(largest_batch / self.pieces) > 1:
            self.pieces *= 2
            size = math.ceil(largest_batch / self.pieces)
            how = f"batches are trained in pieces of {size}, which are summed up: the same update, in more time"
        elif not self.checkpointing and self._checkpoint_gradients():
            self.checkpointing = True
            how = "gradient checkpointing is on from now on: the same update, in more time"
        else:
            return False
        self._events.message("warning", f"Not enough memory: {how}.")
        return True

    def state_dict(self) -> dict[str, Any]:
        """Pieces, and whether checkpointing was switched on."""
        return {"pieces": self.pieces, "checkpointing": self.checkpointing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw back as far as there: sums in another order would not be the same bits."""
        self.pieces = state["pieces"]
        if state["checkpointing"]:
            self.checkpointing = self._checkpoint_gradients()


def split_rows(rows: _Rows, pieces: int) -> Iterator[_Rows]:
    """A dataclass of tensors and lists (batch, …) in pieces along the batch, as even as they can be."""
    values = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}  # type: ignore[arg-type]
    count = max(len(value) for value in values.values() if isinstance(value, Tensor | list))
    size = math.ceil(count / pieces)
    for start in range(0, count, size):
        part = {
            name: value[start : start + size] if isinstance(value, Tensor | list) else value
            for name, value in values.items()
        }
        yield dataclasses.replace(rows, **part)  # type: ignore[type-var]


def free_memory() -> None:
    """Give back what a failed step has left: tensors in cycles, and the GPU's blocks that nothing uses."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
