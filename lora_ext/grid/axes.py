"""The axes of a grid as data: what varies, over which values, and how a value changes the network of a cell.

A cell starts from one `NetworkChoice`, each axis replaces its own part of it, and the prompt is rebuilt from the
untouched base prompt; so the order of the axes does not matter and any two can be combined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lora_ext.grid.values import format_number
from lora_ext.networks.library import Epoch, epoch_file
from lora_ext.protocols import UserError

_EPOCH_SUFFIX = re.compile(r"-(?:\d{6}|step\d{8})$")
_TAG = re.compile(r"<(?:lora|lyco):([^:>]+)([^>]*)>", re.IGNORECASE)
_VARIED = ("te", "unet", "epoch")
"""Arguments of a tag that a grid gives values of its own."""


@dataclass(frozen=True)
class NetworkChoice:
    """The network of a cell: `epoch` None is the network's own file, `used` False is a picture without it.

    `weight` is the tag's strength, `te` and `unet` are strengths of one part where it has its own.
    """

    network: str
    epoch: Epoch | None = None
    weight: float = 1.0
    te: float | None = None
    unet: float | None = None
    used: bool = True


@dataclass(frozen=True)
class AxisValue:
    """One column or row: what is written beside it, and the value; None leaves the network out."""

    label: str
    value: Any


@dataclass(frozen=True)
class Axis:
    """What varies in one direction; `change(choice, value)` is the cell's choice with this axis' value in it."""

    label: str
    values: tuple[AxisValue, ...]
    change: Callable[[NetworkChoice, Any], NetworkChoice]


class EpochFiles(Protocol):
    """What a grid asks of a library of network files."""

    def find(self, name: str) -> Path | None:
        """The file of a name that a tag may hold."""
        ...

    def names(self) -> list[str]:
        """Every name there is."""
        ...

    def epochs_of(self, name: str) -> list[tuple[int | None, Path]]:
        """A network's files in order of their epochs, the last file last."""
        ...


def network_axis(names: Sequence[str | None]) -> Axis:
    """Networks by name; None is a column without one."""
    values = tuple(AxisValue(name if name is not None else "none", name) for name in names)
    return Axis("Network", values, _change_network)


def epoch_axis(epochs: Sequence[Epoch | None], labels: Sequence[str] | None = None) -> Axis:
    """Epochs of the network; None is a column without a network."""
    named = labels or [_epoch_label(epoch) for epoch in epochs]
    values = tuple(AxisValue(label, epoch) for label, epoch in zip(named, epochs, strict=True))
    return Axis("Epoch", values, _change_epoch)


def weight_axis(weights: Sequence[float]) -> Axis:
    """The tag's strength for U-Net and text encoder together."""
    return _strength_axis("Weight", weights, lambda choice, value: replace(choice, weight=value))


def unet_weight_axis(weights: Sequence[float]) -> Axis:
    """The tag's strength in the U-Net alone."""
    return _strength_axis("U-Net weight", weights, lambda choice, value: replace(choice, unet=value))


def te_weight_axis(weights: Sequence[float]) -> Axis:
    """The tag's strength in the text encoder alone."""
    return _strength_axis("TE weight", weights, lambda choice, value: replace(choice, te=value))


def _strength_axis(label: str, weights: Sequence[float], change: Callable[[NetworkChoice, Any], NetworkChoice]) -> Axis:
    values = tuple(AxisValue(f"{label.lower()} {format_number(weight)}", weight) for weight in weights)
    return Axis(label, values, change)


def _change_network(choice: NetworkChoice, name: str | None) -> NetworkChoice:
    return replace(choice, used=False) if name is None else replace(choice, network=name)


def _change_epoch(choice: NetworkChoice, epoch: Epoch | None) -> NetworkChoice:
    return replace(choice, used=False) if epoch is None else replace(choice, epoch=epoch)


def _epoch_label(epoch: Epoch | None) -> str:
    if epoch is None:
        return "none"
    return "last epoch" if epoch == "last" else f"epoch {epoch}"


