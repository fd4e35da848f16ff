"""Captions as the U-Net sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import TextEncoder
from lora_ext.checkpoint.conditioning import Conditioning, joined_encoders
from lora_ext.checkpoint.text.chunking import CHUNK_TOKENS, joined_chunks
from lora_ext.checkpoint.transfer import on_device
from lora_ext.config.groups import CaptionSettings


class TextConditioning:
    """Encodes captions with a checkpoint's text encoders as the settings want it.

    `caption_chunks` = webui feeds chunks of 77 tokens, as many as the longest caption needs, like the WebUI, which does
    not pad a short prompt to `max_token_length`; sd-scripts pads to it and joins the chunks to one text. With
    `weighted_captions` each token's state is multiplied by its weight, and not scaled back to the mean that it had.
    """

    def __init__(self, encoders: Sequence[TextEncoder], settings: CaptionSettings) -> None:
        self.encoders = encoders
        self.settings = settings
        self.chunks = settings.max_token_length // CHUNK_TOKENS if self._joins else 1

    @property
    def _joins(self) -> bool:
        return self.settings.caption_chunks == "sd-scripts"

    def fit(self, captions: Sequence[str]) -> None:
        """Provide as many chunks as the longest of all captions needs, up to `max_token_length`."""
        if not self._joins:
            self.chunks = max([1, *(self._chunks_of(caption) for caption in set(captions))])

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """States of 77·chunks tokens, or of 75·chunks + 2 joined; gradients flow where enabled."""
        return joined_encoders([self._encoded_by(encoder, captions) for encoder in self.encoders])

    def kind(self) -> dict[str, str]:
        """Everything but the caption and the encoders that the states depend on, for files that keep them."""
        names = ("caption_chunks", "weighted_captions", "clip_skip", "max_token_length")
        return {"chunks": str(self.chunks), **{name: str(getattr(self.settings, name)) for name in names}}

    def _encoded_by(self, encoder: TextEncoder, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """States (batch, tokens, width) of one text encoder, and its pooled vector."""
        longest = self.settings.max_token_length
        if self.settings.weighted_captions:
            ids, weights = encoder.tokenize_weighted(captions, longest)  # (batch, chunks, 77) each
        else:
            ids = encoder.tokenize(captions, longest)
            weights = torch.ones(())
        states, pooled = encoder.encode_pooled(ids[:, : self.chunks], self.settings.clip_skip)
        if self.settings.weighted_captions:
            by_token = weights[:, : self.chunks].flatten(1)[..., None]  # (batch, 77·chunks, 1)
            states = states * on_device(by_token, states.device, states.dtype)
        return joined_chunks(states) if self._joins else states, pooled

    def _chunks_of(self, caption: str) -> int:
        tokens = self.encoders[0].count_tokens(caption, self.settings.weighted_captions)
        return -(-min(tokens, self.settings.max_token_length) // CHUNK_TOKENS)
