"""A loan holds its host's context while it is lent, nothing while it is suspended, and wants the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_ext.host.loan import Loan, WantedCheckpoint
from lora_ext.protocols import OtherCheckpointError


class Lender:
    def __init__(self) -> None:
        self.loaded = SimpleNamespace(name="cats", path=Path("cats.safetensors"), sha256="c")
        self.held = 0
        self.errors: list[type[BaseException] | None] = []

    @contextmanager
    def take(self, wanted: WantedCheckpoint | None) -> Iterator[Any]:
        if wanted is not None:
            wanted.check(self.loaded.name, self.loaded.path, self.loaded.sha256)
        self.held += 1
        try:
            yield self.loaded
        except BaseException as error:
            self.errors.append(type(error))
            raise
        finally:
            self.held -= 1


def test_nothing_is_held_while_suspended() -> None:
    lender = Lender()
    with Loan(lender.take) as loan:
        first = lender.loaded
        assert lender.held == 1 and loan.checkpoint is first
        loan.suspend()
        assert lender.held == 0
        lender.loaded = SimpleNamespace(name="cats", path=Path("moved.safetensors"), sha256="c")
        loan.resume()
        assert lender.held == 1 and loan.checkpoint is lender.loaded
        loan.suspend()
    assert lender.held == 0


def test_a_failure_inside_reaches_the_hosts_context() -> None:
    lender = Lender()
    with pytest.raises(ZeroDivisionError), Loan(lender.take):
        raise ZeroDivisionError
    assert (lender.held, lender.errors) == (0, [ZeroDivisionError])


def test_another_checkpoint_is_refused_and_may_be_asked_for_again() -> None:
    lender = Lender()
    with Loan(lender.take) as loan:
        own = lender.loaded
        loan.suspend()
        lender.loaded = SimpleNamespace(name="dogs", path=Path("dogs.safetensors"), sha256="d")
        with pytest.raises(OtherCheckpointError, match="trains on cats, and now dogs is loaded: load cats again"):
            loan.resume()
        assert lender.held == 0
        lender.loaded = own
        loan.resume()
        assert lender.held == 1


@pytest.mark.parametrize(
    ("path", "sha256", "same"),
    [
        ("cats.safetensors", "c", True),
        ("elsewhere.safetensors", "c", True),
        ("cats.safetensors", "d", False),  # another file was put in its place
        ("cats.safetensors", "", True),
        ("dogs.safetensors", "", False),
    ],
)
def test_what_counts_as_the_same_checkpoint(path: str, sha256: str, same: bool) -> None:
    assert WantedCheckpoint("cats", Path("cats.safetensors"), "c").is_that(Path(path), sha256) is same
