"""Networks that are part of the base during a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.patches import TRAINING
from lora_ext.config.groups import NetworkSettings
from lora_ext.config.run_rules import base_networks
from lora_ext.networks.file import NetworkFile, model_hash, read_network
from lora_ext.networks.matching import match
from lora_ext.networks.weight_delta import module_delta
from lora_ext.networks.weight_patch import Share, WeightPatch, patches_of
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
    checkpoint.ledger.patch(TRAINING, _patches(checkpoint, networks))
    try:
        yield
    finally:
        checkpoint.ledger.restore(TRAINING)


def _patches(checkpoint: Checkpoint, networks: Sequence[BaseNetwork]) -> dict[nn.Parameter, WeightPatch]:
    weights = checkpoint_weights(checkpoint)
    shares: list[Share] = []
    for place, network in enumerate(networks):
        setting = f"base_weights = {network.file.path.name}"
        modules = {key: module_delta(tensors) for key, tensors in network.file.modules.items()}
        try:
            matched = match(modules, weights, checkpoint)
        except UserError as error:
            raise UserError(f"{setting}: {error}") from error
        if matched.unmatched:
            raise UserError(
                f"{setting}: it has {counted(matched.unmatched)} that {checkpoint.name} lacks "
                f"({', '.join(matched.unmatched[:3])}): it is for another kind of checkpoint"
            )
        shares += [
            Share((place, key), network.multiplier, None, view, modules[key], parameter)
            for (key, parameter), view in matched.views.items()
        ]
    return patches_of(shares)
