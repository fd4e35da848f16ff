"""Which kind of network a module's stored tensors are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.networks.weight_delta import decomposed, low_rank, orthogonal, products, scaled, timestep, whole
from lora_ext.networks.weight_delta.module import ModuleDelta, UnsupportedNetworkError
from lora_ext.networks.weight_delta.stored import Stored, check_values
from lora_ext.protocols import UserError

SUFFIXES = frozenset().union(
    low_rank.SUFFIXES,
    {low_rank.BIAS_SUFFIX},
    low_rank.RESIDUAL_SUFFIXES,
    products.LOHA_SUFFIXES,
    products.LOKR_SUFFIXES,
    {decomposed.SUFFIX},
    orthogonal.SUFFIXES,
    scaled.IA3_SUFFIXES,
    scaled.GLORA_SUFFIXES,
    whole.FULL_SUFFIXES,
    whole.NORM_SUFFIXES,
    timestep.SUFFIXES,
)
"""All that can be applied."""


@dataclass(frozen=True)
class _Kind:
    """A kind of network: tensors any of which tells it, those that it may have, and what is made of them."""

    marks: set[str]
    suffixes: frozenset[str]
    make: Callable[[Stored], ModuleDelta]
    takes_dora: bool = False


def _rotation(stored: Stored) -> ModuleDelta:
    blocks = stored.need("oft_blocks", 3, 4)
    return orthogonal.DiagOftDelta(stored) if blocks.ndim == 3 else orthogonal.BoftDelta(stored)


def _full(stored: Stored) -> ModuleDelta:
    return whole.WholeDelta(stored, "full", "diff", "diff_b")


def _norm(stored: Stored) -> ModuleDelta:
    return whole.WholeDelta(stored, "norm", "w_norm", "b_norm")


_KINDS = (
    _Kind({"bias_values"}, low_rank.SUFFIXES | low_rank.RESIDUAL_SUFFIXES, low_rank.SparseLoraDelta),
    _Kind({"lora_up.weight", "lora_down.weight"}, low_rank.SUFFIXES | {low_rank.BIAS_SUFFIX}, low_rank.LoraDelta, True),
    _Kind({"hada_w1_a", "hada_w2_a"}, products.LOHA_SUFFIXES, products.LohaDelta, True),
    _Kind({"lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"}, products.LOKR_SUFFIXES, products.LokrDelta, True),
    _Kind({"lambda_layer"}, timestep.SUFFIXES, timestep.TimestepLoraDelta),
    _Kind({"a1.weight", "b1.weight"}, scaled.GLORA_SUFFIXES, scaled.GloraDelta),
    _Kind({"oft_diag"}, orthogonal.SUFFIXES, orthogonal.OldOftDelta),
    _Kind({"oft_blocks"}, orthogonal.SUFFIXES, _rotation),
    _Kind({"on_input"}, scaled.IA3_SUFFIXES, scaled.Ia3Delta),
    _Kind({"diff", "diff_b"}, whole.FULL_SUFFIXES, _full, True),
    _Kind({"w_norm", "b_norm"}, whole.NORM_SUFFIXES, _norm),
)
"""The first whose marks are there counts."""


def module_delta(tensors: Mapping[str, Tensor]) -> ModuleDelta:
    """What one module's tensors, by suffix, do to it; all that can be wrong with them is checked here.

    Raises UnsupportedNetworkError for suffixes of an unknown kind of network, UserError where tensors are missing,
    have values that are no numbers, or shapes that do not fit each other.
    """
    kind = next((kind for kind in _KINDS if kind.marks & set(tensors)), None)
    known = kind.suffixes | {decomposed.SUFFIX} if kind else frozenset()
    unknown = sorted(set(tensors) - known)
    if kind is None or unknown:
        raise UnsupportedNetworkError(
            f"tensors {', '.join(unknown)} belong to a kind of network that cannot be applied"
        )
    check_values({suffix: tensors[suffix] for suffix in tensors if suffix not in products.unused(tensors)})
    stored = Stored(tensors)
    delta = kind.make(stored)
    if decomposed.SUFFIX not in stored:
        return delta
    if not kind.takes_dora:
        raise UnsupportedNetworkError(f"{decomposed.SUFFIX} does not go with {delta.algorithm}")
    return decomposed.DoraDelta(stored, delta)


def module_deltas(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, ModuleDelta]:
    """`module_delta` of a whole network's tensors, by module key and suffix; errors name the module."""
    return {key: _named(key, tensors) for key, tensors in modules.items()}


def _named(key: str, tensors: Mapping[str, Tensor]) -> ModuleDelta:
    try:
        return module_delta(tensors)
    except UnsupportedNetworkError as error:
        raise UnsupportedNetworkError(f"{key}: {error}") from error
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def weight_delta(tensors: Mapping[str, Tensor], base: Tensor | None = None, multiplier: float = 1.0) -> Tensor:
    """ΔW in fp32 of one module's tensors by suffix, for a weight `base`; raises as `module_delta` does.

    Without a weight ΔW has the shape that is stored, which only networks that do not need one allow.
    """
    delta = module_delta(tensors)
    if "weight" not in delta.parameters:
        raise UserError(f"{delta.algorithm} of this module changes its bias alone: there is no change of the weight")
    if base is None:
        if delta.needs_weight:
            raise UserError(f"{delta.algorithm} changes a weight by what it is: it cannot be made without the weight")
        device = next(iter(tensors.values())).device
        base = torch.empty(1, device=device).expand(delta.shape_for(()))
    elif not delta.fits(base.shape):
        raise UserError(
            f"{delta.algorithm} for a weight of {delta.shape_for(base.shape)} does not fit one of {tuple(base.shape)}: "
            "it was made for another checkpoint"
        )
    return delta.delta(base, multiplier)
