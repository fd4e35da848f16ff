"""Seeds of a run's own random streams."""

from __future__ import annotations

import hashlib


def derived_seed(*numbers: int) -> int:
    """A 64-bit seed for the stream that `numbers` name (seed, epoch, …), the same on every machine.

    All 32 lower bits depend on every number: torch's CPU generator takes no others.
    """
    text = ",".join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=8).digest(), "little")
