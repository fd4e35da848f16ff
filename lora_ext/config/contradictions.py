"""Values that fight each other, found before a run starts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_ext.config.dataset_contradictions import dataset_contradictions
from lora_ext.config.groups import DatasetSettings
from lora_ext.config.learning_rules import learning_contradictions
from lora_ext.config.loss_contradictions import loss_contradictions, validation_contradictions
from lora_ext.config.network_rules import network_contradictions
from lora_ext.config.resolution import resolution_of
from lora_ext.config.run_rules import run_contradictions
from lora_ext.config.sample_prompts import parse_sample_prompts, prompts_file

if TYPE_CHECKING:
    from lora_ext.config.train_config import TrainConfig


LONGEST_NAME = 200
"""Bytes of an output name in UTF-8; a file's whole name may have 255, and a state that is being written 36 more."""


_RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)


def contradictions(config: TrainConfig) -> Iterable[tuple[tuple[str, ...], str]]:
    """Values that fight each other: (names involved, what is wrong and what to set)."""
    dataset, network, saving = config.dataset, config.network, config.saving
    if resolution_of(dataset.resolution) is None:
        yield (
            ("resolution",),
            (
                f"resolution = {dataset.resolution!r}: allowed is one number or width,height, "
                "each a multiple of 8 from 8 on"
            ),
        )
    yield from _bucket_contradictions(dataset)
    yield from run_contradictions(config)
    yield from network_contradictions(config)
    yield from loss_contradictions(config.loss)
    yield from validation_contradictions(dataset, config.samples)
    yield from learning_contradictions(config)
    if prompts_file(config.samples.sample_prompts) is None:
        for problem in parse_sample_prompts(config.samples.sample_prompts)[1]:
            yield ("sample_prompts",), problem
    if dataset.min_bucket_reso > dataset.max_bucket_reso:
        yield (
            ("min_bucket_reso", "max_bucket_reso"),
            (
                f"min_bucket_reso = {dataset.min_bucket_reso} is above max_bucket_reso = {dataset.max_bucket_reso}: "
                "raise the latter or lower the former"
            ),
        )
    if network.network_train_unet_only and network.network_train_text_encoder_only:
        yield (
            ("network_train_unet_only", "network_train_text_encoder_only"),
            (
                "network_train_unet_only and network_train_text_encoder_only are both on, which leaves nothing to "
                "train: switch one of them off"
            ),
        )
    if any(sign in saving.output_name for sign in '<>:"/\\|?*\n,') or saving.output_name.strip() in (".", ".."):
        yield (
            ("output_name",),
            f'output_name = {saving.output_name!r}: names of files and tags cannot hold any of < > : " / \\ | ? * ,',
        )
    if _RESERVED.fullmatch(saving.output_name.partition(".")[0].strip()):
        yield (
            ("output_name",),
            f"output_name = {saving.output_name!r}: Windows keeps this name for a device; add something to it",
        )
    if len(saving.output_name.encode("utf-8")) > LONGEST_NAME:
        yield (
            ("output_name",),
            f"output_name has {len(saving.output_name.encode('utf-8'))} bytes: file systems take {LONGEST_NAME}, with "
            "room for the number of an epoch or a step",
        )
    yield from dataset_contradictions(config)


def _bucket_contradictions(dataset: DatasetSettings) -> Iterable[tuple[tuple[str, ...], str]]:
    """Buckets that the resolution does not fit into."""
    size = resolution_of(dataset.resolution)
    if size is None or not dataset.enable_bucket or dataset.bucket_no_upscale:
        return
    if dataset.max_bucket_reso < max(size):
        yield (
            ("max_bucket_reso", "resolution"),
            (
                f"max_bucket_reso = {dataset.max_bucket_reso} is below the resolution {dataset.resolution}: "
                f"raise it to {max(size)} at least, or lower the resolution"
            ),
        )
    if dataset.bucket_reso_steps**2 > size[0] * size[1]:
        yield (
            ("bucket_reso_steps", "resolution"),
            (
                f"bucket_reso_steps = {dataset.bucket_reso_steps} is above the resolution {dataset.resolution}: "
                "lower the step, or raise the resolution"
            ),
        )
