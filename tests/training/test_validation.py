from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.dataset.dataset import Batch
from lora_ext.dataset.sources import scan_dataset
from lora_ext.dataset.validation_split import split_validation
from lora_ext.networks.file import read_network
from lora_ext.networks.network import Network
from lora_ext.protocols import Control, Events, ValidationReport
from lora_ext.training.diffusion import DiffusionLoss
from lora_ext.training.noise import Draw
from lora_ext.training.trainer import Trainer
from lora_ext.training.validation import HeldOut, Validation, held_out_pictures, measured_timesteps

MakeConfig = Callable[..., TrainConfig]
LATENTS = torch.zeros(2, 4, 8, 8)
HELD_OUT = HeldOut([Batch(LATENTS, ["a", "b"], torch.ones(2), [(64, 64)] * 2, entries=[0, 1])], seed=7)


class Told(Events):
    """Keeps the measurements."""

    def __init__(self) -> None:
        self.reports: list[ValidationReport] = []

    def validated(self, report: ValidationReport) -> None:
        self.reports.append(report)


class ScriptedLoss:
    """Gives each measurement the next of some losses, for every picture and timestep."""

    def __init__(self, config: TrainConfig, losses: list[float]) -> None:
        self.config = config
        self.schedule = range(1000)
        self.script = iter(losses)
        self.draws: list[Draw] = []
        self._left = 0

    def losses(self, batch: Batch, draw: Draw) -> Tensor:
        assert not torch.is_grad_enabled()
        if not self._left:
            self._loss, self._left = next(self.script), 4
        self._left -= 1
        self.draws.append(draw)
        return torch.full((2,), self._loss)


def validation(losses: list[float], **values: Any) -> tuple[Validation, Told, ScriptedLoss]:
    config = make_config({"validation_split": 0.1, **values})
    told, loss = Told(), ScriptedLoss(config, losses)
    network = cast(Network, nn.Module())
    return Validation(HELD_OUT, cast(DiffusionLoss, loss), network, told, Control()), told, loss


def measure(measured: Validation, count: int) -> None:
    for epoch in range(1, count + 1):
        measured.after_epoch(epoch, 10 * epoch, is_last=False)


@pytest.mark.parametrize(
    ("values", "timesteps"),
    [
        ({}, [200, 400, 600, 800]),
        ({"min_timestep": 500}, [600, 700, 800, 900]),
        ({"min_timestep": 10, "max_timestep": 12}, [10, 11]),
    ],
)
def test_timesteps_are_evenly_in_the_range_that_is_trained(values: dict[str, object], timesteps: list[int]) -> None:
    assert measured_timesteps(make_config(values), 1000) == timesteps


@pytest.mark.parametrize(
    ("losses", "best_epochs", "is_best"),
    [
        ([3.0, 2.0, 2.0, 2.5, 1.0], [1, 2, 2, 2, 5], [True, True, False, False, True]),
        ([math.nan, 2.0, math.nan, 3.0], [1, 2, 2, 2], [True, True, False, False]),
    ],
)
def test_the_best_epoch_has_the_lowest_loss(losses: list[float], best_epochs: list[int], is_best: list[bool]) -> None:
    measured, told, _ = validation(losses)
    measure(measured, len(losses))
    assert [report.best_epoch for report in told.reports] == best_epochs
    assert [report.is_best for report in told.reports] == is_best
    assert [report.loss for report in told.reports] == pytest.approx(losses, nan_ok=True)
    assert measured.best is not None and measured.best.epoch == best_epochs[-1]


@pytest.mark.parametrize(("patience", "epochs"), [(None, 5), (1, 3), (2, 5)])
def test_a_run_is_exhausted_after_so_many_measurements_without_a_better_one(patience: int | None, epochs: int) -> None:
    losses = [2.0, 1.0, 1.5, 0.9, 3.0, 2.0]
    measured, _, _ = validation(losses, early_stopping_patience=patience)
    exhausted = []
    for epoch in range(1, 7):
        measured.after_epoch(epoch, epoch, is_last=False)
        exhausted.append(measured.exhausted)
    expected = {None: [False] * 6, 1: [False, False, True, False, True, True], 2: [False] * 5 + [True]}[patience]
    assert exhausted == expected
    assert bool(measured.note) == exhausted[-1]
    if measured.note:
        assert "epoch 4" in measured.note and "0.9" in measured.note


