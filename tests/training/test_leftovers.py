"""Runs one after another in one process: nothing of one is left when the next begins."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.protocols import UserError
from lora_ext.training.trainer import Trainer


def things() -> Counter[str]:
    """How many tensors, modules and threads there are, and how much memory the tensors hold."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):
            found["tensors"] += 1
            found["bytes"] += each.numel() * each.element_size()
        elif issubclass(type(each), nn.Module):
            found["modules"] += 1
    found["threads"] = threading.active_count()
    return found


@pytest.mark.slow
def test_runs_leave_nothing_behind(
    checkpoint: Checkpoint, small_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        max_train_epochs=1, gradient_checkpointing=True, save_state=True, save_every_n_steps=2, ema_decay=0.9,
        network_dropout=0.1, network_train_unet_only=True,
    )  # fmt: skip
    Trainer(checkpoint, config, tmp_path / "0").run()
    before = things()
    Trainer(checkpoint, config, tmp_path / "1").run()
    assert things() == before

    def explode(*args: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoint.unet, "forward", explode)
    with pytest.raises(UserError):
        Trainer(checkpoint, config, tmp_path / "2").run()
    monkeypatch.undo()
    assert things() == before
