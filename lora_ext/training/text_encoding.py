"""How a run comes to the text states of its captions: by the encoder each time, or kept from before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.conditioning import Conditioning
from lora_ext.checkpoint.weights_hash import weights_hash
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import ImageDataset
from lora_ext.dataset.encodings import EncodingCache, EncodingFiles
from lora_ext.protocols import Control, Events
from lora_ext.training.conditioning import TextConditioning
from lora_ext.training.precision import autocasting

Encode = Callable[[list[str]], Conditioning]
"""Captions → what the U-Net is given of them."""


def prepare_text(
    checkpoint: Checkpoint, dataset: ImageDataset, config: TrainConfig, trained: bool, events: Events, control: Control,
    further: Sequence[str] = (),
) -> tuple[TextConditioning, Encode]:  # fmt: skip
    """What encodes captions, with room for the longest of the dataset, and what the training takes states from.

    Where the text encoder is `trained` that is the encoder itself; otherwise states are kept, as far as the settings
    want it and the captions are known. `further` captions, of no picture that is trained on, are kept with them.
    """
    memory = config.memory
    on_disk = memory.cache_text_encoder_outputs_to_disk
    keeps = (memory.cache_text_encoder_outputs or on_disk) and not trained
    dataset.caption_variants = 0 if trained else memory.caption_variants  # kept or not: a resume may change that
    conditioning = TextConditioning(checkpoint.text_encoders, config.captions)
    conditioning.fit(dataset.captions)
    if trained:
        return conditioning, conditioning.encode
    if not keeps or not dataset.captions_are_known:
        if keeps:
            events.message("info", _not_kept(memory.caption_variants))
        return conditioning, _without_gradients(conditioning)
    files = _files(checkpoint, conditioning, dataset, config, events) if on_disk else None
    cache = EncodingCache(conditioning.encode, files)
    with autocasting(config, checkpoint):
        cache.prepare([*dataset.captions, *further], events, control)
    return conditioning, cache


def _without_gradients(conditioning: TextConditioning) -> Encode:
    @torch.no_grad()
    def encode(captions: Sequence[str]) -> Conditioning:
        return conditioning.encode(captions)

    return encode


def _not_kept(variants: int) -> str:
    if variants:
        return "Text encodings are not kept, because with token_warmup_step captions grow from step to step."
    return (
        "Text encodings are not kept, because captions differ each time (shuffled tags, wildcards, dropped tags): "
        "caption_variants = 8 keeps eight versions of each instead, which makes steps shorter."
    )


def _files(
    checkpoint: Checkpoint, conditioning: TextConditioning, dataset: ImageDataset, config: TrainConfig, events: Events
) -> EncodingFiles:
    """Files beside the first picture: captions belong to the dataset, not to a picture."""
    modules = [encoder.module for encoder in conditioning.encoders]
    dtype = next(modules[0].parameters()).dtype
    kind = {
        **conditioning.kind(),
        "encoder": " ".join(weights_hash(dict(module.named_parameters())) for module in modules),
        "precision": f"{dtype}, {config.memory.mixed_precision}",
    }
    return EncodingFiles(dataset.scan.images[0].path.parent, kind, events)
