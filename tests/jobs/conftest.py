"""A host that lends the tiny checkpoint, and pictures to train on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.protocols import CheckpointInfo, Folders, GeneratedImage, GenerateRequest, Progress


@dataclass
class Lending:
    checkpoint: Checkpoint


class LendingHost:
    """Lends a checkpoint to one borrower at a time; `gate` holds a borrower up until it is set."""

    name = "test host"
    shows_cards = False

    def __init__(self, checkpoint: Checkpoint, home: Path) -> None:
        self.checkpoint = checkpoint
        self.home = home
        self.gate = threading.Event()
        self.gate.set()
        self.borrows = 0
        self.lent = False
        self.noticed: list[Path] = []
        self.refuses_files = False

    def checkpoint_info(self) -> CheckpointInfo:
        return CheckpointInfo(self.checkpoint.name, "SD1", "epsilon", "cpu", "float32")

    @contextmanager
    def borrow(self) -> Iterator[Lending]:
        assert not self.lent
        self.gate.wait(30)
        self.lent = True
        self.borrows += 1
        try:
            yield Lending(self.checkpoint)
        finally:
            self.lent = False

    def samplers(self) -> list[str]:
        return []

    def folders(self) -> Folders:
        return Folders((self.home / "networks",), self.home / "runs", self.home / "images")

    def network_saved(self, path: Path) -> None:
        if self.refuses_files:
            raise OSError("the list of networks is locked")
        self.noticed.append(path)

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        raise NotImplementedError


@pytest.fixture(scope="session")
def lent_checkpoint(tiny_checkpoint_path: Path) -> Checkpoint:
    from lora_ext.host.standalone.loader import load_checkpoint

    return load_checkpoint(tiny_checkpoint_path, torch.device("cpu"), torch.float32).checkpoint


@pytest.fixture
def host(lent_checkpoint: Checkpoint, tmp_path: Path) -> LendingHost:
    return LendingHost(lent_checkpoint, tmp_path / "home")


@pytest.fixture
def run_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes configurations of two steps an epoch."""
    folder = tmp_path / "pictures" / "1_cat"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (64, 64), (100 * number, 50, 80)).save(folder / f"{number}.png")

    def make(name: str = "cat", **values: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "train_data_dir": str(folder.parent), "resolution": "64", "min_bucket_reso": 32, "network_dim": 2,
            "output_name": name, "max_train_epochs": 2, "network_train_unet_only": True,
        }  # fmt: skip
        return make_config({**defaults, **values})

    return make


def stems(files: Sequence[str | Path]) -> list[str]:
    return [Path(file).stem for file in files]
