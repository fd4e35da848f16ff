"""Which adapter a target gets."""

from __future__ import annotations

import torch

from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.adapters.dylora import DyloraAdapter
from lora_ext.networks.adapters.lycoris import LycorisAdapter
from lora_ext.networks.adapters.tlora import TloraAdapter
from lora_ext.networks.adapters.whole import FullAdapter, InputOutputAdapter, NormAdapter
from lora_ext.networks.dropout import NO_DROPOUT, Dropout
from lora_ext.networks.lora import LoraAdapter
from lora_ext.networks.targets import Target


def make_adapter(target: Target, generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> Adapter:
    """The adapter of a target's form, with its start drawn from the CPU `generator`; it changes nothing at first.

    Raises UserError where the form cannot be had for this module.
    """
    form = target.form
    if form.is_plain:
        return LoraAdapter(target, generator, dropout)
    if form.algorithm == "full":
        return FullAdapter(target, dropout)
    if form.algorithm == "norm":
        return NormAdapter(target, dropout)
    if form.algorithm == "ia3":
        return InputOutputAdapter(target, dropout)
    if form.algorithm == "tlora":
        return TloraAdapter(target, dropout)
    if form.algorithm == "dylora":
        return DyloraAdapter(target, generator, dropout)
    return LycorisAdapter(target, generator, dropout)
