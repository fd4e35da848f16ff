"""The text encoders of a checkpoint, for tools that encode with them: of the loaded one, or from a file alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.patches import TRAINING
from lora_ext.checkpoint.text_part import TextPart
from lora_ext.host.standalone.loader import load_text_encoders
from lora_ext.protocols import Host, UserError


@contextlib.contextmanager
def borrowed_text(host: Host, path: Path, device: torch.device) -> Iterator[TextPart]:
    """Those of the loaded checkpoint, which nobody else has meanwhile; as they were afterwards.

    They are read from its file where it cannot be lent, or another one is loaded by the time that it is.
    """
    with contextlib.ExitStack() as held:
        lent: Checkpoint | None = None
        with contextlib.suppress(UserError):  # --lowvram, weights in 8 bits, nothing loaded
            lent = held.enter_context(host.borrow()).checkpoint
        if lent is not None and lent.path == path:
            yield TextPart.of(lent, TRAINING)
            return
    yield load_text_encoders(path, device)


@contextlib.contextmanager
def stored_text(path: Path, device: torch.device) -> Iterator[TextPart]:
    """Those of a checkpoint's file; nothing else of it is read."""
    yield load_text_encoders(path, device)
