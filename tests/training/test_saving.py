from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ext.config.train_config import make_config
from lora_ext.networks.sidecar import write_sidecar
from lora_ext.protocols import Events, MessageLevel, UserError
from lora_ext.training import saving
from lora_ext.training.saving import NetworkSaver


class Messages(Events):
    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def message(self, level: MessageLevel, text: str) -> None:
        self.texts.append((level, text))


def make_saver(folder: Path, events: Events) -> NetworkSaver:
    config = make_config({"output_name": "cat", "save_last_n_epochs": 1})
    return NetworkSaver(
        config, folder, events, lambda: {"a.alpha": torch.ones(())}, lambda stem, epoch, step: {"ss_epoch": str(epoch)}
    )


def refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let files of these names be impossible to write."""
    write = saving.write_network

    def write_some(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], precision: str) -> None:
        if path.name in names:
            raise UserError(f"{path} cannot be written")
        write(path, tensors, metadata, precision)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_network", write_some)


def test_an_epoch_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = Messages()
    saver = make_saver(tmp_path, events)
    refuse(monkeypatch, "cat-000001.safetensors")
    saver.save_epoch(1, 10)
    saver.save_epoch(2, 20)
    assert [path.name for path in saver.files] == ["cat-000002.safetensors"]
    ((level, text),) = events.texts
    assert level == "error" and "cat-000001.safetensors cannot be written. Training goes on." in text


def test_a_last_file_whose_place_is_taken_gets_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = Messages()
    saver = make_saver(tmp_path, events)
    refuse(monkeypatch, "cat.safetensors")
    saver.save_last(3, 30)
    assert [path.name for path in saver.files] == ["cat-step00000030.safetensors"]
    assert "The network is in cat-step00000030.safetensors instead." in events.texts[0][1]
    refuse(monkeypatch, "cat-step00000030.safetensors")
    with pytest.raises(UserError, match="cannot be written"):
        saver.save_last(3, 30)


def test_only_files_of_this_run_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "cat-000001.safetensors").write_bytes(b"of an earlier run")
    saver = make_saver(tmp_path, Events())
    saver.save_epoch(2, 20)
    saver.save_epoch(3, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-000001.safetensors", "cat-000003.safetensors"]


def test_a_deleted_epoch_takes_its_card_along(tmp_path: Path) -> None:
    saver = make_saver(tmp_path, Messages())
    for epoch in (1, 2):
        saver.save_epoch(epoch, 10 * epoch)
        write_sidecar(saver.files[-1], {"ss_epoch": str(epoch)}, b"picture")
    (tmp_path / "cat-000002.json").write_text('{"notes": "mine"}', encoding="utf-8")
    saver.save_epoch(3, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cat-000002.json", "cat-000002.png", "cat-000003.safetensors",
    ]  # fmt: skip
