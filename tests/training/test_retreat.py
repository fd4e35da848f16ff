"""Steps that memory does not suffice for: taken again in pieces, with the same pictures and the same update."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.networks.file import read_network
from lora_ext.protocols import Events, MessageLevel, UserError
from lora_ext.training.out_of_memory import advice_for
from lora_ext.training.retreat import Retreat, split_rows
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


class Messages(Events):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, level: MessageLevel, text: str) -> None:
        self.texts.append(text)


@dataclass
class Rows:
    numbers: Tensor
    words: list[str]
    masks: Tensor | None
    step: int


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [(1, [["a", "b", "c"]]), (2, [["a", "b"], ["c"]]), (4, [["a"], ["b"], ["c"]])],
)
def test_rows_are_split_along_the_batch(pieces: int, expected: list[list[str]]) -> None:
    rows = Rows(torch.arange(6).reshape(3, 2), ["a", "b", "c"], None, 7)
    parts = list(split_rows(rows, pieces))
    assert [part.words for part in parts] == expected
    assert torch.equal(torch.cat([part.numbers for part in parts]), rows.numbers)
    assert {(part.masks, part.step) for part in parts} == {(None, 7)}


def test_drawing_back_ends_with_single_pictures_and_checkpointing() -> None:
    events, switched = Messages(), [True, False]
    retreat = Retreat(events, lambda: switched.pop(0))
    assert [(retreat.further(3), retreat.pieces) for _ in range(4)] == [(True, 2), (True, 4), (True, 4), (False, 4)]
    assert ["pieces of 2" in events.texts[0], "pieces of 1" in events.texts[1]] == [True, True]
    assert "gradient checkpointing is on" in events.texts[2] and len(events.texts) == 3


def short_of_memory(forward: Callable[..., Tensor], most: int) -> Callable[..., Tensor]:
    """A U-Net's forward for which memory suffices up to a batch of `most`."""

    def wrapped(x: Tensor, *args: Any) -> Tensor:
        result = forward(x, *args)
        if len(x) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return result

    return wrapped


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_goes_on_with_the_same_updates(
    accumulation: int, checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        train_batch_size=4, gradient_accumulation_steps=accumulation, on_out_of_memory="retreat",
        network_train_unet_only=True,
    )  # fmt: skip
    plain = Trainer(checkpoint, config, tmp_path / "plain").run()
    monkeypatch.setattr(checkpoint.unet, "forward", short_of_memory(checkpoint.unet.forward, 1))
    events = Messages()
    short = Trainer(checkpoint, config, tmp_path / "short", events).run()
    monkeypatch.undo()
    assert short.steps == plain.steps and short.bad_steps == 0
    assert short.losses == pytest.approx(plain.losses, rel=1e-4)
    told = [text for text in events.texts if text.startswith("Not enough memory")]
    assert ["pieces of 2" in told[0], "pieces of 1" in told[1], len(told)] == [True, True, 2]


def test_without_retreat_all_is_freed_and_advice_given(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Tensor]] = []
    forward = checkpoint.unet.forward

    def explode(*args: Any) -> Tensor:
        activations = forward(*args)
        held.append(weakref.ref(activations))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoint.unet, "forward", explode)
    with pytest.raises(UserError, match="not enough memory on cpu") as caught:
        Trainer(checkpoint, small_config(), tmp_path / "out").run()
    monkeypatch.undo()
    gc.collect()
    assert held[0]() is None, "the error keeps what the step has made"
    assert caught.value.__cause__ is None


def test_advice_stands_in_the_order_of_effect() -> None:
    config = make_config({"train_batch_size": 4, "cache_latents": False, "network_dim": 64})
    text = advice_for(config, torch.device("cuda"))
    words = [
        "train_batch_size (now 4)", "gradient_checkpointing", "mixed_precision", "resolution", "AdamW8bit",
        "network_train_unet_only", "cache_latents", "network_dim (now 64)", "on_out_of_memory to retreat",
    ]  # fmt: skip
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    small = make_config({
        "gradient_checkpointing": True, "network_train_unet_only": True, "network_dim": 4,
        "on_out_of_memory": "retreat",
    })  # fmt: skip
    assert advice_for(small, torch.device("cpu")) == "not enough memory on cpu for this run: lower resolution (now 512)"


def test_a_state_keeps_how_far_a_run_has_drawn_back(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        on_out_of_memory="retreat", save_state_on_train_end=True, network_train_unet_only=True, max_train_epochs=1
    )
    monkeypatch.setattr(checkpoint.unet, "forward", short_of_memory(checkpoint.unet.forward, 1))
    Trainer(checkpoint, config, tmp_path / "out").run()
    monkeypatch.undo()
    retreat = Retreat(Messages(), lambda: True)
    from lora_ext.training.state_folders import read_state

    retreat.load_state_dict(read_state(tmp_path / "out" / "cat-state").parts["step"]["retreat"])
    assert (retreat.pieces, retreat.checkpointing) == (2, False)
    assert read_network(tmp_path / "out" / "cat-state" / "network.safetensors").metadata["ss_steps"] == "3"
