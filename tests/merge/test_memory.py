"""Memory is asked before work starts: what the systems tell, and what a person is told."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_ext.merge import memory
from lora_ext.merge.memory import available_memory, check_memory
from lora_ext.protocols import UserError

MEMINFO = "MemTotal:       24000000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\nCached: 5 kB\n"
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            400000.
Pages inactive:                           30000.
Pages speculative:                         2000.
Pages purgeable:                          90000.
"File-backed pages":                     123456.
"""


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux with 2,048,000,000 bytes left; the folder in which its control groups would be."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO, encoding="ascii")
    groups = tmp_path / "cgroup"
    (groups / "memory").mkdir(parents=True)
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CONTAINER", groups)
    monkeypatch.setattr(sys, "platform", "linux")
    return groups


@pytest.mark.skipif(not sys.platform.startswith(("linux", "win", "darwin")), reason="nothing tells here")
def test_this_machine_tells() -> None:
    left = available_memory()
    assert left is not None
    assert 50e6 < left < 1e14


def test_the_message_names_both_figures_and_the_remedy(linux: Path) -> None:
    check_memory(2_048_000_000, "resizing a.safetensors")
    with pytest.raises(UserError) as refused:
        check_memory(2_500_000_000, "resizing a.safetensors")
    assert str(refused.value) == (
        "resizing a.safetensors takes about 2,500 MB of memory, and 2,048 MB are left: close other programs, unload "
        "models, or take fewer or smaller files at once"
    )


@pytest.mark.parametrize(
    ("limit", "used", "cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_may_have_less(linux: Path, limit: str, used: str, cache: str) -> None:
    (linux / limit).write_text("1000000000\n", encoding="ascii")
    (linux / used).write_text("800000000\n", encoding="ascii")
    (linux / used).with_name("memory.stat").write_text(f"anon 5\n{cache} 300000000\n", encoding="ascii")
    assert available_memory() == 500_000_000
    (linux / limit).write_text("max\n", encoding="ascii")
    assert available_memory() == 2_048_000_000


def test_windows_tells_the_smaller_of_memory_and_what_can_be_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(reference: Any) -> int:
        status = reference._obj
        assert status.length == 64  # Windows refuses any other size
        status.available_physical, status.available_to_commit = 7_000_000_000, 3_000_000_000
        return 1

    kernel = SimpleNamespace(GlobalMemoryStatusEx=told)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert available_memory() == 3_000_000_000
    kernel.GlobalMemoryStatusEx = lambda reference: 0
    assert available_memory() is None


def test_macos_counts_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=VM_STAT))
    assert available_memory() == 42000 * 16384


def test_a_graphics_card_counts_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000_000_000, 8_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 900_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 400_000_000)
    card = torch.device("cuda")
    check_memory(1_500_000_000, "merging", card)
    with pytest.raises(
        UserError, match=r"merging takes about 2,000 MB of the graphics card, and 1,500 MB are left.*cpu"
    ):
        check_memory(2_000_000_000, "merging", card)


def test_a_system_that_tells_nothing_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    check_memory(10**15, "merging")
