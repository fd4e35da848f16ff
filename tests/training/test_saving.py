from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ext.config.train_config import flat_values, make_config
from lora_ext.networks.sidecar import write_sidecar
from lora_ext.protocols import Events, MessageLevel, UserError
from lora_ext.training import saving
from lora_ext.training.checks import check_replaced
from lora_ext.training.saving import NetworkSaver
from lora_ext.training.state_folders import Position, SavedState, read_state
from lora_ext.training.state_saving import StateSaver


class Messages(Events):
    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def message(self, level: MessageLevel, text: str) -> None:
        self.texts.append((level, text))


def make_saver(folder: Path, events: Events, **values: object) -> NetworkSaver:
    config = make_config({"output_name": "cat", "save_last_n_epochs": 1, **values})
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


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the disk has no room for what is written."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_full_disk_leaves_the_last_good_file_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Messages()
    saver = make_saver(tmp_path, events, save_model_as=kind)
    saver.save_epoch(1, 10)
    before = (tmp_path / f"cat-000001.{kind}").read_bytes()
    fill_disk(monkeypatch)
    saver.save_epoch(2, 20)
    assert [path.name for path in tmp_path.iterdir()] == [f"cat-000001.{kind}"]
    assert (tmp_path / f"cat-000001.{kind}").read_bytes() == before
    ((level, text),) = events.texts
    assert level == "error" and f"cat-000002.{kind} cannot be written (No space left on device): free some" in text
    assert text.endswith("Training goes on.")


def test_a_full_disk_ends_the_run_where_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = make_saver(tmp_path, Messages(), on_disk_full="stop")
    saver.save_epoch(1, 10)
    fill_disk(monkeypatch)
    with pytest.raises(UserError, match=r"No space left on device.*The run ends here, as on_disk_full = stop says"):
        saver.save_epoch(2, 20)
    assert [path.name for path in saver.files] == ["cat-000001.safetensors"]


def test_files_of_steps_are_kept_by_their_age_in_steps(tmp_path: Path) -> None:
    saver = make_saver(tmp_path, Messages(), save_every_n_steps=10, save_last_n_steps=30)
    for step in (10, 20, 30, 33, 40, 50):  # 33 was asked for by a person
        saver.save_step(1, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"cat-step000000{step}.safetensors" for step in (20, 30, 33, 40, 50)
    ]


def test_files_of_the_old_kind_hold_the_same_tensors(tmp_path: Path) -> None:
    make_saver(tmp_path, Messages(), save_model_as="ckpt", save_precision="fp16").save_last(1, 10)
    content = torch.load(tmp_path / "cat.ckpt", weights_only=True)
    assert content == {"a.alpha": torch.ones((), dtype=torch.float16)} and content["a.alpha"].dtype == torch.float16


def test_only_a_network_of_the_old_kind_may_be_replaced(tmp_path: Path) -> None:
    network, checkpoint, odd = (tmp_path / f"{name}.ckpt" for name in ("network", "checkpoint", "odd"))
    torch.save({"lora_unet_x.lora_up.weight": torch.zeros(2)}, network)
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(2)}}, checkpoint)
    odd.write_bytes(b"something else")
    check_replaced([network, tmp_path / "new.ckpt"])
    for path in (checkpoint, odd):
        with pytest.raises(UserError, match="is there already and is no network"):
            check_replaced([path])


def make_states(folder: Path, events: Events, **values: object) -> StateSaver:
    config = make_config({"output_name": "cat", "save_state": True, **values})
    state = SavedState(Position(1, 2, False), [0.5, 0.25], {"a.alpha": torch.ones(())}, {}, flat_values(config), {})
    return StateSaver(config, folder, events, lambda: state, lambda stem, epoch, step: {"ss_epoch": str(epoch)})


def test_a_full_disk_leaves_the_last_good_state_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = Messages()
    states = make_states(tmp_path, events, save_last_n_epochs_state=1)
    states.save_epoch(1)
    fill_disk(monkeypatch)
    states.save_epoch(2)
    assert [path.name for path in tmp_path.iterdir()] == ["cat-000001-state"]
    assert read_state(tmp_path / "cat-000001-state").losses == [0.5, 0.25]
    assert states.states == [tmp_path / "cat-000001-state"]
    level, text = events.texts[-1]
    assert level == "error" and "cannot be written" in text and "No space left on device" in text


def test_a_state_takes_the_place_of_one_of_its_name(tmp_path: Path) -> None:
    states = make_states(tmp_path, Messages())
    (tmp_path / "cat-state.0123abcd.writing").mkdir()  # of a process that was killed
    (tmp_path / "catalogue-state.0123abcd.writing").mkdir()
    states.save_last()
    (tmp_path / "cat-state" / "mark").write_bytes(b"")
    states.save_last()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-state", "catalogue-state.0123abcd.writing"]
    assert not (tmp_path / "cat-state" / "mark").exists()
