"""Network files of every algorithm, with random tensors that change a picture well and break nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.networks.file import write_network

RANK = 4
CONVOLUTIONS = (
    "_conv1", "_conv2", "_conv_shortcut", "_conv", "_in_layers_2", "_out_layers_3", "_skip_connection", "_op",
)  # fmt: skip
ATTENTION = ("_to_q", "_to_k", "_to_v", "_to_out_0", "_q_proj", "_k_proj", "_v_proj", "_out_proj")
LAYERS = (*ATTENTION, "_ff_net_0_proj", "_ff_net_2", "_proj_in", "_proj_out", "_fc1", "_fc2")

Maker = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
"""A module's weight → its tensors in a file by suffix."""


def _random(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _size(weight: Tensor) -> float:
    """Standard deviation of the change that a module is given."""
    return 0.3 * float(weight.std())


def lora(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Up and down, of the kernel's size."""
    ones = [1] * (weight.ndim - 2)
    up = _random(weight.shape[0], RANK, *ones, generator=generator) * _size(weight) * 2 / RANK**0.5
    down = _random(RANK, *weight.shape[1:], generator=generator)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(RANK / 2)}


def tucker(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Up, mid and down for kernels; plain otherwise."""
    if weight.ndim == 2 or weight.shape[2] == 1:
        return lora(weight, generator)
    outside, inside, *kernel = weight.shape
    return {
        "lora_up.weight": _random(outside, RANK, 1, 1, generator=generator) * _size(weight) * 2 / RANK,
        "lora_mid.weight": _random(RANK, RANK, *kernel, generator=generator),
        "lora_down.weight": _random(RANK, inside, 1, 1, generator=generator),
        "alpha": torch.tensor(RANK / 2),
    }


def loha(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The product of two low-rank matrices, element by element."""
    outside, inside = weight.shape[0], math.prod(weight.shape[1:])
    tensors = {"alpha": torch.tensor(float(RANK))}
    for part in ("hada_w1", "hada_w2"):
        tensors[f"{part}_a"] = _random(outside, RANK, generator=generator) * (_size(weight) / RANK) ** 0.5
        tensors[f"{part}_b"] = _random(RANK, inside, generator=generator)
    return tensors


def loha_tucker(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The same with a core for kernels."""
    if weight.ndim == 2 or weight.shape[2] == 1:
        return loha(weight, generator)
    outside, inside, *kernel = weight.shape
    tensors = {"alpha": torch.tensor(float(RANK))}
    for number in (1, 2):
        tensors[f"hada_t{number}"] = _random(RANK, RANK, *kernel, generator=generator)
        tensors[f"hada_w{number}_a"] = _random(RANK, outside, generator=generator) * _size(weight) ** 0.5 / RANK
        tensors[f"hada_w{number}_b"] = _random(RANK, inside, generator=generator)
    return tensors


def _halved(number: int, factor: int = 8) -> tuple[int, int]:
    """Two factors of a number, the first one `factor` where that divides it."""
    return (factor, number // factor) if number % factor == 0 else (1, number)


def lokr(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A Kronecker product of a whole matrix and a low-rank one."""
    (rows, other_rows), (columns, other_columns) = _halved(weight.shape[0]), _halved(weight.shape[1])
    kernel = math.prod(weight.shape[2:])
    return {
        "lokr_w1": _random(rows, columns, generator=generator) * _size(weight) / RANK**0.5,
        "lokr_w2_a": _random(other_rows, RANK, generator=generator),
        "lokr_w2_b": _random(RANK, other_columns * kernel, generator=generator),
        "alpha": torch.tensor(float(RANK)),
    }


def lokr_whole(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A Kronecker product of two whole matrices; alpha says nothing there."""
    (rows, other_rows), (columns, other_columns) = _halved(weight.shape[0]), _halved(weight.shape[1])
    return {
        "lokr_w1": _random(rows, columns, generator=generator) * _size(weight),
        "lokr_w2": _random(other_rows, other_columns, *weight.shape[2:], generator=generator),
        "alpha": torch.tensor(1.0),
    }


def full(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The whole change."""
    return {"diff": _random(*weight.shape, generator=generator) * _size(weight)}


def ia3(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A factor for each row."""
    shape = (weight.shape[0], *[1] * (weight.ndim - 1))
    return {"weight": _random(*shape, generator=generator) * 0.2, "on_input": torch.tensor(False)}


def oft(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Rotations of eight outputs each."""
    blocks = _random(weight.shape[0] // 8, 8, 8, generator=generator) * 0.05
    return {"oft_blocks": blocks, "alpha": torch.tensor(0.0)}


def boft(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Rotations in a butterfly, of widths that are powers of two."""
    number = weight.shape[0] // 8
    stages = (number - 1).bit_count() + 1
    blocks = _random(stages, number, 8, 8, generator=generator) * 0.03
    return {"oft_blocks": blocks, "alpha": torch.tensor(0.0)}


def glora(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """W·A + B of low ranks, A = a1·a2, B = b1·b2."""
    outside, inside = weight.shape
    return {
        "a1.weight": _random(inside, RANK, generator=generator) * 0.1,
        "a2.weight": _random(RANK, inside, generator=generator) * 0.1,
        "b1.weight": _random(outside, RANK, generator=generator) * _size(weight) / RANK**0.5,
        "b2.weight": _random(RANK, inside, generator=generator),
        "alpha": torch.tensor(float(RANK)),
    }


def _dora(weight: Tensor, generator: torch.Generator, kept: int) -> dict[str, Tensor]:
    """LoRA with the length of each row (kept = 0) or column (1) of the weight set anew."""
    others = [axis for axis in range(weight.ndim) if axis != kept]
    lengths = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    factor = 1 + 0.1 * torch.randn(lengths.shape, generator=generator)
    return {**lora(weight, generator), "dora_scale": lengths * factor}


def dora_out(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """DoRA on the output axis, lycoris' default."""
    return _dora(weight, generator, kept=0)


def dora_in(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """DoRA on the input axis."""
    return _dora(weight, generator, kept=1)


ALGORITHMS: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "LoRA": (lora, LAYERS),
    "LoCon": (lora, LAYERS + CONVOLUTIONS),
    "LoCon, Tucker": (tucker, LAYERS + CONVOLUTIONS),
    "LoHa": (loha, LAYERS + CONVOLUTIONS),
    "LoHa, Tucker": (loha_tucker, LAYERS + CONVOLUTIONS),
    "LoKr": (lokr, LAYERS + CONVOLUTIONS),
    "LoKr, whole": (lokr_whole, LAYERS + CONVOLUTIONS),
    "full": (full, LAYERS + CONVOLUTIONS),
    "(IA)³": (ia3, ("_to_k", "_to_v", "_ff_net_2", "_k_proj", "_v_proj", "_fc2")),
    "diag-OFT": (oft, ("_to_q", "_to_k", "_to_v", "_to_out_0", *CONVOLUTIONS)),
    "BOFT": (boft, ("_to_q", "_to_k", "_to_v", "_to_out_0", *CONVOLUTIONS)),
    "GLoRA": (glora, ("_to_q", "_to_k", "_to_v", "_to_out_0")),
    "DoRA, out": (dora_out, LAYERS),
    "DoRA, in": (dora_in, LAYERS),
}
"""Name → what makes a module's tensors, and how the keys of the modules end."""


def write_algorithm(path: Path, algorithm: str, weights: Mapping[str, Tensor], seed: int = 1) -> int:
    """Write a network of an algorithm for the weights of a checkpoint, by key; returns how many modules it has."""
    make, endings = ALGORITHMS[algorithm]
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    keys = [key for key in weights if key.endswith(endings)]
    for key in keys:
        tensors |= {f"{key}.{suffix}": tensor for suffix, tensor in make(weights[key], generator).items()}
    write_network(path, tensors, {"ss_output_name": path.stem}, "float")
    return len(keys)
