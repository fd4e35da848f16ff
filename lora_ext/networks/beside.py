"""Calls that another thread makes meanwhile: hashing and writing what the next bytes are computed beside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

Chunk = bytes | memoryview
"""A part of a file's content."""

_MOST_BEHIND = 2**25  # bytes


class Beside:
    """`function(chunk)` in the order of the calls, at most 32 MB behind them; all are done at the end of the block.

    Chunks must not be changed before. What the function raises is raised by a later call, or at the end of the block.
    """

    def __init__(self, function: Callable[[Chunk], object]) -> None:
        self._function = function
        self._waiting: deque[tuple[int, Future[object]]] = deque()
        self._behind = 0

    def __enter__(self) -> Beside:
        self._pool = ThreadPoolExecutor(1, "beside")
        return self

    def __call__(self, chunk: Chunk) -> None:
        self._waiting.append((len(chunk), self._pool.submit(self._function, chunk)))
        self._behind += len(chunk)
        while self._behind > _MOST_BEHIND:
            self._finish_one()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        while kind is None and self._waiting:
            self._finish_one()

    def _finish_one(self) -> None:
        size, future = self._waiting.popleft()
        future.result()
        self._behind -= size
