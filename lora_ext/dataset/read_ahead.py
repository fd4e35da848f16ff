"""Reading what comes next while something is done with what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")


def read_ahead(read: Callable[[_Item], _Read], items: Sequence[_Item]) -> Iterator[_Read]:
    """What `read` makes of each item, in order; it reads the next one in a thread of its own meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = [reader.submit(read, item) for item in items[:1]]
        for position in range(len(items)):
            there = coming.pop().result()
            coming += [reader.submit(read, following) for following in items[position + 1 : position + 2]]
            yield there
