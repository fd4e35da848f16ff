"""A save that fails or is killed leaves the file that was there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ext.networks import atomic_write
from lora_ext.networks.atomic_write import replace_file
from lora_ext.protocols import UserError

ROOT = Path(__file__).parents[2]
KILLED_WRITER = """
import os, sys, time
from pathlib import Path
import torch
from lora_ext.networks.file import write_network

def hang(descriptor):
    print("writing", flush=True)
    time.sleep(600)

os.fsync = hang
write_network(Path(sys.argv[1]), {"a.alpha": torch.ones(100_000)}, {"ss_epoch": "2"}, "float")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writing_and_replacing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.safetensors"
    replace_file(path, [b"one", b"two"])
    replace_file(path, [b"three"])
    assert path.read_bytes() == b"three"
    assert names(path.parent) == ["a.safetensors"]


def test_folders_that_were_made_for_a_file_that_fails_go_with_it(tmp_path: Path) -> None:
    def stopped() -> Iterator[bytes]:
        yield b"one"
        raise KeyboardInterrupt

    def disturbed() -> Iterator[bytes]:
        (tmp_path / "new" / "mine.txt").write_text("kept", encoding="utf-8")
        yield from stopped()

    for chunks, left in ((stopped(), []), (disturbed(), ["new"])):
        with pytest.raises(KeyboardInterrupt):
            replace_file(tmp_path / "new" / "folder" / "a.safetensors", chunks)
        assert names(tmp_path) == left
    assert names(tmp_path / "new") == ["mine.txt"]


def test_what_is_known_at_the_end_alone_stands_at_the_beginning(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.safetensors", []

    def chunks() -> Iterator[bytes]:
        for chunk in (b"????", b"one", b"two"):
            seen.append(chunk)
            yield chunk

    replace_file(path, chunks(), lambda: b"%04d" % sum(map(len, seen)))
    assert path.read_bytes() == b"0010onetwo"


def test_a_killed_save_leaves_the_previous_file_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    replace_file(path, [b"the previous epoch"])
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == b"writing"
        assert len(names(tmp_path)) == 2
        replace_file(tmp_path / "other.safetensors", [b"by another process, which leaves the live one's file alone"])
        assert len(names(tmp_path)) == 3
        writer.kill()
    assert path.read_bytes() == b"the previous epoch"
    assert len(names(tmp_path)) == 3
    replace_file(tmp_path / "b.safetensors", [b"the next epoch"])
    assert names(tmp_path) == ["a.safetensors", "b.safetensors", "other.safetensors"]
    assert path.read_bytes() == b"the previous epoch"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.safetensors"
    replace_file(path, [b"the previous epoch"])

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_write.os, step, fail)
    with pytest.raises(
        UserError, match=r"a\.safetensors cannot be written \(No space left on device\): free some space"
    ):
        replace_file(path, [b"new"])
    assert path.read_bytes() == b"the previous epoch"
    assert names(tmp_path) == ["a.safetensors"]


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    replace_file(path, [b"the previous epoch"])

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, chunks())
    assert path.read_bytes() == b"the previous epoch"
    assert names(tmp_path) == ["a.safetensors"]


def test_a_folder_that_cannot_be_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        replace_file(tmp_path / "file" / "a.safetensors", [b"x"])


def test_a_folder_in_the_files_place_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.mkdir()
    with pytest.raises(UserError, match=r"a\.safetensors cannot be written"):
        replace_file(path, [b"x"])
    assert names(tmp_path) == ["a.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
def test_room_that_runs_out_in_the_middle_leaves_nothing_over(tmp_path: Path) -> None:
    """Closing the file fails there as well as writing: its buffer is still full."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            replace_file(tmp_path / "cat.safetensors", [b"x" * 600, b"y" * 600])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []
