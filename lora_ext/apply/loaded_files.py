"""Network files in memory, for the next image that wants them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.networks.file import model_hash, read_network
from lora_ext.networks.formats import canonical_modules
from lora_ext.networks.library import Identity, identity
from lora_ext.networks.weight_delta import ModuleDelta, module_deltas
from lora_ext.protocols import UserError

MEMORY_LIMIT = 2**30
"""Bytes of files that are kept besides those in use."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A file's changes by module key, and its hash.

    `embeddings` are tensors by the embedding's name and their own, `unknown` the names of tensors that nobody
    understands, `size` what all tensors take in bytes.
    """

    modules: Mapping[str, ModuleDelta]
    embeddings: Mapping[str, Mapping[str, Tensor]]
    unknown: Sequence[str]
    hash: str
    size: int


class LoadedFiles:
    """Files in the order in which they were used; those used longest ago go first where there are too many.

    A file that was written anew is another one, and drops what it was before.
    """

    def __init__(self, memory_limit: int = MEMORY_LIMIT) -> None:
        self.memory_limit = memory_limit
        self._files: OrderedDict[tuple[Identity, Architecture], LoadedNetwork] = OrderedDict()

    def get(self, file: Identity, architecture: Architecture) -> LoadedNetwork:
        """A file's content, for a checkpoint of this kind where its names leave open what they mean.

        Raises UserError where it cannot be read or applied, or changes meanwhile.
        """
        key = file, architecture
        if key not in self._files:
            for stale in [other for other in self._files if other[0][0] == file[0]]:
                del self._files[stale]
            self._files[key] = _load(file, architecture)
        self._files.move_to_end(key)
        return self._files[key]

    def trim(self, in_use: Collection[Identity]) -> None:
        """Drop files that are not in use until the others are within the limit."""
        idle = [key for key in self._files if key[0] not in in_use]
        size = sum(self._files[key].size for key in idle)
        for key in idle:
            if size <= self.memory_limit:
                break
            size -= self._files.pop(key).size


def _load(file: Identity, architecture: Architecture) -> LoadedNetwork:
    path = file[0]
    content = read_network(path)
    found = canonical_modules(content.tensors, content.metadata, architecture)
    if not found.modules and not found.embeddings:
        raise UserError(f"{path} holds no network: none of its {len(content.tensors)} tensors is one of a network")
    modules = module_deltas(found.modules)
    size = sum(tensor.numel() * tensor.element_size() for tensor in content.tensors.values())
    loaded = LoadedNetwork(modules, found.embeddings, found.unknown, model_hash(path), size)
    if identity(path) != file:
        raise UserError(f"{path} is being written at the moment: make the image again when that has ended")
    return loaded
