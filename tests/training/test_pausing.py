"""Pauses: the checkpoint is its owner's meanwhile, and the run comes to the very file that it would have come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.file import read_network
from lora_ext.protocols import Control, Events, OtherCheckpointError, PauseReport, StepReport
from lora_ext.training.pausing import PausePlace
from lora_ext.training.run import TrainingResult
from lora_ext.training.state_folders import read_state
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
StateOf = Callable[[Checkpoint], list[Any]]


class Owner(Events):
    """Owns the checkpoint, asks for a pause after some steps, and acts in `while_paused` when it has it back."""

    def __init__(self, checkpoint: Checkpoint, control: Control, pause_after: tuple[int, ...]) -> None:
        self.checkpoint = checkpoint
        self.control = control
        self.pause_after = pause_after
        self.while_paused: Callable[[], None] = control.resume
        self.problems: list[Exception] = []
        self.happened: list[str] = []
        self.reports: list[PauseReport] = []
        self.messages: list[str] = []

    def step(self, report: StepReport) -> None:
        if report.step in self.pause_after:
            self.control.pause()

    def paused(self, report: PauseReport) -> None:
        self.reports.append(report)
        self.happened.append("problem" if report.problem else "paused")
        if report.problem:
            self.control.resume(load_checkpoint=True)

    def resumed(self) -> None:
        self.happened.append("resumed")

    def message(self, level: str, text: str) -> None:
        self.messages.append(text)

    def suspend(self) -> None:
        self.happened.append("handed back")
        self.while_paused()

    def resume(self, load_checkpoint: bool = False) -> None:
        self.happened.append("loaded" if load_checkpoint else "taken again")
        if self.problems:
            raise self.problems.pop(0)


@pytest.fixture
def train(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., tuple[TrainingResult, Owner]]:
    """Trains into a folder of its own; `prepare` gets the owner before the start."""

    def run(
        config: TrainConfig, pause_after: tuple[int, ...] = (), prepare: Callable[[Owner], None] = lambda _: None
    ) -> tuple[TrainingResult, Owner]:
        control = Control()
        owner = Owner(checkpoint, control, pause_after)
        prepare(owner)
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        place = PausePlace(owner, folder / "run" / "paused.safetensors")
        return Trainer(checkpoint, config, folder / "out", owner, control, pause_place=place).run(), owner

    return run


def hash_of(result: TrainingResult) -> str:
    return read_network(result.files[-1]).metadata["sshs_model_hash"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"network_train_unet_only": True},
        {"network_train_unet_only": True, "shuffle_caption": True},
        {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "noise_offset": 0.1},
        {"mixed_precision": "bf16", "lr_scheduler": "cosine"},
    ],
)
def test_a_paused_run_comes_to_the_same_file(
    values: dict[str, Any], train: Any, checkpoint: Checkpoint, small_config: MakeConfig, state_of: StateOf
) -> None:
    config = small_config(max_train_epochs=2, **values)
    before = state_of(checkpoint)
    seen: list[bool] = []

    def look(owner: Owner) -> None:
        torch.manual_seed(len(seen))  # what others draw meanwhile is nothing to the run
        seen.append(state_of(checkpoint) == before)
        owner.control.resume()

    straight, _ = train(config)
    pauses = (1, 3) if straight.steps > 3 else (1,)
    paused, owner = train(config, pauses, lambda each: setattr(each, "while_paused", lambda: look(each)))
    assert seen == [True] * len(pauses)
    assert owner.happened == ["paused", "handed back", "taken again", "resumed"] * len(pauses)
    assert (hash_of(paused), paused.losses) == (hash_of(straight), straight.losses)
    assert [path.name for path in paused.files] == [path.name for path in straight.files]


@pytest.mark.parametrize("values", [{}, {"network_train_unet_only": True, "shuffle_caption": True}])
def test_it_goes_on_with_another_instance_of_the_checkpoint(
    values: dict[str, Any], train: Any, checkpoint: Checkpoint, small_config: MakeConfig, state_of: StateOf
) -> None:
    """The first one may be gone: it is used for nothing any more."""
    from lora_ext.host.standalone.loader import load_checkpoint

    assert checkpoint.path is not None
    first, second = (load_checkpoint(checkpoint.path, torch.device("cpu"), torch.float32).checkpoint for _ in range(2))
    before = state_of(second)

    def exchange(owner: Owner) -> None:
        for module in (first.unet, first.vae, first.text_encoders[0].module):
            module.to("meta")
        owner.checkpoint = second
        owner.control.resume()

    config = small_config(max_train_epochs=1, **values)
    straight, _ = train(config)
    control = Control()
    owner = Owner(first, control, (2,))
    owner.while_paused = lambda: exchange(owner)
    folder = straight.files[-1].parent.parent
    place = PausePlace(owner, folder / "paused.safetensors")
    result = Trainer(first, config, folder / "elsewhere", owner, control, pause_place=place).run()
    assert hash_of(result) == hash_of(straight)
    assert state_of(second) == before


def test_what_is_trained_stands_in_the_file_of_the_pause(train: Any, small_config: MakeConfig) -> None:
    config = small_config(save_precision="float", save_every_n_epochs=None)
    result, owner = train(config, (2,), lambda each: setattr(each, "while_paused", each.control.stop))
    report = owner.reports[0]
    assert (report.step, report.epoch, report.live_name) == (2, 1, "cat-live")
    kept = read_network(report.network)
    assert (kept.metadata["ss_output_name"], kept.metadata["ss_steps"]) == ("cat-live", "2")
    assert kept.metadata["sshs_model_hash"] == hash_of(result)
    assert [path.name for path in result.files] == ["cat.safetensors"]
    assert (result.steps, result.stopped, result.cancelled) == (2, True, False)
    assert owner.happened == ["paused", "handed back"]  # the end needs no checkpoint


def test_a_file_asked_for_during_the_pause_does_not_end_it(train: Any, small_config: MakeConfig) -> None:
    def save(owner: Owner) -> None:
        owner.control.save_now()
        owner.control.resume()

    config = small_config(max_train_epochs=1)
    result, owner = train(config, (1,), lambda each: setattr(each, "while_paused", lambda: save(each)))
    assert [path.name for path in result.files] == ["cat-step00000001.safetensors", "cat.safetensors"]
    assert not result.stopped and owner.happened[-1] == "resumed"


def test_cancelled_during_a_pause(train: Any, small_config: MakeConfig) -> None:
    config = small_config(save_every_n_epochs=None)
    result, owner = train(config, (2,), lambda each: setattr(each, "while_paused", each.control.cancel))
    assert (result.steps, result.cancelled, result.files) == (2, True, [])
    assert list((owner.reports[0].network.parent.parent / "out").iterdir()) == []


def test_without_its_checkpoint_it_stays_paused_and_says_so(train: Any, small_config: MakeConfig) -> None:
    config = small_config(max_train_epochs=1)
    straight, _ = train(config)
    refusal = OtherCheckpointError("tiny-sd1", "something-else")
    result, owner = train(config, (1,), lambda each: each.problems.append(refusal))
    assert owner.happened == [
        "paused", "handed back", "taken again", "handed back", "problem", "loaded", "resumed",
    ]  # fmt: skip
    assert owner.reports[1].missing_checkpoint == "tiny-sd1"
    assert "trains on tiny-sd1, and now something-else is loaded: load tiny-sd1 again" in owner.reports[1].problem
    assert hash_of(result) == hash_of(straight)


@pytest.mark.parametrize("place", ["taking the checkpoint", "setting it up"])
def test_without_memory_it_stays_paused_and_loses_nothing(
    place: str, train: Any, checkpoint: Checkpoint, small_config: MakeConfig, state_of: StateOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Memory is scarce once, before or after the checkpoint has been taken; the second Resume goes on exactly."""
    config = small_config(max_train_epochs=1, gradient_checkpointing=True)
    before, left = state_of(checkpoint), []
    straight, _ = train(config)
    shortage = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def scarce(owner: Owner) -> None:
        owner.while_paused = lambda: look(owner)
        if place == "taking the checkpoint":
            owner.problems.append(shortage)

    def look(owner: Owner) -> None:
        left.append(state_of(checkpoint) == before)
        if place == "setting it up" and len(left) == 1:
            monkeypatch.setattr("lora_ext.training.session.gradient_checkpointing", fail_once)
        owner.control.resume()

    def fail_once(*_: object) -> None:
        monkeypatch.undo()
        raise shortage

    result, owner = train(config, (2,), scarce)
    had_it = ["resumed"] if place == "setting it up" else []
    assert owner.happened == [
        "paused", "handed back", "taken again", *had_it, "handed back", "problem", "loaded", "resumed",
    ]  # fmt: skip
    assert left == [True, True]
    assert owner.reports[1].problem.startswith("not enough free memory to go on: close what uses it, then press Resume")
    assert (hash_of(result), result.losses) == (hash_of(straight), straight.losses)


