"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path


def given_path(text: str) -> Path:
    """The path that somebody has written: without quotes around it, as Windows copies paths, and with ~ resolved."""
    path = Path(text.strip().strip('"'))
    try:
        return path.expanduser()
    except RuntimeError:  # the home of a user that there is not
        return path
