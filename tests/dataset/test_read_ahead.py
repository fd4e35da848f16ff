"""Reading the next thing while one is used."""

from __future__ import annotations

import threading

import pytest

from lora_ext.dataset.read_ahead import read_ahead


def test_order_and_one_ahead() -> None:
    read: list[int] = []
    both = threading.Barrier(2, timeout=10)

    def reader(item: int) -> int:
        read.append(item)
        if item == 1:
            both.wait()  # is being read while 0 is in use
        return item * 10

    results = read_ahead(reader, [0, 1, 2, 3])
    assert next(results) == 0
    both.wait()
    assert list(results) == [10, 20, 30] and read == [0, 1, 2, 3]
    assert list(read_ahead(reader, [])) == []


def test_errors_come_where_their_item_is_wanted() -> None:
    def reader(item: int) -> float:
        return 1 / item

    results = read_ahead(reader, [1, 0, 2])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
