"""What a run begins with besides the checkpoint: a network that it trains on, and networks merged into the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.patches import TRAINING
from lora_ext.config.given_path import given_path
from lora_ext.config.groups import NetworkSettings
from lora_ext.config.run_rules import base_networks
from lora_ext.networks.file import NetworkFile, model_hash, read_network
from lora_ext.networks.library import NetworkLibrary
from lora_ext.networks.matching import match
from lora_ext.networks.network import Network
from lora_ext.networks.targets import Target, find_targets
from lora_ext.networks.weight_delta import module_delta
from lora_ext.networks.weight_patch import Share, WeightPatch, patches_of
from lora_ext.protocols import UserError

_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
_TEXT = "lora_te"


@dataclass(frozen=True)
class BaseNetwork:
    """A network that is part of the base during a run."""

    file: NetworkFile
    multiplier: float
    hash: str


def find_network(setting: str, name: str, folders: Sequence[Path]) -> Path:
    """The file that a setting means: a path, or a name in these folders; UserError where there is none."""
    path = given_path(name)
    if path.is_file():
        return path
    found = NetworkLibrary(folders).find(path.stem if path.suffix == ".safetensors" else name)
    if found is None:
        places = ", ".join(str(folder) for folder in folders)
        raise UserError(f"{setting} = {name}: there is no such file, and no network of this name in {places}")
    return found


def first_network(settings: NetworkSettings, folders: Sequence[Path]) -> NetworkFile | None:
    """The network that the training begins with, None where it begins anew; UserError where it is no LoRA."""
    name = settings.network_weights.strip()
    if not name:
        return None
    file = read_network(find_network("network_weights", name, folders))
    odd = sorted({suffix for tensors in file.modules.values() for suffix in tensors} - {_DOWN, _UP, _ALPHA})
    if odd or not file.modules:
        raise UserError(
            f"network_weights = {name}: this is no LoRA or LoCon ({', '.join(odd[:3]) or 'it is empty'}), and only "
            "these can be trained on"
        )
    for key, tensors in file.modules.items():
        if missing := sorted({_DOWN, _UP} - set(tensors)):
            raise UserError(f"network_weights = {name}: {key} lacks {' and '.join(missing)}: the file is damaged")
    return file


def like_file(targets: Sequence[Target], tensors: Mapping[str, Tensor]) -> list[Target]:
    """Those of `targets` that a network has, with the ranks and alphas that they have there.

    Raises UserError where it has others besides.
    """
    ranks = {name.partition(".")[0]: tensor.shape[0] for name, tensor in tensors.items() if name.endswith(_DOWN)}
    unknown = sorted(set(ranks) - {target.key for target in targets})
    if unknown:
        raise UserError(
            f"network_weights: {_count(unknown)} of the file cannot be trained here ({', '.join(unknown[:3])}): it is "
            "for another kind of checkpoint, or for a part that is not trained"
        )
    return [
        replace(target, rank=ranks[target.key], alpha=_alpha(tensors, target.key, ranks[target.key]))
        for target in targets
        if target.key in ranks
    ]


def possible_targets(checkpoint: Checkpoint, settings: NetworkSettings) -> list[Target]:
    """Every module that a network may adapt under these settings, whatever they say of ranks."""
    everything = replace(
        settings, conv_dim=1, conv_alpha=1.0, block_dims="", block_alphas="", conv_block_dims="", conv_block_alphas=""
    )
    return find_targets(checkpoint, everything)


def begin_with(network: Network, file: NetworkFile) -> list[str]:
    """Take over a file's weights; modules that it lacks stay as they are. Returns what a person should know.

    Raises UserError where it has modules that the network lacks, or of another rank; nothing has changed then.
    """
    tensors = network.state_dict_for_file()
    has_text = any(name.startswith(_TEXT) for name in tensors)
    has_unet = any(not name.startswith(_TEXT) for name in tensors)
    notes, unknown, other_ranks, other_alphas = [], [], [], []
    left_out = [key for key in file.modules if not (has_text if key.startswith(_TEXT) else has_unet)]
    for key, stored in file.modules.items():
        if key in left_out:
            continue
        down = tensors.get(f"{key}.{_DOWN}")
        if down is None:
            unknown.append(key)
        elif down.shape[0] != stored[_DOWN].shape[0]:
            other_ranks.append(f"{stored[_DOWN].shape[0]} instead of {down.shape[0]}")
        alpha = _alpha(file.tensors, key, stored[_DOWN].shape[0])
        if down is not None and float(tensors[f"{key}.{_ALPHA}"]) != alpha:
            other_alphas.append(f"{alpha:g} instead of {float(tensors[f'{key}.{_ALPHA}']):g}")
        tensors.update({f"{key}.{suffix}": tensor.float() for suffix, tensor in stored.items()})
        tensors[f"{key}.{_ALPHA}"] = torch.tensor(alpha)
    if unknown or other_ranks:
        what = f"{_count(unknown)} that this run does not train" if unknown else f"rank {other_ranks[0]}"
        raise UserError(
            f"network_weights = {file.path.name}: the file has {what}; switch dim_from_weights on to take all over "
            "from the file, or set network_dim and conv_dim as there"
        )
    if left_out:
        notes.append(f"{_count(left_out)} of {file.path.name} are left out: their part is not trained")
    if other_alphas:
        notes.append(f"{file.path.name} has alphas of its own, which are kept ({', '.join(sorted(set(other_alphas)))})")
    keys = {name.partition(".")[0] for name in tensors}
    if missing := keys - set(file.modules):
        notes.append(f"{file.path.name} has nothing for {_count(sorted(missing))}: these begin anew")
    network.load_tensors(tensors)
    return notes


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
                f"{setting}: it has {_count(matched.unmatched)} that {checkpoint.name} lacks "
                f"({', '.join(matched.unmatched[:3])}): it is for another kind of checkpoint"
            )
        shares += [
            Share((place, key), network.multiplier, None, view, modules[key], parameter)
            for (key, parameter), view in matched.views.items()
        ]
    return patches_of(shares)


def _alpha(tensors: Mapping[str, Tensor], key: str, rank: int) -> float:
    """A module's alpha; where a file has none it is the rank."""
    alpha = tensors.get(f"{key}.{_ALPHA}")
    return float(rank) if alpha is None else float(alpha)


def _count(keys: Sequence[str]) -> str:
    return f"{len(keys)} module{'s' if len(keys) != 1 else ''}"
