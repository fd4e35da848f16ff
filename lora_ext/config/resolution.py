"""The training size as a text."""

from __future__ import annotations


def resolution_of(text: str) -> tuple[int, int] | None:
    """(width, height) in pixels from "512" or "512,768"; None where the text is neither."""
    parts = [part.strip() for part in text.replace("x", ",").split(",")]
    if len(parts) not in (1, 2) or not all(part.isdecimal() for part in parts):
        return None
    width, height = int(parts[0]), int(parts[-1])
    return (width, height) if width >= 8 and height >= 8 and width % 8 == 0 and height % 8 == 0 else None
