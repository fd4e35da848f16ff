"""Finding files by name, alias and epoch, and noticing what changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lora_ext.networks import library as library_module
from lora_ext.networks.file import cast_tensors, precalculate_hashes, write_network
from lora_ext.networks.library import NetworkLibrary
from lora_ext.protocols import UserError


def write(path: Path, **metadata: str) -> Path:
    write_network(path, {"a.alpha": torch.tensor(1.0)}, {f"ss_{key}": value for key, value in metadata.items()}, "fp16")
    return path


def test_names_and_sub_folders(tmp_path: Path) -> None:
    write(tmp_path / "Zebra.safetensors")
    inner = write(tmp_path / "styles" / "old" / "apple.safetensors")
    (tmp_path / "notes.txt").write_text("no network", encoding="utf-8")
    library = NetworkLibrary([tmp_path, tmp_path / "missing"])
    assert library.names() == ["apple", "Zebra"]
    assert library.find("apple") == inner
    assert library.find("notes") is None


def test_exact_names_come_before_other_letter_cases(tmp_path: Path) -> None:
    upper, lower = write(tmp_path / "1" / "CAT.safetensors"), write(tmp_path / "2" / "cat.safetensors")
    library = NetworkLibrary([tmp_path])
    assert library.find("cat") == lower
    assert library.find("CAT") == upper
    assert library.find("Cat") == upper


def test_earlier_folders_come_first(tmp_path: Path) -> None:
    write(tmp_path / "a" / "cat.safetensors")
    second = write(tmp_path / "b" / "cat.safetensors")
    assert NetworkLibrary([tmp_path / "b", tmp_path / "a"]).find("cat") == second


def test_names_with_dots_and_signs(tmp_path: Path) -> None:
    path = write(tmp_path / "cat.v1.2 (new)+.safetensors")
    epoch = write(tmp_path / "cat.v1.2 (new)+-000001.safetensors")
    library = NetworkLibrary([tmp_path])
    assert library.find("cat.v1.2 (new)+") == path
    assert library.epochs_of("cat.v1.2 (new)+") == [(1, epoch), (None, path)]


def test_alias(tmp_path: Path) -> None:
    path = write(tmp_path / "renamed.safetensors", output_name="original")
    write(tmp_path / "one.safetensors", output_name="shared")
    write(tmp_path / "two.safetensors", output_name="shared")
    library = NetworkLibrary([tmp_path])
    assert library.find("original") == path
    assert library.find("shared") is None
    shadow = write(tmp_path / "original.safetensors")
    assert library.find("original") == shadow


def test_pickled_files_are_offered_without_their_text_encoders(tmp_path: Path) -> None:
    for name in ("old.pt", "old_txt.pt", "other.ckpt", "lonely_txt.pt"):
        (tmp_path / name).write_bytes(b"PK")
    library = NetworkLibrary([tmp_path])
    assert library.names() == ["lonely_txt", "old", "other"]
    assert library.find("old") == tmp_path / "old.pt"
    path = write(tmp_path / "old.safetensors")
    assert library.find("old") == path


def test_new_and_changed_files_are_noticed(tmp_path: Path) -> None:
    library = NetworkLibrary([tmp_path])
    assert library.find("cat") is None
    path = write(tmp_path / "cat.safetensors", output_name="first")
    assert library.find("cat") == path
    assert library.alias(path) == "first"
    write(path, output_name="another one")
    assert library.alias(path) == "another one"
    path.unlink()
    assert library.find("cat") is None
    assert library.alias(path) is None


def test_metadata_are_read_once_for_each_state_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    scan = library_module.read_metadata
    monkeypatch.setattr(library_module, "read_metadata", lambda path: (read.append(path), scan(path))[1])
    good, broken = write(tmp_path / "a.safetensors", output_name="alias"), tmp_path / "b.safetensors"
    broken.write_bytes(b"broken")
    library = NetworkLibrary([tmp_path])
    assert [library.find("alias") for _ in range(3)] == [good] * 3
    assert sorted(read) == [good, broken]
    write(good, output_name="new alias")
    assert library.find("alias") is None
    assert library.find("new alias") == good
    assert sorted(read) == [good, good, broken]


def test_a_folder_within_another_one(tmp_path: Path) -> None:
    """Its files are there once: an alias of one of them is not shared."""
    path = write(tmp_path / "sub" / "cat.safetensors", output_name="alias")
    assert NetworkLibrary([tmp_path, tmp_path / "sub"]).find("alias") == path


def test_a_file_is_found_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders are gone through once, however many files there are."""
    for name in "abc":
        write(tmp_path / f"{name}.safetensors", output_name=name)
    tensors = {"a.alpha": torch.tensor(2.0)}
    write_network(tmp_path / "sub" / "other.safetensors", tensors, {}, "fp16")
    library, walks, walk = NetworkLibrary([tmp_path]), [], os.walk
    monkeypatch.setattr(os, "walk", lambda *args, **options: (walks.append(args), walk(*args, **options))[1])
    digits, _ = precalculate_hashes(cast_tensors(tensors, "fp16"), {})
    assert library.find_hash(digits[:12]) == tmp_path / "sub" / "other.safetensors"
    assert library.find_hash("0" * 12) is None
    assert len(walks) == 2


