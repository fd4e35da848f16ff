"""Networks that are part of the base during a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.patches import TRAINING
from lora_ext.config.groups import NetworkSettings
from lora_ext.config.run_rules import base_networks
from lora_ext.networks.file import NetworkFile, model_hash, read_network
from lora_ext.networks.formats import canonical_modules
from lora_ext.networks.matching import match, unknown_message
from lora_ext.networks.weight_delta import module_deltas
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


def left_out(base: Sequence[BaseNetwork], first: NetworkFile | None) -> list[str]:
    """What of the files that a run begins with nobody understands, in words."""
    files = [each.file for each in base] + ([first] if first else [])
    return [unknown_message(file.path.name, file.network.unknown) for file in files if file.network.unknown]


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
        try:
            modules = module_deltas(_modules(network.file, checkpoint))
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


def _modules(file: NetworkFile, checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """A file's tensors by module and suffix, as this kind of checkpoint calls them; UserError where it has none."""
    found = canonical_modules(file.tensors, file.metadata, checkpoint.architecture)
    if not found.modules:
        raise UserError(f"none of its {len(file.tensors)} tensors is one of a network: name another file")
    return found.modules
