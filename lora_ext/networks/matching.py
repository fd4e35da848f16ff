"""Which weights of a checkpoint a network changes, and what a person is told where that is not all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.checkpoint.inpainting import INPAINTING_CHANNELS
from lora_ext.checkpoint.weight_views import WeightView
from lora_ext.networks.weight_delta import ModuleDelta
from lora_ext.protocols import UserError

_NAMED = 3
_LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Match:
    """What a network changes: (module key, "weight" or "bias") → the part of the checkpoint; and what it cannot."""

    views: Mapping[tuple[str, str], WeightView]
    unmatched: Sequence[str]


class Named(Protocol):
    """A checkpoint, loaded or in its file, as far as messages tell of it."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def architecture(self) -> Architecture:
        """Its kind."""
        ...


def match(modules: Mapping[str, ModuleDelta], weights: Mapping[str, WeightView], checkpoint: Named) -> Match:
    """Find each module's weight and bias; UserError where a weight has another shape."""
    views: dict[tuple[str, str], WeightView] = {}
    unmatched: list[str] = []
    misfits: list[str] = []
    for key, delta in modules.items():
        whole = weights.get(key)
        if whole is None:
            unmatched.append(key)
            continue
        parts = _parts(delta, whole)
        if parts is None:
            misfits.append(key)
            continue
        views |= {(key, name): part for name, part in parts.items() if part is not None}
        unmatched += [f"{key}.{name}" for name, part in parts.items() if part is None]
    if misfits:
        key = misfits[0]
        shape = tuple(weights[key].shape)
        raise UserError(
            f"it was made for another kind of checkpoint than {checkpoint.name} ({checkpoint.architecture}): "
            f"{len(misfits)} of {len(modules)} modules have other sizes, {key} {modules[key].shape_for(shape)} instead "
            f"of {shape}"
        )
    return Match(views, unmatched)


def unmatched_message(name: str, unmatched: Sequence[str], matched: int) -> str:
    """How many of a network's modules the checkpoint lacks, with the names of the first."""
    if not matched:
        return f"{name} is left out: the checkpoint has none of its {len(unmatched)} modules ({first_names(unmatched)})"
    count = f"{len(unmatched)} of its {matched + len(unmatched)} modules"
    return f"{name}: the checkpoint does not have {count} ({first_names(unmatched)})"


def unknown_message(name: str, tensors: Sequence[str]) -> str:
    """How many of a file's tensors nobody understands, with the names of the first."""
    return f"{name}: {len(tensors)} of its tensors are of no known network and are left out ({first_names(tensors)})"


def first_names(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _parts(delta: ModuleDelta, whole: WeightView) -> dict[str, WeightView | None] | None:
    """Parameter → the part of the checkpoint that it is, None where the layer has no such parameter.

    None altogether where the tensors are of another size than the weight.
    """
    view = _fitting(delta, whole)
    if view is None:
        return None
    bias = view.bias
    if bias is not None and delta.bias is not None and delta.bias.shape != bias.shape:
        return None
    return {name: view if name == "weight" else bias for name in delta.parameters}


def _fitting(delta: ModuleDelta, view: WeightView) -> WeightView | None:
    """The part of a weight that a module's tensors change; None where they are of another size.

    The first convolution of an inpainting checkpoint takes mask and masked picture in five more channels than others,
    whose networks change the first four.
    """
    if delta.fits(view.shape):
        return view
    if view.shape[1:2] != (INPAINTING_CHANNELS,) or view.parameter.ndim != 4:
        return None
    narrow = view.first_channels(_LATENT_CHANNELS)
    return narrow if delta.fits(narrow.shape) else None
