"""Calls that another thread makes meanwhile."""

from __future__ import annotations

import threading
import time

import pytest

from lora_ext.networks import beside
from lora_ext.networks.beside import Beside


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_AT_ONCE", 10)
    monkeypatch.setattr(beside, "_MOST_BEHIND", 40)


def test_all_is_done_in_order_by_one_other_thread() -> None:
    found: list[bytes] = []
    threads = set()

    def take(chunk: bytes) -> None:
        found.append(bytes(chunk))
        threads.add(threading.get_ident())

    chunks = [bytes([number]) * (number % 17) for number in range(200)]
    with Beside(take) as function:
        for chunk in chunks:
            function(chunk)
    assert found == chunks
    assert len(threads) == 1 and threading.get_ident() not in threads
    with Beside(take):
        pass
    assert found == chunks


@pytest.mark.parametrize(("size", "calls", "behind"), [(10, 100, 60), (1000, 20, 1000)])
def test_it_is_never_far_behind(size: int, calls: int, behind: int) -> None:
    """And of chunks that are larger than that it waits for each."""
    done = 0

    def take(chunk: bytes) -> None:
        nonlocal done
        time.sleep(0.002)
        done += len(chunk)

    with Beside(take) as function:
        for number in range(calls):
            function(bytes(size))
            assert size * (number + 1) - done <= behind
    assert done == size * calls


@pytest.mark.parametrize("calls", [1, 100])
def test_what_goes_wrong_there_is_raised_here(calls: int) -> None:
    def full(chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), Beside(full) as function:
        for _ in range(calls):
            function(b"0123456789")


def test_what_goes_wrong_here_ends_it() -> None:
    taken: list[int] = []
    with pytest.raises(LookupError, match="here"), Beside(lambda chunk: taken.append(len(chunk))) as function:
        function(b"0123456789")
        raise LookupError("here")
    assert not [each for each in threading.enumerate() if each.name.startswith("beside")]
