"""Work on many modules at once: products of small matrices gain more from that than from many threads for each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items a thread


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """What the function gives for each item, in their order, computed a few items ahead and without gradients.

    On a processor as many threads as torch may use work on one item each; torch's number of threads is 1 meanwhile,
    also for a thread of the program around that uses torch for the first time then. On other devices the calling
    thread does all of it. What the function raises is raised here; the iterator ends when the threads have.
    """
    count = torch.get_num_threads() if device.type == "cpu" else 1
    if count == 1:
        with torch.no_grad():
            yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(count, "modules", torch.set_num_threads, (1,))
    torch.set_num_threads(1)  # what this thread does with the results leaves the processor to the others
    try:
        for item in items:
            waiting.append(pool.submit(torch.no_grad()(function), item))
            if len(waiting) > _AHEAD * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown()
        torch.set_num_threads(count)


class Workspace(threading.local):
    """Memory that every thread uses again: the system takes longer to hand out new memory than to fill it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor with any values in it, which holds until this thread takes the next one of that name."""
        size, buffer = prod(shape), self._buffers.get(name)
        if buffer is None or len(buffer) < size or (buffer.dtype, buffer.device) != (dtype, device):
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(*shape)
