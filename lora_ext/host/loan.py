"""A checkpoint lent to a training: given back for as long as that pauses, and the same one taken again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.protocols import OtherCheckpointError


@dataclass(frozen=True)
class WantedCheckpoint:
    """The checkpoint that a paused training goes on with, and whether it is to be loaded where another one is."""

    name: str
    path: Path | None
    sha256: str
    load: bool = False

    def is_that(self, path: Path | None, sha256: str) -> bool:
        """Whether what is loaded is that checkpoint: the same content, or the same file where a hash is not known."""
        if self.sha256 and sha256:
            return self.sha256 == sha256
        return self.path == path

    def check(self, name: str, path: Path | None, sha256: str) -> None:
        """Raise OtherCheckpointError where something else is loaded."""
        if not self.is_that(path, sha256):
            raise OtherCheckpointError(self.name, name)


class Loan:
    """A `Borrow` for the block that it is entered with.

    `take` makes the context in which a checkpoint is borrowed, the wanted one after a pause. A pause leaves that
    context, so while it lasts nothing is held at all.
    """

    def __init__(self, take: Callable[[WantedCheckpoint | None], AbstractContextManager[Checkpoint]]) -> None:
        self._take = take
        self._held = ExitStack()
        self._checkpoint: Checkpoint | None = None

    def __enter__(self) -> Loan:
        self._checkpoint = self._held.enter_context(self._take(None))
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.__exit__(*exception)  # type: ignore[arg-type]

    @property
    def checkpoint(self) -> Checkpoint:
        """The borrowed checkpoint; while suspended, the one that was."""
        if self._checkpoint is None:
            raise RuntimeError("the checkpoint is not borrowed yet: enter the block first")
        return self._checkpoint

    def suspend(self) -> None:
        """Give the checkpoint back for a while."""
        self._held.close()

    def resume(self, load_checkpoint: bool = False) -> None:
        """Borrow the same checkpoint again; UserError where that is not possible now, and nothing is held then."""
        had = self.checkpoint
        wanted = WantedCheckpoint(had.name, had.path, had.sha256, load_checkpoint)
        self._checkpoint = self._held.enter_context(self._take(wanted))
