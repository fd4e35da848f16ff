"""Seeds of a run's own random streams."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass


def derived_seed(*numbers: int) -> int:
    """A 64-bit seed for the stream that `numbers` name (seed, epoch, …), the same on every machine.

    All 32 lower bits depend on every number: torch's CPU generator takes no others.
    """
    text = ",".join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=8).digest(), "little")


def random_for(seed: int, stream: str, *numbers: int) -> random.Random:
    """Random numbers for one purpose ("caption", "flip", …), independent of every other purpose and numbers."""
    text = ":".join([str(seed), stream, *(str(number) for number in numbers)])
    return random.Random(int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little"))


@dataclass(frozen=True)
class Occurrence:
    """A picture as it comes up once in an epoch: what is drawn for it depends on this and the seed alone.

    `epoch` counts from 1, `picture` is its place in the scan, `repeat` counts from 0.
    """

    epoch: int
    picture: int
    repeat: int

    def random(self, seed: int, stream: str) -> random.Random:
        """Random numbers of this occurrence for one purpose ("caption", "flip", …)."""
        return random_for(seed, stream, self.epoch, self.picture, self.repeat)