def test_epochs_in_order_with_the_last_file_at_the_end(tmp_path: Path) -> None:
    run = {"session_id": "7", "training_started_at": "100.0"}
    paths = [write(tmp_path / f"cat-{epoch:06}.safetensors", **run) for epoch in (1, 2, 10)]
    last = write(tmp_path / "cat.safetensors", epoch="12", **run)
    for other in ("cat-step00000100", "cat-2", "tomcat-000001", "cat-0000001", "cat-hat-000003"):
        write(tmp_path / f"{other}.safetensors", **run)
    library = NetworkLibrary([tmp_path])
    assert library.epochs_of("cat") == [(1, paths[0]), (2, paths[1]), (10, paths[2]), (12, last)]
    assert library.epochs_of("dog") == []


def test_epochs_that_an_earlier_run_left_are_left_out(tmp_path: Path) -> None:
    old = {"session_id": "1", "training_started_at": "900.5"}
    new = {"session_id": "2", "training_started_at": "1000.5"}
    for epoch in (3, 4):
        write(tmp_path / f"cat-{epoch:06}.safetensors", **old)
    first = write(tmp_path / "cat-000001.safetensors", **new)
    last = write(tmp_path / "cat.safetensors", epoch="5", **old)
    library = NetworkLibrary([tmp_path])
    assert library.epochs_of("cat") == [(1, first)]
    write(last, epoch="2", **new)
    assert library.epochs_of("cat") == [(1, first), (2, last)]
    foreign = write(tmp_path / "cat-000009.safetensors")
    assert library.epochs_of("cat") == [(1, first), (9, foreign), (2, last)]


def test_a_live_file_goes_by_its_name_for_a_while(tmp_path: Path) -> None:
    live = write(tmp_path / "run" / "paused.safetensors")
    ordinary = write(tmp_path / "networks" / "cat-live.safetensors")
    library = NetworkLibrary([tmp_path / "networks"])
    library.set_live("cat-live", live)
    assert library.find("cat-live") == live
    assert library.is_live("cat-live") and not library.is_live("cat")
    assert library.names() == ["cat-live"]
    library.set_live("cat-live", None)
    library.set_live("never-there", None)
    assert library.find("cat-live") == ordinary and not library.is_live("cat-live")
    assert library.find("paused") is None


def test_the_file_of_an_epoch(tmp_path: Path) -> None:
    """By the run's name, by an epoch's own name (pasted infotexts have it), and by what training called it."""
    started = {"training_started_at": "1", "session_id": "1"}
    first = write(tmp_path / "cat-000001.safetensors", **started, epoch="1")
    last = write(tmp_path / "cat.safetensors", **started, epoch="2", output_name="my cat")
    library = NetworkLibrary([tmp_path])
    for name in ("cat", "cat-000001", "my cat"):
        assert library.find(name, 1) == first
        assert library.find(name, 2) == library.find(name, "last") == last
    assert library.find("dog", 1) is None
    with pytest.raises(UserError, match="cat has no file of epoch 3: there are 1, 2, and last"):
        library.find("cat", 3)
