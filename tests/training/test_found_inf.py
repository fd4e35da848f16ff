"""Bad steps that the device itself leaves out: nothing waits for it, and nothing else differs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.transfer import Arriving
from lora_ext.config.groups import LearningSettings
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.networks.file import read_network
from lora_ext.protocols import Control, EpochReport, Events, MessageLevel, SavedNetwork, StepReport, UserError
from lora_ext.training import optimizers
from lora_ext.training.learning import Learning
from lora_ext.training.noise import Draw, SeededNoise
from lora_ext.training.optimizers import make_optimizer
from lora_ext.training.step import BegunUpdate, TrainingStep
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
HAS_FUSED_ON_CPU = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 4)
FUSED = pytest.mark.skipif(not HAS_FUSED_ON_CPU, reason="torch before 2.4 has no fused step on a CPU")


class Told(Events):
    """Keeps the order of what is told."""

    def __init__(self) -> None:
        self.order: list[tuple[str, int]] = []
        self.losses: list[float] = []
        self.warnings: list[str] = []

    def step(self, report: StepReport) -> None:
        self.order.append(("step", report.step))
        self.losses.append(report.loss)
        assert report.seconds > 0 and report.gradient_norm is not None

    def saved(self, saved: SavedNetwork) -> None:
        self.order.append(("saved", saved.step))

    def epoch(self, report: EpochReport) -> None:
        self.order.append(("epoch", report.step))

    def message(self, level: MessageLevel, text: str) -> None:
        if level == "warning" and "left out" in text:
            self.warnings.append(text)


class BrokenNoise(SeededNoise):
    """Noise that is not finite in some steps."""

    broken: frozenset[int] = frozenset()

    def __call__(self, latents: Tensor, step: int, part: int) -> Draw:
        draw = super().__call__(latents, step, part)
        return replace(draw, noise=draw.noise * math.nan) if step in self.broken else draw


def trained(
    checkpoint: Checkpoint, config: TrainConfig, folder: Path, broken: set[int]
) -> tuple[Told, dict[str, Tensor], int]:
    noise = BrokenNoise(42, 1000, config.loss)
    noise.broken = frozenset(broken)
    told = Told()
    result = Trainer(checkpoint, config, folder, told, noise=noise).run()
    return told, read_network(result.files[-1]).tensors, result.bad_steps


@FUSED
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_bad_step_is_left_out_without_waiting(
    optimizer: str, checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where every step is waited for: the same weights bit for bit, told in the same order."""
    config = small_config(
        optimizer_type=optimizer, optimizer_args="fused=True", max_train_epochs=2, save_every_n_steps=2
    )
    late, late_tensors, late_bad = trained(checkpoint, config, tmp_path / "late", {1, 4})
    monkeypatch.setattr(Learning, "takes_found_inf", False)
    early, early_tensors, early_bad = trained(checkpoint, config, tmp_path / "early", {1, 4})
    assert late_bad == early_bad == 2
    assert late.order == early.order and [step for what, step in late.order if what == "step"] == [1, 2, 3, 4, 5, 6]
    assert late.warnings == early.warnings and late.warnings[0].startswith("Step 2 was left out: its loss is nan")
    assert [math.isnan(loss) for loss in late.losses] == [False, True, False, False, True, False]
    torch.testing.assert_close(late.losses, early.losses, rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(late_tensors[name], early_tensors[name]) for name in early_tensors)
    assert any(bool(tensor.any()) for name, tensor in late_tensors.items() if name.endswith("lora_up.weight"))


@FUSED
def test_nothing_is_asked_of_the_device_before_the_next_step_is_on_its_way(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    values, begin = Arriving.values, TrainingStep.begin

    def waited(arriving: Arriving) -> list[float]:
        happened.append("wait")
        return values(arriving)

    def begun(step: TrainingStep, *arguments: Any) -> BegunUpdate:
        update = begin(step, *arguments)
        happened.append("step")
        return update

    monkeypatch.setattr(Arriving, "values", waited)
    monkeypatch.setattr(TrainingStep, "begin", begun)
    config = small_config(optimizer_args="fused=True", max_train_epochs=1, save_every_n_epochs=None)
    trained(checkpoint, config, tmp_path, set())
    assert [what for what, _ in groupby(happened)] == ["step", "wait", "step", "wait"]
    assert [len(list(group)) for what, group in groupby(happened) if what == "step"] == [2, 1]


@FUSED
def test_too_many_bad_steps_end_the_run(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(optimizer_args="fused=True", max_train_epochs=2, stop_after_bad_steps=2)
    with pytest.raises(UserError, match="2 steps in a row had no finite loss"):
        trained(checkpoint, config, tmp_path, {2, 3})


@FUSED
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, True),
        ({"ema_decay": 0.9}, False),
        ({"scale_weight_norms": 1.0}, False),
        ({"optimizer_args": ""}, False),
    ],
)
def test_what_follows_an_update_is_not_left_to_the_device(
    values: dict[str, Any], expected: bool, checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found: list[bool] = []
    begin = Learning.begin_step
    monkeypatch.setattr(
        Learning, "begin_step", lambda learning, step: (found.append(learning.takes_found_inf), begin(learning, step))
    )
    trained(checkpoint, small_config(max_train_epochs=1, **{"optimizer_args": "fused=True", **values}), tmp_path, set())
    assert set(found) == {expected}


@FUSED
def test_a_stop_tells_the_last_step(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    control, told = Control(), Told()
    told.step = lambda report: (Told.step(told, report), control.stop())  # type: ignore[method-assign,assignment]
    config = small_config(optimizer_args="fused=True", max_train_epochs=3)
    result = Trainer(checkpoint, config, tmp_path, told, control).run()
    steps = [step for what, step in told.order if what == "step"]
    assert result.stopped and steps == list(range(1, result.steps + 1)) and result.steps == 2
    assert all(math.isfinite(loss) for loss in result.losses)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", {"fused": True}), ("foreach=False", {"foreach": False}), ("fused=False", {"fused": False, "foreach": True})],
)
def test_the_fused_step_is_taken_on_a_gpu(
    arguments: str, expected: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the choice: the step itself needs one."""
    monkeypatch.setattr(optimizers, "_is_on_gpu", lambda parameters: True)
    given: dict[str, Any] = {}
    monkeypatch.setattr(optimizers, "make", lambda kind, name, groups, lr, **values: given.update(values))
    settings = make_config({"optimizer_args": arguments}).learning
    assert isinstance(settings, LearningSettings)
    make_optimizer([{"params": [nn.Parameter(torch.ones(2))], "initial_lr": 1.0, "lr": 1.0}], settings)
    assert {name: given[name] for name in ("fused", "foreach") if name in given} == expected
