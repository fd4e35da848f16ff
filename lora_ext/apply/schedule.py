"""Networks that act in some of the sampling steps only: which tags hold in which step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_ext.apply.tags import LoraTag


def has_schedule(tags: Sequence[LoraTag]) -> bool:
    """Whether what the tags ask for changes from step to step."""
    return any(tag.start or tag.stop is not None for tag in tags)


def tags_at(tags: Sequence[LoraTag], step: int) -> list[LoraTag]:
    """What stands for the tags in one sampling step, counted from 0: a network that does not act has a U-Net part of 0.

    The text encoders' part stays, as the prompt is encoded once, before the first step. Two steps in which the same
    networks act give equal tags.
    """
    return [_at(tag, step) for tag in tags]


def _at(tag: LoraTag, step: int) -> LoraTag:
    if not tag.start and tag.stop is None:
        return tag
    acts = tag.start <= step and (tag.stop is None or step < tag.stop)
    return replace(tag, unet=tag.unet_multiplier if acts else 0.0, start=0, stop=None)
