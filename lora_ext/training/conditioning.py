"""Captions as the U-Net sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import TextEncoder
from lora_ext.checkpoint.text.chunking import CHUNK_TOKENS, joined_chunks
from lora_ext.checkpoint.transfer import on_device
from lora_ext.config.groups import CaptionSettings


class TextConditioning:
    """Encodes captions as the settings want it.

    `caption_chunks` = webui feeds chunks of 77 tokens, as many as the longest caption needs, like the WebUI, which does
    not pad a short prompt to `max_token_length`; sd-scripts pads to it and joins the chunks to one text. With
    `weighted_captions` each token's state is multiplied by its weight, and not scaled back to the mean that it had.
    """

    def __init__(self, encoder: TextEncoder, settings: CaptionSettings) -> None:
        self.encoder = encoder
        self.settings = settings
        self.chunks = settings.max_token_length // CHUNK_TOKENS if self._joins else 1

    @property
    def _joins(self) -> bool:
        return self.settings.caption_chunks == "sd-scripts"

    def fit(self, captions: Sequence[str]) -> None:
        """Provide as many chunks as the longest of all captions needs, up to `max_token_length`."""
        if not self._joins:
            self.chunks = max([1, *(self._chunks_of(caption) for caption in set(captions))])

    def encode(self, captions: Sequence[str]) -> Tensor:
        """States (batch, 77·chunks, width), or (batch, 75·chunks + 2, width) joined; gradients flow where enabled."""
        longest = self.settings.max_token_length
        if self.settings.weighted_captions:
            ids, weights = self.encoder.tokenize_weighted(captions, longest)  # (batch, chunks, 77) each
        else:
            ids = self.encoder.tokenize(captions, longest)
            weights = torch.ones(())
        device = next(self.encoder.module.parameters()).device
        states = self.encoder.encode(on_device(ids[:, : self.chunks], device), self.settings.clip_skip)
        if self.settings.weighted_captions:
            states = states * weights[:, : self.chunks].flatten(1)[..., None].to(states)  # (batch, 77·chunks, 1)
        return joined_chunks(states) if self._joins else states

    def kind(self) -> dict[str, str]:
        """Everything but the caption and the encoder that the states depend on, for files that keep them."""
        names = ("caption_chunks", "weighted_captions", "clip_skip", "max_token_length")
        return {"chunks": str(self.chunks), **{name: str(getattr(self.settings, name)) for name in names}}

    def _chunks_of(self, caption: str) -> int:
        longest, weighted = self.settings.max_token_length, self.settings.weighted_captions
        return -(-token_count(self.encoder, caption, weighted, longest) // CHUNK_TOKENS)


def token_count(encoder: TextEncoder, caption: str, weighted: bool = False, longest: int = 1500) -> int:
    """Tokens of a caption without begin and end, counted up to `longest` (a multiple of 75).

    Where captions are `weighted`, the brackets of emphasis do not count.
    """
    texts = [caption, ""]
    both = encoder.tokenize_weighted(texts, longest)[0] if weighted else encoder.tokenize(texts, longest)
    ids, empty = both[:, :, 1:-1]  # (chunks, 75) each
    return int((ids != empty).sum())
