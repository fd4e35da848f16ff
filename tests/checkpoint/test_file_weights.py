"""A checkpoint in its file answers to the same keys, with the same values, as the loaded one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_ext.checkpoint.file_weights import checkpoint_in, open_checkpoint_file
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.tensor_files import open_tensor_file
from lora_ext.checkpoint.weight_views import WeightView
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.host.standalone.random_checkpoint import TINY_KINDS, write_random_kind
from lora_ext.protocols import UserError


@pytest.mark.parametrize("kind", sorted(TINY_KINDS))
def test_keys_and_values_are_those_of_the_loaded_checkpoint(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    write_random_kind(path, TINY_KINDS[kind])
    loaded = checkpoint_weights(load_checkpoint(path, torch.device("cpu"), torch.float32).checkpoint)
    stored = open_checkpoint_file(path)
    assert set(stored.weights) == set(loaded)
    assert stored.architecture == TINY_KINDS[kind].architecture
    values = dict(stored.values(set(loaded)))
    assert sum(value.numel() for value in values.values()) > 100_000
    for key, view in loaded.items():
        assert torch.equal(values[key], view.detach())
        assert _has_bias(stored.weights[key]) == _has_bias(view)


def _has_bias(view: WeightView) -> bool:
    return view.bias is not None


def test_other_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match="seems to be a LoRA"):
        open_checkpoint_file(path)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_file_that_lacks_layers_has_the_others(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    write_random_kind(path, TINY_KINDS[kind])
    whole = open_checkpoint_file(path)
    lost = next(key for key in sorted(whole.weights) if key.startswith("lora_te") and key.endswith("_fc2"))
    name = whole.tensor_of(lost)
    kept = {
        each: shape for each, shape in whole.file.shapes.items() if each.rpartition(".")[0] != name.rpartition(".")[0]
    }
    assert set(whole.weights) - set(checkpoint_in(replace(whole.file, shapes=kept)).weights) == {lost}


def test_a_file_without_whole_parts_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_random_kind(path, TINY_KINDS["sd1"])
    file = open_tensor_file(path)
    kept = {name: shape for name, shape in file.shapes.items() if ".middle_block." not in name}
    with pytest.raises(UserError, match=r"model\.safetensors: is not a whole checkpoint.*middle_block"):
        checkpoint_in(replace(file, shapes=kept))
