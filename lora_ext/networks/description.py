"""What a network file holds, for people: kinds and ranks of its modules, whose words it speaks, what is odd in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lora_ext.networks.file import NetworkFile
from lora_ext.networks.weight_delta import module_delta
from lora_ext.protocols import UserError


@dataclass(frozen=True)
class NetworkDescription:
    """Modules by algorithm, by rank and by part; problems by module key; names that are not understood."""

    dialect: str
    algorithms: dict[str, int]
    ranks: dict[int, int]
    unet_modules: int
    text_encoder_modules: int
    embeddings: list[str]
    unknown: list[str]
    problems: dict[str, str]


def describe_network(file: NetworkFile) -> NetworkDescription:
    """What a file holds. Raises UserError for factors without names that are not those of a known network."""
    network = file.network
    algorithms: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    problems: dict[str, str] = {}
    for key, tensors in network.modules.items():
        try:
            delta = module_delta(tensors)
        except UserError as error:
            problems[key] = str(error)
            continue
        algorithms[delta.algorithm] += 1
        if delta.rank is not None:
            ranks[delta.rank] += 1
    return NetworkDescription(
        network.dialect,
        dict(algorithms.most_common()),
        dict(sorted(ranks.items())),
        sum(key.startswith("lora_unet_") for key in network.modules),
        sum(key.startswith("lora_te") for key in network.modules),
        sorted(network.embeddings),
        list(network.unknown),
        problems,
    )
