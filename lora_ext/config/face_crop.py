"""The range of face sizes as a text."""

from __future__ import annotations

import math


def face_crop_range(text: str) -> tuple[float, float] | None:
    """(smallest, largest) of "2.0,4.0", None of an empty text; ValueError where the text is neither."""
    if not text.strip():
        return None
    smallest, largest = (float(part) for part in text.split(","))
    if not 0 < smallest <= largest < math.inf:
        raise ValueError(f"{text!r} is no range")
    return smallest, largest
