"""The text encoders of a checkpoint by themselves, for those who change their weights and encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint, TextEncoder
from lora_ext.checkpoint.patches import PatchLedger


@dataclass(frozen=True)
class TextPart:
    """The text encoders of a checkpoint, in the order in which their states stand side by side.

    Whoever was given it may change the weights through `ledger` in the name of `owner`.
    """

    name: str
    architecture: Architecture
    encoders: Sequence[TextEncoder]
    owner: str
    ledger: PatchLedger = field(default_factory=PatchLedger)

    @staticmethod
    def of(checkpoint: Checkpoint, owner: str) -> TextPart:
        """That of a loaded checkpoint."""
        return TextPart(checkpoint.name, checkpoint.architecture, checkpoint.text_encoders, owner, checkpoint.ledger)
