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
    """`function(chunk)` in the order of the calls, at most 10 MB, or a larger chunk, behind; the block's end waits.

    Chunks must not be changed before. What the function raises, a later call raises, or the end of the block.
    """

    def __init__(self, function: Callable[[Chunk], object]) -> None:
        self._function = function
        self._next: list[Chunk] = []
        self._size = 0
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._behind = 0

    def __enter__(self) -> Beside:
        self._pool = ThreadPoolExecutor(1, "beside")
        return self

    def __call__(self, chunk: Chunk) -> None:
        self._next.append(chunk)
        self._size += len(chunk)
        if self._size >= _AT_ONCE:
            self._begin()
        while self._behind > _MOST_BEHIND and len(self._waiting) > 1:
            self._wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self._begin()
        self._pool.shutdown(cancel_futures=kind is not None)
        while kind is None and self._waiting:
            self._wait()

    def _begin(self) -> None:
        self._waiting.append((self._size, self._pool.submit(self._call, self._next)))
        self._behind += self._size
        self._next, self._size = [], 0

    def _wait(self) -> None:
        size, oldest = self._waiting.popleft()
        oldest.result()
        self._behind -= size

    def _call(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._function(chunk)
