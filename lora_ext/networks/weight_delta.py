"""ΔW of one module from its stored tensors: the only definition of it in the project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.protocols import UserError

LORA_SUFFIXES = frozenset({"lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha"})


class UnsupportedNetworkError(UserError):
    """Tensors of a kind of network that cannot be applied."""


@dataclass(frozen=True)
class LowRankFactors:
    """ΔW = scale · up @ down, reshaped to `shape`.

    up (out, rank) and down (rank, in·kh·kw) in the dtype they are stored in, except that a Tucker core is multiplied
    into down in fp32.
    """

    up: Tensor
    down: Tensor
    scale: float
    shape: tuple[int, ...]


def low_rank_factors(tensors: Mapping[str, Tensor]) -> LowRankFactors:
    """The factors of one module's LoRA or LoCon tensors, by suffix; a missing alpha is the rank.

    Raises UnsupportedNetworkError for suffixes of another kind of network, UserError where tensors are missing or
    their shapes do not fit each other.
    """
    unknown = sorted(set(tensors) - LORA_SUFFIXES)
    if unknown:
        raise UnsupportedNetworkError(
            f"tensors {', '.join(unknown)} belong to a kind of network that cannot be applied yet; "
            f"LoRA and LoCon can ({', '.join(sorted(LORA_SUFFIXES))})"
        )
    missing = [name for name in ("lora_up.weight", "lora_down.weight") if name not in tensors]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing: the file is damaged, get it again")
    up, down, core = tensors["lora_up.weight"], tensors["lora_down.weight"], tensors.get("lora_mid.weight")
    if any(dimension != 1 for dimension in up.shape[2:]) or down.ndim not in (2, 4):
        raise UserError(f"lora_up {tuple(up.shape)} and lora_down {tuple(down.shape)} are no factors of a weight")
    if core is not None:
        down = _with_core(core, down)  # (rank, in, kh, kw)
    rank, shape = down.shape[0], (up.shape[0], *down.shape[1:])
    up, down = up.reshape(up.shape[0], -1), down.reshape(rank, -1)
    if up.shape[1] != rank:
        raise UserError(f"lora_up has rank {up.shape[1]} and lora_down has rank {rank}: the file is damaged")
    scale = float(tensors["alpha"]) / rank if "alpha" in tensors else 1.0
    return LowRankFactors(up, down, scale, shape)


@torch.no_grad()
def weight_delta(tensors: Mapping[str, Tensor]) -> Tensor:
    """ΔW in fp32, (out, in) or (out, in, kh, kw), of one module's tensors by suffix, at multiplier 1.

    Raises as `low_rank_factors` does.
    """
    factors = low_rank_factors(tensors)
    with exact_matmul():
        return ((factors.up.float() * factors.scale) @ factors.down.float()).reshape(factors.shape)


def _with_core(core: Tensor, down: Tensor) -> Tensor:
    """Tucker core (r, s, kh, kw) times down (s, in, 1, 1): (r, in, kh, kw) in fp32."""
    if core.ndim != 4 or down.shape[2:] not in ((), (1, 1)) or core.shape[1] != down.shape[0]:
        raise UserError(f"lora_mid {tuple(core.shape)} does not fit lora_down {tuple(down.shape)}")
    with torch.no_grad(), exact_matmul():
        return torch.einsum("rshw,si->rihw", core.float(), down.reshape(down.shape[0], -1).float())


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Full fp32 in matrix products on a GPU, whatever the program around has allowed (TF32 keeps 10 bits)."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
