"""The tiny checkpoint in memory, fresh for every test."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.host.standalone.loader import load_checkpoint


@pytest.fixture(scope="session")
def loaded_checkpoint(tiny_checkpoint_path: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint_path, torch.device("cpu"), torch.float32).checkpoint


@pytest.fixture
def checkpoint(loaded_checkpoint: Checkpoint) -> Checkpoint:
    return copy.deepcopy(loaded_checkpoint)
