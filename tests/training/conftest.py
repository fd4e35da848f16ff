"""A tiny checkpoint that every test of training must leave as it was, and drawn pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.training.freezing import base_modules


@pytest.fixture(scope="session")
def loaded_checkpoint(tiny_checkpoint_path: Path) -> Checkpoint:
    """The tiny checkpoint in fp32; tests take `checkpoint`, which watches over it."""
    from lora_ext.host.standalone.loader import load_checkpoint

    return load_checkpoint(tiny_checkpoint_path, torch.device("cpu"), torch.float32).checkpoint


def state_of(checkpoint: Checkpoint) -> list[Any]:
    """Everything of the base that a run could leave changed: bits, memory, dtypes, flags, overrides."""
    state: list[Any] = []
    for root in base_modules(checkpoint):
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            digest = hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
            state.append((name, digest, tensor.dtype, tensor.data_ptr(), tensor.requires_grad, tensor.grad is None))
        state += [(name, module.training, "forward" in module.__dict__) for name, module in root.named_modules()]
    return state


@pytest.fixture(name="state_of")
def give_state_of() -> Callable[[Checkpoint], list[Any]]:
    """`state_of` for tests."""
    return state_of


@pytest.fixture
def checkpoint(loaded_checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """The tiny checkpoint, with flags as a host may have them; what a test has not put back fails it."""
    unet, text = loaded_checkpoint.unet, loaded_checkpoint.text_encoders[0].module
    unet.requires_grad_(True)
    unet.train()
    nn.Module.eval(text)
    before = state_of(loaded_checkpoint)
    yield loaded_checkpoint
    assert state_of(loaded_checkpoint) == before


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with 2_cat: three drawn pictures, two of them wide, and captions."""
    folder = tmp_path / "pictures" / "2_cat"
    folder.mkdir(parents=True)
    for number, size in enumerate([(64, 64), (96, 64), (96, 64)]):
        image = Image.new("RGB", size, (40 + 60 * number, 90, 200 - 60 * number))
        ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=(250, 220, 40))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a cat, number {number}, yellow", encoding="utf-8")
    return folder.parent


@pytest.fixture
def small_config(pictures: Path) -> Callable[..., TrainConfig]:
    """Makes configurations for `pictures` at 64 px: four batches an epoch at batch 1 … 6, two epochs."""

    def make(**values: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "train_data_dir": str(pictures),
            "resolution": "64",
            "min_bucket_reso": 32,
            "bucket_reso_steps": 16,
            "output_name": "cat",
            "network_dim": 4,
            "network_alpha": 4,
            "learning_rate": 1e-3,
            "train_batch_size": 2,
            "max_train_epochs": 2,
            "save_precision": "float",
        }
        return make_config({**defaults, **values})

    return make
