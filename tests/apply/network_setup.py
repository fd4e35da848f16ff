"""A checkpoint with networks of any keys, for tests of what applying them does to its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.loaded_files import LoadedFiles
from lora_ext.apply.tags import parse_tags
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.networks.file import read_network, write_network
from lora_ext.networks.library import NetworkLibrary
from lora_ext.networks.weight_delta import weight_delta

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
POINTWISE = "lora_unet_mid_block_attentions_0_proj_in"
CONVOLUTION = "lora_unet_down_blocks_1_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint's weights by key in a network file, in their own memory."""
    return {key: view.detach() for key, view in checkpoint_weights(checkpoint).items()}


class Setup:
    """A checkpoint, a folder of networks, and what puts the one into the other."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.ledger = PatchLedger()
        self.files = LoadedFiles()
        self.active = ActiveNetworks(checkpoint, self.ledger, NetworkLibrary([folder]), self.files)
        self.weights = weights_of(checkpoint)
        self.base = self.state()

    def write(self, name: str, keys: tuple[str, ...] = (LINEAR, TEXT), rank: int = 4, seed: int = 0) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Tensor] = {}
        for key in keys:
            shape = self.weights[key].shape
            up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
            tensors[f"{key}.lora_up.weight"] = up * 0.1
            tensors[f"{key}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=generator) * 0.1
            tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
        path = self.folder / f"{name}.safetensors"
        write_network(path, tensors, {"ss_output_name": f"alias of {name}"}, "fp16")
        return path

    def delta(self, name: str, key: str) -> Tensor:
        return weight_delta(read_network(self.folder / f"{name}.safetensors").modules[key]).double()

    def activate(self, prompt: str) -> list[str]:
        return self.active.activate(parse_tags(prompt).tags)

    def state(self) -> dict[str, Tensor]:
        return {key: weight.detach().clone() for key, weight in self.weights.items()}

    def changed(self) -> set[str]:
        return {key for key, weight in self.weights.items() if not torch.equal(weight, self.base[key])}

    def check(self, key: str, expected: Tensor) -> None:
        exact = self.base[key].double() + expected.reshape(self.base[key].shape)
        torch.testing.assert_close(self.weights[key].detach().double(), exact, rtol=1e-6, atol=1e-7)
