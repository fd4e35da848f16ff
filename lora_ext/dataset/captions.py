"""Captions as they are handed to the text encoder."""

from __future__ import annotations

import random


def split_tags(caption: str) -> list[str]:
    """The comma-separated tags of a caption, stripped; empty ones are left out."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def shuffle_caption(caption: str, keep_tokens: int, rng: random.Random) -> str:
    """The caption with its tags in a new order; the first `keep_tokens` stay in front (sd-scripts' shuffle_caption)."""
    tags = split_tags(caption)
    fixed, flexible = tags[:keep_tokens], tags[keep_tokens:]
    rng.shuffle(flexible)
    return ", ".join(fixed + flexible)
