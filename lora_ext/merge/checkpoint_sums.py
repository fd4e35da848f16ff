"""A checkpoint with networks in its weights, tensor by tensor: W + Σ w·ΔW, with one rounding."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.checkpoint.file_weights import CheckpointFile
from lora_ext.merge.inputs import WeightedNetwork
from lora_ext.networks.matching import Match, match, unmatched_message
from lora_ext.networks.weight_delta.stored import is_finite
from lora_ext.networks.weight_patch import Share, ShareError, WeightPatch, patches_of
from lora_ext.protocols import UserError

_KNOWN: tuple[Architecture, ...] = ("SD1", "SD2", "SDXL")


@dataclass(frozen=True)
class CheckpointSum:
    """What networks change in a checkpoint: patches by the tensor's name in its file.

    `modules` says how many of each network's modules are changed, in the networks' order; `warnings` what they have
    that the checkpoint lacks.
    """

    patches: Mapping[str, WeightPatch]
    modules: Sequence[int]
    warnings: Sequence[str]


def checkpoint_sum(checkpoint: CheckpointFile, networks: Sequence[WeightedNetwork]) -> CheckpointSum:
    """What prompts with tags of these networks make of the weights; a file that is named twice has both its weights.

    Raises UserError, naming the network, for one that is for another kind of checkpoint.
    """
    matches = [_matched(checkpoint, network) for network in networks]
    parts = [_shares(checkpoint, network, found) for network, found in zip(networks, matches, strict=True)]
    total: dict[Hashable, Share] = {}
    for place in sorted(range(len(networks)), key=lambda each: networks[each].file.path):  # sums depend on the order
        for share in parts[place]:
            before = total[share.source].multiplier if share.source in total else 0.0
            total[share.source] = replace(share, multiplier=before + share.multiplier)
    patches = patches_of(share for share in total.values() if share.multiplier)
    return CheckpointSum(
        {checkpoint.tensor_names[parameter]: patch for parameter, patch in patches.items()},
        [len({id(share.delta) for share in shares if share.multiplier}) for shares in parts],
        [
            unmatched_message(network.name, found.unmatched, len({key for key, _ in found.views}))
            for network, found in zip(networks, matches, strict=True)
            if found.unmatched
        ],
    )


@torch.no_grad()
def summed(name: str, stored: Tensor, patch: WeightPatch | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One tensor of the checkpoint with its patch, on the CPU: summed in fp32, rounded once to `dtype`.

    In its own dtype, and without a patch, it is what it was bit for bit. Raises UserError where a value does not fit
    `dtype`, or where a network's part cannot be made.
    """
    if patch is None:
        return _rounded(name, stored, dtype)
    base = stored.to(device)
    if dtype != stored.dtype:
        base = base.float()
    changed = torch.empty_like(base)
    try:
        patch.write(base, changed)
    except ShareError as error:
        path, key, _ = error.source
        raise UserError(f"{path.stem}: {key}: {error}") from error
    if not is_finite(changed):
        if is_finite(base):
            raise _too_large(name, changed.dtype)
        raise UserError(f"{name} of the checkpoint has values that are no numbers: it is damaged, get it again")
    return _rounded(name, changed, dtype).cpu()


def _matched(checkpoint: CheckpointFile, network: WeightedNetwork) -> Match:
    """What a network changes; UserError where that is nothing, or where it is for another kind of checkpoint."""
    other = f"{network.file.path}: it is for another kind of checkpoint than {checkpoint.name}"
    if network.base in _KNOWN and network.base != checkpoint.architecture:
        raise UserError(f"{other}: {network.base}, not {checkpoint.architecture}")
    try:
        found = match(network.deltas, checkpoint.weights, checkpoint)
    except UserError as error:
        raise UserError(f"{network.file.path}: {error}") from error
    if not found.views:
        raise UserError(
            f"{other} ({checkpoint.architecture}), which has none of its {len(network.deltas)} modules "
            f"({next(iter(network.deltas))}, …)"
        )
    return found


def _shares(checkpoint: CheckpointFile, network: WeightedNetwork, found: Match) -> list[Share]:
    return [
        Share(
            (network.file.path, key, parameter),
            network.multiplier(key, checkpoint.architecture),
            None,
            view,
            network.deltas[key],
            parameter,
        )
        for (key, parameter), view in found.views.items()
    ]


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    rounded = tensor.to(dtype)
    if not is_finite(rounded) and is_finite(tensor):
        raise _too_large(name, dtype)
    return rounded


def _too_large(name: str, dtype: torch.dtype) -> UserError:
    words = str(dtype).removeprefix("torch.")
    return UserError(f"{name}: the sum has values that do not fit {words}: take smaller weights, or --precision fp32")
