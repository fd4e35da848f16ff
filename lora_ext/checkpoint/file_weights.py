"""A checkpoint in its file: which of its tensors, or which rows of one, a key in a network file stands for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.checkpoint.file_kinds import architecture_of, refuse_other_kinds
from lora_ext.checkpoint.layouts import LAYOUTS, Layout, current_name
from lora_ext.checkpoint.module_names import clip_names, openclip_names, unet_module_names
from lora_ext.checkpoint.tensor_files import TensorFile, open_tensor_file
from lora_ext.checkpoint.weight_views import WeightView, weight_view
from lora_ext.protocols import UserError

_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.")


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint whose tensors stay in the file.

    `weights` are its weights by the key in a network file, as of a loaded checkpoint, except that their parameters
    have no values (device "meta"); `tensor_names` says which tensor of the file a parameter is.
    """

    file: TensorFile
    architecture: Architecture
    weights: dict[str, WeightView]
    tensor_names: dict[nn.Parameter, str]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.file.path.stem

    def tensor_of(self, key: str) -> str:
        """The name of the tensor that the weight of a network's module is, or is a part of."""
        return self.tensor_names[self.weights[key].parameter]

    def values(self, keys: set[str]) -> Iterator[tuple[str, Tensor]]:
        """(key, weight as stored) of modules, one tensor of the file in memory at a time."""
        by_tensor: dict[str, list[str]] = {}
        for key in keys:
            by_tensor.setdefault(self.tensor_of(key), []).append(key)
        for name, tensor in self.file.read(set(by_tensor)):
            for key in sorted(by_tensor[name]):
                yield key, self.weights[key].of(tensor)


def open_checkpoint_file(path: Path) -> CheckpointFile:
    """A checkpoint of SD1, SD2 or SDXL by its header; raises UserError for any other file, saying what it seems to be.

    Of a pickled file the values are read too.
    """
    file = open_tensor_file(path)
    refuse_other_kinds(path, file.shapes)
    return checkpoint_in(file)


def checkpoint_in(file: TensorFile) -> CheckpointFile:
    """The checkpoint whose tensors these are, by names and shapes alone; UserError where whole parts are missing."""
    architecture = architecture_of(file.shapes)
    layout = LAYOUTS[architecture]
    weights: dict[str, WeightView] = {}
    names: dict[nn.Parameter, str] = {}
    for part, prefix in layout.parts.items():
        root = _skeleton(file, layout, prefix, names)
        try:
            places = _module_names(part, root, architecture)
        except AttributeError as error:
            raise UserError(
                f"{file.path}: is not a whole checkpoint: of its {part}, {error}. Get the file again"
            ) from error
        for key, place in places.items():
            with contextlib.suppress(AttributeError):  # a file that lacks this layer
                weights[key] = weight_view(root, place)
    return CheckpointFile(file, architecture, weights, names)


def _module_names(part: str, root: nn.Module, architecture: Architecture) -> Mapping[str, str]:
    """Key in a network file → path in one part of the checkpoint."""
    paths = [name for name, _ in root.named_parameters()]
    if part == "vae" or not paths:
        return {}
    if part == "unet":
        return unet_module_names(root, architecture)
    if part == "clip":
        return clip_names("lora_te1" if architecture == "SDXL" else "lora_te", root)
    layers = len({match[1] for match in map(_LAYER.match, paths) if match})
    if architecture == "SDXL":
        return openclip_names("lora_te2", layers)
    return openclip_names("lora_te", layers - 1)  # SD2 does not use the last one


def _skeleton(file: TensorFile, layout: Layout, prefix: str, names: dict[nn.Parameter, str]) -> nn.Module:
    """Modules with the names of the file's tensors below `prefix` and parameters without values, told to `names`."""
    found = {current_name(stored, layout): stored for stored in file.shapes}
    root = nn.Module()
    for name in sorted((name for name in found if name.startswith(prefix)), key=_natural):
        stored = found[name]
        parameter = nn.Parameter(torch.empty(file.shapes[stored], device="meta"), requires_grad=False)
        *parents, last = name.removeprefix(prefix).split(".")
        module = root
        for parent in parents:
            child = module._modules.get(parent)
            if child is None:
                child = module._modules[parent] = nn.Module()
            module = child
        module._parameters[last] = parameter
        names[parameter] = stored
    return root


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts the blocks by their numbers, whatever order the file has them in."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
