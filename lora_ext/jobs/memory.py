"""How much memory a run takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

_GB = 1e9


def memory_in_use() -> float | None:
    """GB: the most that was taken of the graphics card so far, or else what this program takes now.

    None where the system does not tell. Never waits for the device.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / _GB
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / _GB
    return None
