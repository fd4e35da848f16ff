"""Work on many modules at once: the order, errors, and torch as it was afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from lora_ext.merge.side_by_side import Workspace, side_by_side

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_come_in_order_whatever_is_done_first() -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))
        return number * 10

    assert list(side_by_side(slow_when_even, range(40), CPU)) == list(range(0, 400, 10))
    assert list(side_by_side(slow_when_even, [], CPU)) == []


def test_every_thread_is_one_of_torchs(threads: int) -> None:
    at_work = threading.Barrier(threads)

    def told(_: int) -> tuple[int, bool, int]:
        at_work.wait(60)
        return torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()

    found = list(side_by_side(told, range(2 * threads), CPU))
    assert {each[:2] for each in found} == {(1, False)}
    assert len({each[2] for each in found}) == threads
    assert torch.is_grad_enabled()


def test_what_is_raised_ends_it_and_what_is_left_is_not_begun() -> None:
    begun = []

    def fails_at_three(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise LookupError("three")
        return number

    found = []
    with pytest.raises(LookupError, match="three"):
        for each in side_by_side(fails_at_three, range(1000), CPU):
            found.append(each)
    assert found == [0, 1, 2]
    assert len(begun) < 100


def test_an_iterator_that_is_given_up_leaves_nothing_running(threads: int) -> None:
    numbers = side_by_side(lambda number: number, range(1000), CPU)
    assert next(numbers) == 0
    numbers.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("modules")]


def test_memory_is_used_again_by_its_own_thread_alone() -> None:
    workspace = Workspace()
    first = workspace.take("up", (3, 4), torch.float32, CPU)
    assert workspace.take("up", (2, 5), torch.float32, CPU).data_ptr() == first.data_ptr()
    assert workspace.take("down", (2, 5), torch.float32, CPU).data_ptr() != first.data_ptr()
    wide = workspace.take("up", (2, 5), torch.float64, CPU)
    assert wide.dtype == torch.float64 and wide.shape == (2, 5)
    assert workspace.take("up", (50, 50), torch.float64, CPU).shape == (50, 50)
    others = []
    thread = threading.Thread(target=lambda: others.append(workspace.take("up", (3, 4), torch.float64, CPU)))
    thread.start()
    thread.join()
    assert others[0].data_ptr() != workspace.take("up", (3, 4), torch.float64, CPU).data_ptr()