def chosen(base: NetworkChoice, picks: Iterable[tuple[Axis, AxisValue]]) -> NetworkChoice:
    """The cell's network after every axis has put its value in; "none" on any axis leaves the network out."""
    choice = base
    for axis, picked in picks:
        choice = axis.change(choice, picked.value)
    return choice


def network_file(choice: NetworkChoice, library: EpochFiles) -> Path | None:
    """The file a choice stands for, None where it is left out; raises UserError where there is no such file."""
    if not choice.used:
        return None
    if choice.epoch is None:
        path = library.find(choice.network)
        if path is None:
            raise _no_network(choice.network, library)
        return path
    files = library.epochs_of(choice.network)
    if not files:
        raise _no_network(choice.network, library)
    return epoch_file(choice.network, choice.epoch, files)


def _no_network(name: str, library: EpochFiles) -> UserError:
    known = library.names()
    there = f"there are {', '.join(known[:10])}{' …' if len(known) > 10 else ''}" if known else "there are none at all"
    return UserError(f"{name}: there is no network of this name; {there}")


def tag_text(stem: str, choice: NetworkChoice, arguments: str = "") -> str:
    """The tag that a single generation would use for the same picture; `arguments` are those of `kept_arguments`."""
    te = choice.weight if choice.te is None else choice.te
    unet = choice.weight if choice.unet is None else choice.unet
    if te == unet:
        return f"<lora:{stem}:{format_number(te)}{arguments}>"
    return f"<lora:{stem}:{format_number(te)}:{format_number(unet)}{arguments}>"


def tag_names(prompt: str) -> list[str]:
    """The networks that a prompt names, each once, whatever else stands in their tags."""
    return list(dict.fromkeys(found.group(1).strip() for found in _TAG.finditer(prompt)))


def kept_arguments(base_prompt: str, own_names: Iterable[str]) -> str:
    """What the first tag of the same network has besides its weights and epoch (`:lbw=OUTALL:stop=10`), or nothing."""
    own = {name.lower() for name in own_names}
    found = next((tag for tag in _TAG.finditer(base_prompt) if tag.group(1).strip().lower() in own), None)
    items = found.group(2).split(":")[1:] if found is not None else []
    named = [item for item in items if item.count("=") == 1 and item.partition("=")[0] not in _VARIED]
    positional = [item for item in items if item.count("=") != 1]
    ranks = [f"dyn={item}" for item in positional[2:3]]
    return "".join(f":{item}" for item in [*ranks, *named])


def prompt_with(base_prompt: str, own_names: Iterable[str], tag: str | None) -> str:
    """The base prompt with `tag` where a tag of the same network stood, or at its end; other tags stay.

    `own_names` are the names under which the grid's network may stand in the prompt; None as `tag` leaves it out.
    """
    own = {name.lower() for name in own_names}
    pieces: list[str] = []
    position, placed = 0, tag is None
    for found in _TAG.finditer(base_prompt):
        if found.group(1).strip().lower() not in own:
            continue
        pieces.append(base_prompt[position : found.start()])
        if not placed and tag is not None:
            pieces.append(tag)
            placed = True
        position = found.end()
    prompt = "".join([*pieces, base_prompt[position:]]).rstrip()
    return prompt if placed else f"{prompt} {tag}".lstrip()


def network_names(library: EpochFiles) -> list[str]:
    """The networks in a library, their epochs' files gathered under one name."""
    stems = library.names()
    runs = set(_runs(stems, library))
    names = ((stem, _EPOCH_SUFFIX.sub("", stem)) for stem in stems)
    return list(dict.fromkeys(name if name in runs else stem for stem, name in names))


def _runs(stems: Iterable[str], library: EpochFiles) -> dict[str, list[tuple[int | None, Path]]]:
    """The files of each run of which the stems name an epoch; every look at the library takes its time."""
    names = dict.fromkeys(_EPOCH_SUFFIX.sub("", stem) for stem in stems if _EPOCH_SUFFIX.search(stem))
    found = {name: library.epochs_of(name) for name in names}
    return {name: files for name, files in found.items() if files}


def runs_with_epochs(library: EpochFiles) -> list[list[tuple[int | None, Path]]]:
    """The files of every run that has more than its last one, in order of their epochs."""
    return [files for files in _runs(library.names(), library).values() if len(files) > 1]
