"""How often regularisation pictures come up: as often as the pictures that are trained on."""

from __future__ import annotations

from collections.abc import Sequence


def raised_repeats(own: Sequence[int], wanted: int) -> list[int]:
    """Repeats of each regularisation picture so that they come up `wanted` times, as sd-scripts deals them out.

    First each with its `own` repeats until there are enough, the rest unused; then one more each in turn.
    """
    repeats = [0] * len(own)
    total = 0
    for index, count in enumerate(own):
        if total >= wanted:
            return repeats
        repeats[index] = count
        total += count
    while own and total < wanted:
        for index in range(min(len(own), wanted - total)):
            repeats[index] += 1
            total += 1
    return repeats
