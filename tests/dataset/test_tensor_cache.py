"""Files of tensors: found by their key, and never trusted blindly."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_ext.dataset.tensor_cache import FOLDER_NAME, TensorCache, delete_leftovers, hidden_part

KEY = {"content": "abc", "vae": "1"}


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(warnings: list[str]) -> TensorCache:
    return TensorCache("latents", warnings.append)


@pytest.fixture
def written(cache: TensorCache, tmp_path: Path) -> Path:
    """The one file, with mean = 0 … 7."""
    cache.write(tmp_path, KEY, {"mean": torch.arange(8.0)})
    [path] = (tmp_path / FOLDER_NAME).iterdir()
    return path


def test_what_was_written_is_read(cache: TensorCache, written: Path, tmp_path: Path) -> None:
    assert written.name.startswith("latents-") and written.suffix == ".safetensors"
    found = cache.read(tmp_path, KEY)
    assert found is not None and found["mean"].equal(torch.arange(8.0))
    assert load_file(written)["mean"].equal(torch.arange(8.0))


@pytest.mark.parametrize(
    "key", [{**KEY, "content": "abd"}, {**KEY, "vae": "2"}, {"content": "abc"}, {**KEY, "more": ""}]
)
def test_another_key_finds_nothing(key: dict[str, str], cache: TensorCache, written: Path, tmp_path: Path) -> None:
    assert cache.read(tmp_path, key) is None
    assert TensorCache("encodings", print).read(tmp_path, KEY) is None


def test_truncated_files_are_not_there(cache: TensorCache, written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    for length in range(len(content)):
        written.write_bytes(content[:length])
        assert cache.read(tmp_path, KEY) is None
    cache.write(tmp_path, KEY, {"mean": torch.arange(8.0)})
    assert cache.read(tmp_path, KEY) is not None


def test_any_changed_byte_is_noticed(cache: TensorCache, written: Path, tmp_path: Path) -> None:
    content = bytearray(written.read_bytes())
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x10
        written.write_bytes(changed)
        found = cache.read(tmp_path, KEY)
        assert found is None or found["mean"].equal(torch.arange(8.0))


def test_foreign_files_are_not_there(cache: TensorCache, written: Path, tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 100, b"PK\x03\x04", b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}"):
        written.write_bytes(content)
        assert cache.read(tmp_path, KEY) is None
    save_file({"mean": torch.arange(8.0)}, written)
    assert cache.read(tmp_path, KEY) is None
    written.unlink()
    written.mkdir()
    assert cache.read(tmp_path, KEY) is None


def test_nothing_is_written_in_hidden_folders(cache: TensorCache, warnings: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        cache.write(tmp_path / ".data" / "cats", KEY, {"mean": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []
    assert len(warnings) == 1 and "lies in a hidden folder (.data)" in warnings[0]
    assert hidden_part(tmp_path / "cats") is None


def test_a_full_disk_is_said_once(
    cache: TensorCache, warnings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for _ in range(2):
        cache.write(tmp_path, KEY, {"mean": torch.zeros(1)})
    assert list((tmp_path / FOLDER_NAME).iterdir()) == []
    assert len(warnings) == 1 and "No space left on device" in warnings[0] and "goes on" in warnings[0]


def test_old_leftovers_are_deleted(written: Path, tmp_path: Path) -> None:
    old, new = written.with_name("a.1234.writing"), written.with_name("b.1234.writing")
    old.touch()
    new.touch()
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    os.utime(written, (two_hours_ago, two_hours_ago))
    delete_leftovers(tmp_path)
    assert sorted((tmp_path / FOLDER_NAME).iterdir()) == sorted([written, new])
