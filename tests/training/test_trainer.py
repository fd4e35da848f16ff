from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.file import read_network
from lora_ext.protocols import Control, Events, MessageLevel, SavedNetwork, StepReport
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


class Recorder(Events):
    """Keeps what a run tells, and may act on it."""

    def __init__(self, on_step: Callable[[StepReport], None] | None = None) -> None:
        self.steps: list[StepReport] = []
        self.files: list[SavedNetwork] = []
        self.messages: list[tuple[str, str]] = []
        self.phases: list[str] = []
        self.on_step = on_step

    def phase(self, name: str, done: int, total: int) -> None:
        if name not in self.phases:
            self.phases.append(name)

    def step(self, report: StepReport) -> None:
        self.steps.append(report)
        if self.on_step:
            self.on_step(report)

    def saved(self, saved: SavedNetwork) -> None:
        self.files.append(saved)

    def message(self, level: MessageLevel, text: str) -> None:
        self.messages.append((level, text))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_writes_its_files(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    events = Recorder()
    result = Trainer(checkpoint, small_config(max_train_epochs=3), tmp_path / "out", events).run()
    assert names_in(tmp_path / "out") == ["cat-000001.safetensors", "cat-000002.safetensors", "cat.safetensors"]
    assert result.files == [saved.path for saved in events.files]
    assert [(saved.epoch, saved.step, saved.is_last) for saved in events.files] == [
        (1, 3, False), (2, 6, False), (3, 9, True),
    ]  # fmt: skip
    assert (result.steps, result.epochs, result.stopped, len(result.losses)) == (9, 3, False, 9)
    assert [step.step for step in events.steps] == list(range(1, 10))
    metadata = read_network(result.files[-1]).metadata
    expected = {
        "ss_output_name": "cat", "ss_epoch": "3", "ss_steps": "9", "ss_num_epochs": "3", "ss_max_train_steps": "9",
        "ss_num_train_images": "6", "ss_num_batches_per_epoch": "3", "ss_network_dim": "4", "ss_seed": "42",
        "ss_dataset_dirs": '{"2_cat": {"n_repeats": 2, "img_count": 3}}', "ss_sd_model_name": "tiny-sd1.safetensors",
    }  # fmt: skip
    assert {key: metadata[key] for key in expected} == expected
    assert read_network(result.files[0]).metadata["ss_output_name"] == "cat-000001"


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({}, {"lora_unet", "lora_te"}),
        ({"network_train_unet_only": True}, {"lora_unet"}),
        ({"network_train_text_encoder_only": True}, {"lora_te"}),
        ({"text_encoder_lr": 0}, {"lora_unet"}),
        ({"unet_lr": 0}, {"lora_te"}),
    ],
)
def test_each_part_moves_alone(
    values: dict[str, object], parts: set[str], checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    events = Recorder()
    result = Trainer(checkpoint, small_config(max_train_epochs=1, **values), tmp_path / "out", events).run()
    tensors = read_network(result.files[-1]).tensors
    assert {"_".join(name.split("_")[:2]) for name in tensors} == parts
    moved = {name: bool(tensor.any()) for name, tensor in tensors.items() if name.endswith("lora_up.weight")}
    if "lora_te" in parts:  # with clip skip 1 every layer counts
        assert all(value for name, value in moved.items() if name.startswith("lora_te"))
    assert all(value for name, value in moved.items() if name.startswith("lora_unet"))
    assert set(events.steps[0].learning_rates) == {
        {"lora_unet": "unet", "lora_te": "text_encoder"}[part] for part in parts
    }
    if 0 in values.values():
        assert any("is not trained: its learning rate is 0" in text for level, text in events.messages)


def test_one_picture_is_learned(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    folder = Path(small_config().dataset.train_data_dir)
    for number in (1, 2):
        (folder / "2_cat" / f"{number}.png").unlink()
    config = small_config(
        train_batch_size=1, max_train_epochs=None, max_train_steps=60, learning_rate=1e-2, lr_scheduler="constant",
        save_every_n_epochs=None, min_snr_gamma=None, network_dim=8, network_alpha=8,
    )  # fmt: skip
    result = Trainer(checkpoint, config, tmp_path / "out").run()
    first, last = sum(result.losses[:10]) / 10, sum(result.losses[-10:]) / 10
    assert result.steps == 60 and last < 0.7 * first


def test_the_same_seed_gives_the_same_network(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(max_train_epochs=1, save_precision="fp16")
    torch.manual_seed(1)
    first = read_network(Trainer(checkpoint, config, tmp_path / "a").run().files[-1])
    torch.manual_seed(2)
    random.seed(2)
    second = read_network(Trainer(checkpoint, config, tmp_path / "b").run().files[-1])
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert first.metadata["sshs_model_hash"] == second.metadata["sshs_model_hash"]
    times = {"ss_training_started_at", "ss_training_finished_at", "ss_session_id", "modelspec.date"}
    differing = {key for key in first.metadata if first.metadata[key] != second.metadata[key]}
    assert first.metadata.keys() == second.metadata.keys() and differing <= times
    other = Trainer(checkpoint, small_config(max_train_epochs=1, seed=43), tmp_path / "c").run()
    assert read_network(other.files[-1]).metadata["sshs_model_hash"] != first.metadata["sshs_model_hash"]


def test_the_random_state_of_the_host_is_not_touched(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    config = small_config(shuffle_caption=True, noise_offset=0.1, gradient_checkpointing=True, max_train_epochs=1)
    Trainer(checkpoint, config, tmp_path / "out").run()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert torch.equal(before[0], after[0]) and before[1] == after[1]
    assert all(np.array_equal(x, y) for x, y in zip(before[2], after[2], strict=True))


def test_old_epochs_are_deleted(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(max_train_epochs=5, save_last_n_epochs=2)
    result = Trainer(checkpoint, config, tmp_path / "out").run()
    kept = ["cat-000003.safetensors", "cat-000004.safetensors", "cat.safetensors"]
    assert names_in(tmp_path / "out") == kept and [path.name for path in result.files] == kept


@pytest.mark.parametrize(
    ("values", "steps", "epochs"),
    [
        ({"max_train_epochs": None, "max_train_steps": 4}, 4, 2),
        ({"max_train_epochs": 2, "max_train_steps": 1}, 6, 2),
        ({"max_train_epochs": 2, "gradient_accumulation_steps": 2}, 4, 2),
    ],
)
def test_a_run_ends_where_planned(
    values: dict[str, object], steps: int, epochs: int,
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path,
) -> None:  # fmt: skip
    result = Trainer(checkpoint, small_config(**values), tmp_path / "out").run()
    assert (result.steps, result.epochs, result.stopped) == (steps, epochs, False)


def test_stop_keeps_what_is_trained(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    control = Control()
    events = Recorder(lambda report: control.stop() if report.step == 4 else None)
    result = Trainer(checkpoint, small_config(max_train_epochs=9), tmp_path / "out", events, control).run()
    assert (result.steps, result.stopped, result.cancelled) == (4, True, False)
    assert names_in(tmp_path / "out") == ["cat-000001.safetensors", "cat.safetensors"]
    metadata = read_network(result.files[-1]).metadata
    assert (metadata["ss_steps"], metadata["ss_epoch"]) == ("4", "2")


def test_cancel_writes_nothing_more(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    control = Control()
    events = Recorder(lambda report: control.cancel() if report.step == 4 else None)
    result = Trainer(checkpoint, small_config(max_train_epochs=9), tmp_path / "out", events, control).run()
    assert (result.steps, result.stopped, result.cancelled) == (4, True, True)
    assert names_in(tmp_path / "out") == ["cat-000001.safetensors"] == [path.name for path in result.files]


def test_stop_before_the_first_step_writes_nothing(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    control = Control()
    control.stop()
    result = Trainer(checkpoint, small_config(), tmp_path / "out", control=control).run()
    assert (result.steps, result.stopped, result.files) == (0, True, []) and names_in(tmp_path / "out") == []


def test_a_save_in_between(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    control = Control()
    events = Recorder(lambda report: control.save_now() if report.step == 2 else None)
    config = small_config(max_train_epochs=1)
    result = Trainer(checkpoint, config, tmp_path / "out", events, control).run()
    assert [path.name for path in result.files] == ["cat-step00000002.safetensors", "cat.safetensors"]
    assert not result.stopped


def test_captions_are_encoded_once_where_the_text_encoder_stands_still(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    events = Recorder()
    config = small_config(network_train_unet_only=True, max_train_epochs=1)
    cached = Trainer(checkpoint, config, tmp_path / "a", events).run()
    assert events.phases == ["caching latents", "caching captions"]
    shuffled = small_config(network_train_unet_only=True, max_train_epochs=1, shuffle_caption=True, keep_tokens=3)
    again = Trainer(checkpoint, shuffled, tmp_path / "b").run()
    assert again.losses == pytest.approx(cached.losses, rel=1e-5)  # all three tags are kept where they are


def test_losses_are_those_of_gradient_checkpointing(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    files = []
    for flag in (False, True):
        config = small_config(max_train_epochs=1, gradient_checkpointing=flag)
        files.append(read_network(Trainer(checkpoint, config, tmp_path / str(flag)).run().files[-1]).tensors)
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_v_prediction_trains_towards_another_target(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    epsilon = Trainer(checkpoint, small_config(max_train_epochs=1), tmp_path / "a").run()
    checkpoint.prediction_type = "v_prediction"
    try:
        velocity = Trainer(checkpoint, small_config(max_train_epochs=1), tmp_path / "b").run()
    finally:
        checkpoint.prediction_type = "epsilon"
    assert velocity.losses[0] != epsilon.losses[0]
    assert read_network(velocity.files[-1]).metadata["modelspec.prediction_type"] == "v"
