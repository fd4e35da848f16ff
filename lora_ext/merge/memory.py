"""Whether memory suffices, asked before work starts: a machine that runs out of it takes the other programs with it."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import torch

from lora_ext.protocols import UserError

_MEMINFO = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")
_PROCESSOR = torch.device("cpu")


def check_memory(needed_bytes: int, what: str, device: torch.device = _PROCESSOR) -> None:
    """UserError where `device` has less memory left than `what` (a subject: "resizing a.safetensors") is going to take.

    Says nothing where the system does not tell.
    """
    available = available_memory(device)
    if available is None or needed_bytes <= available:
        return
    if device.type == "cuda":
        place, remedy = "of the graphics card", "work on the processor (--device cpu), or unload other models from it"
    else:
        place, remedy = "of memory", "close other programs, unload models, or take fewer or smaller files at once"
    raise UserError(f"{what} takes about {_words(needed_bytes)} {place}, and {_words(available)} are left: {remedy}")


def available_memory(device: torch.device = _PROCESSOR) -> int | None:
    """Bytes that can be taken before anything is swapped out, or on a graphics card fails; None where nothing tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    if sys.platform == "linux":
        return _on_linux()
    if sys.platform == "win32":
        return _on_windows()
    return _on_macos() if sys.platform == "darwin" else None


def _on_linux() -> int | None:
    """What the kernel tells, or less where the container may take less."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    left = [] if found is None else [int(found[1]) * 1024]
    left += _left_in_container("memory.max", "memory.current", "inactive_file")
    left += _left_in_container(
        "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"
    )  # cgroups' first version
    return min(left, default=None)


def _left_in_container(limit: str, used: str, given_back: str) -> list[int]:
    """Bytes up to a control group's limit, with the file cache that it gives back first; nothing without a limit."""
    try:
        most = (_CONTAINER / limit).read_text(encoding="ascii").strip()
        now = int((_CONTAINER / used).read_text(encoding="ascii"))
        statistics = (_CONTAINER / used).with_name("memory.stat").read_text(encoding="ascii")
    except OSError:  # no such group here
        return []
    cache = re.search(rf"^{given_back} (\d+)$", statistics, re.MULTILINE)
    return [int(most) - now + int(cache[1] if cache else 0)] if most.isdigit() else []


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_committed", ctypes.c_uint64),
        ("available_to_commit", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    ]


def _on_windows() -> int | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not getattr(ctypes, "windll").kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # noqa: B009 (not on Linux)
        return None
    return int(min(status.available_physical, status.available_to_commit))


def _on_macos() -> int | None:
    done = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=False)
    size = re.search(r"page size of (\d+) bytes", done.stdout)
    pages = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)\.$", done.stdout, re.MULTILINE)
    return int(size[1]) * sum(map(int, pages)) if size and pages else None


def _words(count: int) -> str:
    return f"{max(count, 0) / 1e6:,.0f} MB"
