"""Tensors on their way to the device, and numbers on their way back, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor there, in `dtype` where one is given.

    From ordinary memory CUDA copies only when all work before is done; from pinned memory the copy waits its turn.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.requires_grad:
        return tensor.pin_memory().to(device, dtype, non_blocking=True)
    return tensor.to(device, dtype)


class Arriving:
    """Numbers of a device that are on their way; `values` waits until they are there."""

    def __init__(self, numbers: Tensor) -> None:
        """Take a 1-D tensor as it will be when all that was asked of the device before is done."""
        self._arrived: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(numbers.device))

    def values(self) -> list[float]:
        """The numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[float] = self._numbers.tolist()
        return values
