"""Networks of every kind for a tiny SD1 checkpoint, resized, for tests of what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ext.merge.resize import TOOL
from lora_ext.merge.tools import make_settings
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import write_network

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
POINTWISE = "lora_unet_down_blocks_0_attentions_0_proj_in"
KERNEL = "lora_unet_down_blocks_0_resnets_0_conv1"
NORM = "lora_unet_down_blocks_0_resnets_0_norm1"
SHAPES: dict[str, tuple[int, ...]] = {
    ATTENTION: (32, 32), TEXT: (64, 32), POINTWISE: (32, 32, 1, 1), KERNEL: (32, 32, 3, 3)
}  # fmt: skip
"""As in the tiny SD1 checkpoint."""

Modules = Mapping[str, Mapping[str, Tensor]]


def normal(*shape: int, seed: int = 0, size: float = 0.1) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(shape: tuple[int, ...], rank: int = 8, alpha: float = 4.0, seed: int = 0) -> dict[str, Tensor]:
    ones = (1,) * (len(shape) - 2)
    return {
        "lora_up.weight": (normal(shape[0], rank, seed=seed) * 0.7 ** torch.arange(rank)).reshape(
            shape[0], rank, *ones
        ),
        "lora_down.weight": normal(rank, *shape[1:], seed=seed + 1),
        "alpha": torch.tensor(alpha),
    }


def network(rank: int = 8) -> dict[str, dict[str, Tensor]]:
    return {key: low_rank(shape, rank, seed=10 * n) for n, (key, shape) in enumerate(SHAPES.items())}


def write(path: Path, modules: Modules, metadata: Mapping[str, str] | None = None, **more: Tensor) -> Path:
    tensors = {f"{key}.{suffix}": tensor for key, module in modules.items() for suffix, tensor in module.items()}
    write_network(path, tensors | more, metadata or {}, "float")
    return path


def resize(path: Path | str, out: Path, work: Work | None = None, **values: Any) -> ToolReport:
    return TOOL.run(make_settings(TOOL, {"files": str(path), "out": str(out), **values}), work or Work())


def rank_of(module: Mapping[str, Tensor]) -> int:
    return int(module["lora_down.weight"].shape[0])


def best(matrix: Tensor, rank: int) -> Tensor:
    """By torch's dense decomposition."""
    left, values, right = torch.linalg.svd(matrix.flatten(1).double(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(matrix.shape)


def assert_near(found: Tensor, wanted: Tensor, relative: float = 1e-5) -> None:
    assert float((found.double() - wanted.double()).norm()) <= relative * float(wanted.double().norm())


def loha(shape: tuple[int, ...]) -> dict[str, Tensor]:
    columns = shape[1:].numel() if isinstance(shape, torch.Size) else int(torch.tensor(shape[1:]).prod())
    parts = {
        "hada_w1_a": (shape[0], 2),
        "hada_w1_b": (2, columns),
        "hada_w2_a": (shape[0], 2),
        "hada_w2_b": (2, columns),
    }
    return {name: normal(*each, seed=n, size=0.5) for n, (name, each) in enumerate(parts.items())} | {
        "alpha": torch.tensor(1.0)
    }


def lokr(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        "lokr_w1": normal(4, 4),
        "lokr_w2_a": normal(shape[0] // 4, 2, seed=1),
        "lokr_w2_b": normal(2, shape[1] // 4, *shape[2:], seed=2),
        "alpha": torch.tensor(1.0),
    }


def full(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"diff": normal(*shape), "diff_b": normal(shape[0], seed=1)}


def tucker(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        "lora_up.weight": normal(shape[0], 4, 1, 1),
        "lora_mid.weight": normal(4, 4, *shape[2:], seed=1),
        "lora_down.weight": normal(4, shape[1], 1, 1, seed=2),
        "alpha": torch.tensor(2.0),
    }


def sparse(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return low_rank(shape, 4) | {
        "bias_indices": torch.tensor([[0, 5], [3, 7]]),
        "bias_values": torch.tensor([0.5, -0.5]),
        "bias_size": torch.tensor(shape),
    }


def dora(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return low_rank(shape) | {"dora_scale": 1 + normal(shape[0], *[1] * (len(shape) - 1), seed=3)}


def dora_by_input(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return lokr(shape) | {"dora_scale": 1 + normal(1, shape[1], *[1] * (len(shape) - 2), seed=3)}