def test_when_it_is_due() -> None:
    measured, told, _ = validation([1.0] * 20, validate_every_n_epochs=2, validate_every_n_steps=3)
    for step in range(1, 11):
        measured.after_step((step + 1) // 2, step)
        if step % 2 == 0:
            measured.after_epoch(step // 2, step, is_last=step == 10)
    assert [(report.step, report.epoch) for report in told.reports] == [(3, 2), (4, 2), (6, 3), (8, 4), (9, 5), (10, 5)]


def test_the_noise_is_the_same_each_time_and_another_for_each_picture_and_timestep() -> None:
    measured, told, loss = validation([1.0, 1.0])
    measure(measured, 2)
    first, second = loss.draws[:4], loss.draws[4:]
    assert [draw.timesteps.tolist() for draw in first] == [[t, t] for t in (200, 400, 600, 800)]
    assert all(torch.equal(one.noise, other.noise) for one, other in zip(first, second, strict=True))
    noises = [noise for draw in first for noise in draw.noise]
    assert not any(torch.equal(one, other) for n, one in enumerate(noises) for other in noises[n + 1 :])
    alone = Batch(LATENTS[1:], ["b"], torch.ones(1), [(64, 64)], entries=[1])
    assert torch.equal(HELD_OUT.draw(alone, 400).noise[0], first[1].noise[1])


def test_a_run_that_is_to_end_is_not_kept_waiting() -> None:
    measured, told, loss = validation([1.0])
    measured._control.stop()
    measure(measured, 1)
    assert told.reports == [] and loss.draws == [] and measured.best is None and measured.metadata(10) == {}


def test_weights_for_use_are_in_while_it_is_measured() -> None:
    config, inside = make_config({}), []
    loss = ScriptedLoss(config, [1.0])

    @contextmanager
    def weights_for_use() -> Iterator[None]:
        inside.append(len(loss.draws))
        yield
        inside.append(len(loss.draws))

    network = cast(Network, nn.Dropout())
    Validation(HELD_OUT, cast(DiffusionLoss, loss), network, Told(), Control(), weights_for_use).after_epoch(1, 1, True)
    assert inside == [0, 4] and network.training


def test_files_tell_their_loss_and_the_best_epoch() -> None:
    measured, _, _ = validation([0.25, 0.5])
    measure(measured, 2)
    best = {"lw_best_epoch": "1", "lw_best_validation_loss": "0.25"}
    assert measured.metadata(10) == {**best, "lw_validation_loss": "0.25"}
    assert measured.metadata(20) == {**best, "lw_validation_loss": "0.5"}
    assert measured.metadata(25) == best


def test_the_state_goes_through_json() -> None:
    import json

    measured, _, _ = validation([0.25, 0.5], early_stopping_patience=1)
    measure(measured, 2)
    again, _, _ = validation([0.75], early_stopping_patience=1)
    again.load_state_dict(json.loads(json.dumps(measured.state_dict())))
    assert again.reports == measured.reports and again.exhausted
    with pytest.raises(ValueError, match="not the measurements"):
        again.load_state_dict({"reports": [{"by_timestep": {}}]})


def test_losses_of_other_pictures_are_not_gone_on_from() -> None:
    measured, _, _ = validation([0.25])
    measure(measured, 1)
    others = replace(HELD_OUT, content="others")
    diffusion = cast(DiffusionLoss, SimpleNamespace(config=make_config({})))
    again = Validation(others, diffusion, cast(Network, nn.Module()), Told(), Control())
    with pytest.raises(ValueError, match="other pictures were held out"):
        again.load_state_dict(measured.state_dict())
    assert again.reports == []


def test_the_content_of_held_out_pictures(checkpoint: Checkpoint, small_config: MakeConfig) -> None:
    def content(**values: Any) -> str:
        config = small_config(resolution="32", validation_split=0.5, **values)
        _, scan = split_validation(scan_dataset(config), config)
        found = held_out_pictures(scan, checkpoint, config, Events(), Control())
        assert found is not None
        return found.content

    first = content()
    assert first == content(learning_rate=0.5, cache_latents=False, flip_aug=True)
    assert len({first, content(seed=1), content(caption_prefix="x")}) == 3


def test_nothing_held_out_is_never_measured() -> None:
    diffusion = cast(DiffusionLoss, SimpleNamespace(config=make_config({"validate_every_n_steps": 1})))
    measured = Validation(None, diffusion, cast(Network, nn.Module()), Told(), Control())
    measured.after_step(1, 1)
    measured.after_epoch(1, 1, is_last=True)
    assert not measured.reports and not measured.exhausted and measured.metadata(1) == {} and not measured.note


@pytest.fixture
def held_out_folder(pictures: Path, tmp_path: Path) -> str:
    """A copy of the first picture outside of the dataset."""
    folder = tmp_path / "held_out" / "1_cat"
    folder.mkdir(parents=True)
    for suffix in (".png", ".txt"):
        (folder / f"0{suffix}").write_bytes((pictures / "2_cat" / f"0{suffix}").read_bytes())
    return str(folder.parent)


@pytest.mark.slow
def test_a_validated_run_trains_the_same_network(
    checkpoint: Checkpoint, small_config: MakeConfig, held_out_folder: str, tmp_path: Path
) -> None:
    plain = Trainer(checkpoint, small_config(), tmp_path / "plain").run()
    told = Told()
    config = small_config(validation_data_dir=held_out_folder, validate_every_n_steps=2)
    before = torch.get_rng_state()
    result = Trainer(checkpoint, config, tmp_path / "validated", told).run()
    assert torch.equal(before, torch.get_rng_state())
    assert result.losses == plain.losses
    tensors, expected = (read_network(run.files[-1]).tensors for run in (result, plain))
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert [(report.step, report.epoch) for report in told.reports] == [(2, 1), (3, 1), (4, 2), (6, 2)]
    assert all(set(report.by_timestep) == {200, 400, 600, 800} for report in told.reports)
    assert told.reports[-1].loss == pytest.approx(sum(told.reports[-1].by_timestep.values()) / 4)
    metadata = [read_network(file).metadata for file in result.files]
    assert [each["lw_validation_loss"] for each in metadata] == [f"{told.reports[n].loss:.6g}" for n in (1, 3)]
    assert metadata[-1]["lw_best_epoch"] == str(result.best_epoch) == str(told.reports[-1].best_epoch)
    assert (
        metadata[-1]["ss_num_validation_images"] == "1"
        and "lw_best_epoch" not in read_network(plain.files[-1]).metadata
    )


@pytest.mark.slow
def test_a_resumed_run_remembers_what_was_measured(
    checkpoint: Checkpoint, small_config: MakeConfig, held_out_folder: str, tmp_path: Path
) -> None:
    config = small_config(
        validation_data_dir=held_out_folder, save_state_on_train_end=True, network_train_unet_only=True,
        max_train_epochs=3,
    )  # fmt: skip
    whole, parts, rest = Told(), Told(), Told()
    expected = Trainer(checkpoint, config, tmp_path / "whole", whole).run()
    control = Control()
    parts.step = lambda report: control.stop() if report.step == 4 else None  # type: ignore[method-assign]
    Trainer(checkpoint, config, tmp_path / "parts", parts, control).run()
    resumed = replace(config, saving=replace(config.saving, resume="latest"))
    result = Trainer(checkpoint, resumed, tmp_path / "parts", rest).run()
    assert len(parts.reports) == 1 and parts.reports + rest.reports == whole.reports
    last = [read_network(run.files[-1]).metadata for run in (expected, result)]
    keys = ("lw_validation_loss", "lw_best_epoch", "lw_best_validation_loss", "sshs_model_hash")
    assert [last[0][key] for key in keys] == [last[1][key] for key in keys]


@pytest.mark.slow
def test_a_run_ends_early(
    checkpoint: Checkpoint, small_config: MakeConfig, held_out_folder: str, tmp_path: Path
) -> None:
    """With a rate that changes nothing no epoch is better than the first."""
    config = small_config(
        validation_data_dir=held_out_folder, early_stopping_patience=2, network_train_unet_only=True,
        max_train_epochs=9, learning_rate=1e-30, lr_scheduler="constant", save_every_n_epochs=None,
        save_state_on_train_end=True,
    )  # fmt: skip
    result = Trainer(checkpoint, config, tmp_path / "out").run()
    assert (result.epochs, result.steps, result.best_epoch, result.stopped) == (3, 9, 1, False)
    whole = replace(config, learning=replace(config.learning, max_train_epochs=3))
    assert Trainer(checkpoint, whole, tmp_path / "whole").run().note == ""
    assert result.note.startswith("ended early: none of the last 2 measurements was better than that of epoch 1")
    assert [path.name for path in result.files] == ["cat.safetensors"]
    ended = replace(config, saving=replace(config.saving, resume="latest"))
    again = Trainer(checkpoint, ended, tmp_path / "out").run()
    assert (again.steps, again.note) == (9, result.note), "no step more"
