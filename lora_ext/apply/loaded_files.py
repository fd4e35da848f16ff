"""Network files in memory, for the next image that wants them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from lora_ext.networks.file import model_hash, read_network
from lora_ext.networks.library import Identity, identity
from lora_ext.networks.weight_delta import ModuleDelta, UnsupportedNetworkError, module_delta
from lora_ext.protocols import UserError

MEMORY_LIMIT = 2**30
"""Bytes of files that are kept besides those in use."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A file's changes by module key, and its hash; `size` is what its tensors take in bytes."""

    modules: Mapping[str, ModuleDelta]
    hash: str
    size: int


class LoadedFiles:
    """Files in the order in which they were used; those used longest ago go first where there are too many.

    A file that was written anew is another one, and drops what it was before.
    """

    def __init__(self, memory_limit: int = MEMORY_LIMIT) -> None:
        self.memory_limit = memory_limit
        self._files: OrderedDict[Identity, LoadedNetwork] = OrderedDict()

    def get(self, file: Identity) -> LoadedNetwork:
        """A file's content. Raises UserError where it cannot be read or applied, or changes meanwhile."""
        if file not in self._files:
            for stale in [each for each in self._files if each[0] == file[0]]:
                del self._files[stale]
            self._files[file] = _load(file)
        self._files.move_to_end(file)
        return self._files[file]

    def trim(self, in_use: Collection[Identity]) -> None:
        """Drop files that are not in use until the others are within the limit."""
        idle = [file for file in self._files if file not in in_use]
        size = sum(self._files[file].size for file in idle)
        for file in idle:
            if size <= self.memory_limit:
                break
            size -= self._files.pop(file).size


def _load(file: Identity) -> LoadedNetwork:
    path = file[0]
    content = read_network(path)
    if not content.modules:
        raise UserError(f"{path} holds no tensors")
    modules = {key: _delta(key, tensors) for key, tensors in content.modules.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in content.tensors.values())
    loaded = LoadedNetwork(modules, model_hash(path), size)
    if identity(path) != file:
        raise UserError(f"{path} is being written at the moment: make the image again when that has ended")
    return loaded


def _delta(key: str, tensors: Mapping[str, Tensor]) -> ModuleDelta:
    try:
        return module_delta(tensors)
    except UnsupportedNetworkError as error:
        raise UnsupportedNetworkError(f"{key}: {error}") from error
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