def test_a_borrow_that_breaks_ends_the_run(
    train: Any, checkpoint: Checkpoint, small_config: MakeConfig, state_of: StateOf
) -> None:
    before = state_of(checkpoint)
    with pytest.raises(ZeroDivisionError):
        train(small_config(), (1,), lambda each: each.problems.append(ZeroDivisionError()))
    assert state_of(checkpoint) == before


def test_a_pause_that_cannot_be_kept_is_left_out(
    train: Any, small_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_the_way(owner: Owner) -> None:
        monkeypatch.setattr("lora_ext.training.saving.write_network", refuse_paused)

    from lora_ext.networks.file import write_network
    from lora_ext.protocols import UserError

    def refuse_paused(path: Path, *rest: Any) -> None:
        if path.stem == "paused":
            raise UserError(f"{path} cannot be written (no space)")
        write_network(path, *rest)

    result, owner = train(small_config(max_train_epochs=1), (1,), in_the_way)
    assert not result.stopped and owner.happened == []
    assert any("(no space). The run is not paused: training goes on." in text for text in owner.messages)


def test_requests_that_come_to_nothing(train: Any, small_config: MakeConfig) -> None:
    """A pause after the last step, one taken back before it begins, and a resume without a pause."""
    config = small_config(max_train_epochs=1)
    assert train(config, (3,))[1].happened == []
    control = Control()
    control.pause()
    control.resume()
    assert not control.take_pause_request()
    control.pause()
    assert control.take_resume_request() is None and control.take_pause_request()
    assert not control.take_pause_request()


def test_a_pause_writes_a_state_where_states_are_wanted(train: Any, small_config: MakeConfig) -> None:
    config = small_config(max_train_epochs=1, network_train_unet_only=True, save_state=True)
    result, _ = train(config, (2,))
    folder = result.files[-1].parent
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["cat-state", "cat-step00000002-state"]
    assert read_state(folder / "cat-step00000002-state").losses == result.losses[:2]
