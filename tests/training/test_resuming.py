"""A run that ends somewhere and goes on from its state comes to the very file that it would have come to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.sources import scan_dataset
from lora_ext.networks.file import read_network
from lora_ext.protocols import Control, Events, MessageLevel, StepReport, UserError
from lora_ext.training.resuming import _changed_pictures, facts_of
from lora_ext.training.run import TrainingResult
from lora_ext.training.state_folders import latest_state, read_state
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


class Stopping(Events):
    """Stops or cancels a run after a step, and keeps what it says."""

    def __init__(self, control: Control, after: int | None = None, cancel: bool = False) -> None:
        self.control = control
        self.after = after
        self.cancel = cancel
        self.steps: list[int] = []
        self.messages: list[str] = []

    def step(self, report: StepReport) -> None:
        self.steps.append(report.step)
        if report.step == self.after:
            (self.control.cancel if self.cancel else self.control.stop)()

    def message(self, level: MessageLevel, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def train(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., tuple[TrainingResult, Stopping]]:
    """Trains into the folder of this name, up to a step where one is given."""

    def run(
        config: TrainConfig, folder: str, after: int | None = None, cancel: bool = False
    ) -> tuple[TrainingResult, Stopping]:
        control = Control()
        events = Stopping(control, after, cancel)
        return Trainer(checkpoint, config, tmp_path / folder, events, control).run(), events

    return run


def with_resume(config: TrainConfig, **values: Any) -> TrainConfig:
    return replace(config, saving=replace(config.saving, **{"resume": "latest", **values}))


def hash_of(result: TrainingResult) -> str:
    return read_network(result.files[-1]).metadata["sshs_model_hash"]


def test_a_run_that_is_stopped_again_and_again_goes_on_bit_for_bit(train: Any, small_config: MakeConfig) -> None:
    config = small_config(
        save_state_on_train_end=True, shuffle_caption=True, gradient_accumulation_steps=2, lr_scheduler="cosine",
        network_train_unet_only=True, optimizer_type="Prodigy", learning_rate=1, ema_decay=0.9,
    )  # fmt: skip
    whole, _ = train(config, "whole")
    assert whole.steps == 4  # two windows an epoch, of two batches and of one
    train(config, "parts", after=1)  # in the middle of an epoch, then at its end, then in the middle of the last
    for after in (2, 3, None):
        result, events = train(with_resume(config), "parts", after)
        before = events.steps[0] - 1
        assert f"Goes on after step {before} of 4." in events.messages
        assert events.steps == list(range(before + 1, (after or 4) + 1))
    assert (hash_of(result), result.losses) == (hash_of(whole), whole.losses)
    names = [{path.name for path in each.files} for each in (whole, result)]
    assert names[0] == names[1] == {"cat-000001.safetensors", "cat.safetensors"}
    assert result.files[-1].name == "cat.safetensors"
    assert len({read_network(path).metadata["ss_session_id"] for path in result.files}) == 1


def test_states_lie_beside_the_files_and_are_deleted_as_they_are(train: Any, small_config: MakeConfig) -> None:
    config = small_config(
        max_train_epochs=4, save_state=True, save_last_n_epochs=2, save_last_n_epochs_state=1, save_every_n_steps=4,
        save_last_n_steps=4, network_train_unet_only=True,
    )  # fmt: skip
    result, _ = train(config, "out")
    folder = result.files[-1].parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "cat-000002.safetensors", "cat-000003-state", "cat-000003.safetensors", "cat-state", "cat-step00000008-state",
        "cat-step00000008.safetensors", "cat-step00000012-state", "cat-step00000012.safetensors", "cat.safetensors",
    ]  # fmt: skip
    assert latest_state(folder, "cat") == folder / "cat-state"
    assert sorted(path.name for path in (folder / "cat-state").iterdir()) == [
        "network.safetensors", "settings.toml", "state.json", "state.safetensors",
    ]  # fmt: skip
    plan_files = sorted(path.name for path in result.files)
    assert plan_files == sorted(path.name for path in folder.glob("*.safetensors"))


def test_what_has_changed_is_named_and_refused(
    train: Any, small_config: MakeConfig, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = small_config(save_state_on_train_end=True, network_train_unet_only=True)
    train(config, "out", after=2)
    folder = Path(config.dataset.train_data_dir) / "2_cat"
    (folder / "0.txt").write_text("a dog", encoding="utf-8")
    shutil.copyfile(folder / "1.png", folder / "2.png")
    shutil.copyfile(folder / "1.png", folder / "new.png")
    changed = replace(config, learning=replace(config.learning, learning_rate=0.5, max_train_epochs=3))
    with pytest.raises(UserError) as caught:
        train(with_resume(changed), "out")
    message = str(caught.value)
    for part in (
        "pictures new: 2_cat/new.png\n", "pictures changed: 2_cat/2.png\n",
        "pictures with another caption: 2_cat/0.png\n", "learning_rate: 0.001 then, 0.5 now\n",
        "max_train_epochs: 2 then, 3 now (the schedule stretches over all of them)\n", "resume_anyway",
    ):  # fmt: skip
        assert part in message
    other = replace(checkpoint, name="other.safetensors", sha256="ab" * 32)
    with pytest.raises(UserError, match=r"checkpoint: tiny-sd1.* then, other.safetensors \(abababababa?\) now"):
        Trainer(other, with_resume(config), tmp_path / "out").run()
    with pytest.raises(UserError, match=r"- loaded VAE: the checkpoint's own then, bright.vae.pt now\n"):
        Trainer(replace(other, vae_path=tmp_path / "bright.vae.pt"), with_resume(config), tmp_path / "out").run()
    result, events = train(with_resume(changed, resume_anyway=True), "out")
    assert result.steps == 2 + 2 + 2 * 4 and events.steps[0] == 3
    assert any("learning_rate: 0.001 then, 0.5 now" in text for text in events.messages)


def test_changed_masks_and_folders_of_one_name_are_told(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    config = small_config(masked_loss=True, conditioning_data_dir=str(tmp_path / "masks"))
    folder = Path(config.dataset.train_data_dir) / "2_cat"
    other = tmp_path / "others" / "2_cat"
    for copy in (tmp_path / "masks", other):
        shutil.copytree(folder, copy)
    scan = scan_dataset(config)
    scan = replace(scan, subsets=[*scan.subsets, replace(scan.subsets[0], folder=other)])
    then = facts_of(scan, checkpoint, [], masked=True)["pictures"]
    assert _changed_pictures(then, then, with_options=True) == []
    shutil.copyfile(folder / "1.png", tmp_path / "masks" / "2.png")
    masked = facts_of(scan, checkpoint, [], masked=True)["pictures"]
    changes = _changed_pictures(then, masked, with_options=True)
    assert changes == ["pictures changed: 2_cat/2.png, 2_cat/2.png (2)"]
    assert facts_of(scan, checkpoint, [])["pictures"] == [[*each[:1], each[1].split()[0], *each[2:]] for each in then]
    then[0][2] = "a dog"
    assert _changed_pictures(then, masked, with_options=True)[1:] == ["pictures with another caption: 2_cat/0.png"]


def test_more_epochs_after_the_end(train: Any, small_config: MakeConfig) -> None:
    config = small_config(max_train_epochs=1, save_state_on_train_end=True, network_train_unet_only=True)
    train(config, "out")
    with pytest.raises(UserError, match="this run is complete, with 3 of 3 steps; raise max_train_epochs"):
        train(with_resume(config), "out")
    more = with_resume(replace(config, learning=replace(config.learning, max_train_epochs=2)), resume_anyway=True)
    result, events = train(more, "out")
    assert (events.steps, result.epochs) == ([4, 5, 6], 2)


def test_what_is_no_state_is_said(train: Any, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(save_state_on_train_end=True, network_train_unet_only=True)
    with pytest.raises(UserError, match="holds no state of cat"):
        train(with_resume(config), "out")
    with pytest.raises(UserError, match="this is no saved state"):
        train(with_resume(config, resume=str(tmp_path)), "out")
    train(config, "out", after=1)
    state = tmp_path / "out" / "cat-state"
    tensors = state / "state.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"cat-state: this state is damaged .*take an older one"):
        train(with_resume(config), "out")
    tensors.write_bytes(whole)
    values = json.loads((state / "state.json").read_text(encoding="utf-8"))
    (state / "state.json").write_text(json.dumps({**values, "format": 99}), encoding="utf-8")
    with pytest.raises(UserError, match="format 99"):
        read_state(state)


def test_only_states_of_this_name_and_time_are_found(train: Any, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(max_train_epochs=1, save_state=True, save_every_n_steps=2, network_train_unet_only=True)
    train(config, "out", after=2, cancel=True)
    folder = tmp_path / "out"
    assert latest_state(folder, "cat") is None  # cancelled: nothing more is written
    train(config, "out")
    written = (folder / "cat-state" / "state.json").stat().st_mtime
    assert latest_state(folder, "cat", written - 60) == folder / "cat-state"
    assert latest_state(folder, "cat", written + 60) is None
    assert latest_state(folder, "ca") is None and latest_state(tmp_path / "nowhere", "cat") is None
    shutil.rmtree(folder / "cat-state")
    assert latest_state(folder, "cat") == folder / "cat-step00000002-state"
