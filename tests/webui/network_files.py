"""Network files with random factors for the checkpoint of a WebUI under test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.networks.file import write_network

ATTENTION = ("_to_q", "_to_k", "_to_v", "_to_out_0", "_proj_in", "_proj_out", "_proj", "_fc1", "_fc2", "_net_2")
CONVOLUTIONS = ("_conv1", "_conv2", "_conv_shortcut", "_conv", "_time_emb_proj")


class Networks:
    """Writes network files with random factors for the modules of the WebUI's checkpoint."""

    def __init__(self, folder: Path, weights: dict[str, Tensor]) -> None:
        self.folder, self.weights = folder, weights

    def write(self, name: str, seed: int, endings: tuple[str, ...] = ATTENTION, rank: int = 4) -> Path:
        """Factors of all modules whose key ends so; the change of each weight has about a third of its size."""
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Tensor] = {}
        for key, weight in self.weights.items():
            if not key.endswith(endings):
                continue
            up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator)
            down = torch.randn(rank, *weight.shape[1:], generator=generator)
            scale = weight.std().item() * 0.3 / rank**0.5
            tensors |= {f"{key}.lora_up.weight": up * scale * 2, f"{key}.lora_down.weight": down}
            tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
        path = self.folder / f"{name}.safetensors"
        write_network(path, tensors, {"ss_output_name": f"{name} of the tests"}, "fp16")
        return path

    def write_loha(self, name: str) -> Path:
        """A LoHa of the U-Net's attention."""
        generator = torch.Generator().manual_seed(9)
        tensors: dict[str, Tensor] = {}
        for key, weight in self.weights.items():
            if key.endswith(("_to_q", "_to_k", "_to_v", "_to_out_0")):
                for part in ("hada_w1", "hada_w2"):
                    tensors[f"{key}.{part}_a"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.3
                    tensors[f"{key}.{part}_b"] = torch.randn(4, weight.shape[1], generator=generator) * 0.3
                tensors[f"{key}.alpha"] = torch.tensor(4.0)
        path = self.folder / f"{name}.safetensors"
        write_network(path, tensors, {}, "float")  # the built-in multiplies in the file's precision
        return path

    def write_dora(self, name: str, axis: int, whole: bool = False) -> Path:
        """A DoRA of the U-Net's attention with lengths by output (0) or input (1), or what it comes to."""
        generator = torch.Generator().manual_seed(10)
        tensors: dict[str, Tensor] = {}
        for key, weight in self.weights.items():
            if not key.endswith(("_to_q", "_to_v", "_to_out_0")):
                continue
            weight = weight.double()
            up, down = (torch.randn(shape, generator=generator) for shape in ((len(weight), 4), (4, weight.shape[1])))
            up *= weight.std() * 0.2
            changed = weight + up.half().double() @ down.half().double()
            lengths = weight.norm(dim=1 - axis, keepdim=True)
            lengths = (lengths * (1 + 0.3 * torch.randn(lengths.shape, generator=generator))).half()
            if whole:
                tensors[f"{key}.diff"] = changed * lengths / changed.norm(dim=1 - axis, keepdim=True) - weight
            else:
                tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.dora_scale": lengths}
        path = self.folder / f"{name}.safetensors"
        write_network(path, tensors, {}, "float" if whole else "fp16")
        return path


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint's file, by key in a network file."""
    loaded = load_checkpoint(checkpoint, torch.device("cpu"), torch.float32).checkpoint
    return {key: weight.detach() for key, weight in checkpoint_weights(loaded).items()}


def difference(left: np.ndarray, right: np.ndarray) -> float:
    """Mean of |left − right| in units of 1/255."""
    assert left.shape == right.shape
    return float(np.abs(left.astype(np.int16) - right.astype(np.int16)).mean())
