"""Small inputs for the file tools, fresh for every test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from tests.merge.tool_cases import ATTENTION, CONVOLUTION, FEED, SIZES, TEXT, Inputs, low_rank_module, write_low_rank

LARGEST = 300
"""Of the checkpoint's other tensors the small ones are there; less to copy, and nothing that the tools look at."""


@pytest.fixture(scope="session")
def sound_inputs(tmp_path_factory: pytest.TempPathFactory, tiny_kind_path: Callable[[str], Path]) -> Inputs:
    """Two networks of other ranks and modules, a tiny checkpoint, and the same with the change of a LoRA; read only."""
    folder = tmp_path_factory.mktemp("inputs")
    checkpoint, tuned = folder / "checkpoint.safetensors", folder / "tuned.safetensors"
    views = open_checkpoint_file(tiny_kind_path("sd1"))
    kept = {views.tensor_of(key) for key in SIZES}
    whole = load_file(tiny_kind_path("sd1"))
    small = {name for name, each in whole.items() if each.numel() <= LARGEST}
    small -= {name for name in small if name.endswith(".bias") and name.removesuffix("bias") + "weight" in small}
    tensors = {name: each for name, each in whole.items() if name in kept | small}
    save_file(tensors, checkpoint)
    generator = torch.Generator().manual_seed(5)
    for key, size in SIZES.items():
        parts = low_rank_module(size, generator)
        change = 0.5 * parts["lora_up.weight"].flatten(1) @ parts["lora_down.weight"].flatten(1)
        tensors[views.tensor_of(key)] += change.reshape(size)
    save_file(tensors, tuned)
    network = write_low_rank(folder / "network.safetensors", seed=1)
    other = write_low_rank(folder / "other.safetensors", seed=2, rank=2, keys=(ATTENTION, FEED, CONVOLUTION, TEXT))
    return Inputs(folder, network, other, checkpoint, tuned)


@pytest.fixture
def inputs(sound_inputs: Inputs, tmp_path: Path) -> Inputs:
    """A copy of the sound inputs in a folder of its own."""
    folder = tmp_path / "files"
    shutil.copytree(sound_inputs.folder, folder)
    return Inputs(
        folder,
        *(folder / each.name for each in (sound_inputs.network, sound_inputs.other)),
        *(folder / each.name for each in (sound_inputs.checkpoint, sound_inputs.tuned)),
    )
