"""The text encoders of a checkpoint, for tools that encode with them: of the loaded one, or from a file alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from lora_ext.checkpoint.patches import TRAINING
from lora_ext.checkpoint.text_part import TextPart
from lora_ext.host.standalone.loader import load_text_encoders
from lora_ext.protocols import Host


@contextlib.contextmanager
def borrowed_text(host: Host) -> Iterator[TextPart]:
    """Those of the loaded checkpoint, which nobody else has meanwhile; as they were afterwards."""
    with host.borrow() as borrow:
        yield TextPart.of(borrow.checkpoint, TRAINING)


@contextlib.contextmanager
def stored_text(path: Path, device: torch.device) -> Iterator[TextPart]:
    """Those of a checkpoint's file; nothing else of it is read."""
    yield load_text_encoders(path, device)
