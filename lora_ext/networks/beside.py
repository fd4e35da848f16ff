"""Calls that another thread makes meanwhile: hashing and writing what the next bytes are computed beside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

Chunk = bytes | memoryview
"""A part of a file's content."""

_AT_ONCE, _MOST_BEHIND = 2**21, 2**23  # bytes


class Beside:
    """`function(chunk)` in the order of the calls, at most 10 MB behind; all are done at the end of the block.

    Chunks must not be changed before. What the function raises, a later call raises, or the end of the block.
    """

    def __init__(self, function: Callable[[Chunk], object]) -> None:
        self._function = function
        self._next: list[Chunk] = []
        self._size = 0
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Beside:
        self._pool = ThreadPoolExecutor(1, "beside")
        return self

    def __call__(self, chunk: Chunk) -> None:
        self._next.append(chunk)
        self._size += len(chunk)
        if self._size >= _AT_ONCE:
            self._begin()
        while len(self._waiting) > _MOST_BEHIND // _AT_ONCE:
            self._waiting.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self._begin()
        self._pool.shutdown(cancel_futures=kind is not None)
        while kind is None and self._waiting:
            self._waiting.popleft().result()

    def _begin(self) -> None:
        self._waiting.append(self._pool.submit(self._call, self._next))
        self._next, self._size = [], 0

    def _call(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._function(chunk)
