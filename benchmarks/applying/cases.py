"""What is compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A kind of model in one dtype, and networks for it; `threads` 0 is torch's own choice."""

    kind: str
    dtype: str
    rank: int
    with_convolutions: bool
    with_text: bool
    rounds: int
    threads: int
    device: str
