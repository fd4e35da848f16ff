"""Networks that are part of the base during a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.patches import TRAINING, Delta
from lora_ext.config.groups import NetworkSettings
from lora_ext.config.run_rules import base_networks
from lora_ext.networks.file import NetworkFile, model_hash, read_network
from lora_ext.networks.weight_delta import low_rank_factors, weight_delta
from lora_ext.protocols import UserError
from lora_ext.training.first_network import counted, find_network


@dataclass(frozen=True)
class BaseNetwork:
    """A network that is part of the base during a run."""

    file: NetworkFile
    multiplier: float
    hash: str


def read_base_networks(settings: NetworkSettings, folders: Sequence[Path]) -> list[BaseNetwork]:
    """The networks that `base_weights` names; UserError where one is not there or cannot be read."""
    networks = []
    for name, multiplier in base_networks(settings):
        path = find_network("base_weights", name, folders)
        networks.append(BaseNetwork(read_network(path), multiplier, model_hash(path)))
    return networks


@contextmanager
def merged(checkpoint: Checkpoint, networks: Sequence[BaseNetwork]) -> Iterator[None]:
    """W = W₀ + Σ multiplier·ΔW in the checkpoint's weights, bit for bit W₀ again afterwards.

    Raises UserError where a network does not fit the checkpoint.
    """
    if not networks:
        yield
        return
    checkpoint.ledger.patch(TRAINING, _deltas(checkpoint, networks))
    try:
        yield
    finally:
        checkpoint.ledger.restore(TRAINING)


def _deltas(checkpoint: Checkpoint, networks: Sequence[BaseNetwork]) -> dict[nn.Parameter, Delta]:
    parameters = checkpoint_weights(checkpoint)
    shares: dict[nn.Parameter, list[tuple[Mapping[str, Tensor], float]]] = {}
    for network in networks:
        unknown = [key for key in network.file.modules if key not in parameters]
        if unknown:
            raise UserError(
                f"base_weights = {network.file.path.name}: it has {counted(unknown)} that {checkpoint.name} lacks "
                f"({', '.join(unknown[:3])}): it is for another kind of checkpoint"
            )
        for key, tensors in network.file.modules.items():
            _check_size(network, key, parameters[key])
            shares.setdefault(parameters[key], []).append((tensors, network.multiplier))
    return {parameter: _sum_of(parts, parameter.device) for parameter, parts in shares.items()}


def _check_size(network: BaseNetwork, key: str, weight: nn.Parameter) -> None:
    shape = low_rank_factors(network.file.modules[key]).shape
    if math.prod(shape) != weight.numel():
        raise UserError(
            f"base_weights = {network.file.path.name}: {key} is {shape} instead of {tuple(weight.shape)}: it is for "
            "another kind of checkpoint"
        )


def _sum_of(parts: Sequence[tuple[Mapping[str, Tensor], float]], device: torch.device) -> Delta:
    def delta() -> Tensor:
        deltas = [
            weight_delta({name: tensor.to(device) for name, tensor in tensors.items()}).flatten() * multiplier
            for tensors, multiplier in parts
        ]
        return torch.stack(deltas).sum(0) if len(deltas) > 1 else deltas[0]

    return delta
