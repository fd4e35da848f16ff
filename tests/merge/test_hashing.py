"""Hashes that are computed beside other work."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from lora_ext.merge.hashing import hashes_beside
from lora_ext.protocols import UserError


def test_hashes_are_those_of_the_whole_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("large", "empty")]
    paths[0].write_bytes(bytes(range(256)) * 9000)
    paths[1].write_bytes(b"")
    with hashes_beside(paths) as hash_of:
        assert [hash_of(path) for path in paths] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_an_error_ends_the_thread_and_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0" * 1000)
    with pytest.raises(ZeroDivisionError), hashes_beside([path] * 3):
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hashes")]
    with hashes_beside([tmp_path / "none"]) as hash_of, pytest.raises(UserError, match="none cannot be read"):
        hash_of(tmp_path / "none")
