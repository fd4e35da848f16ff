"""Captions as the U-Net sees them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lora_ext.checkpoint.checkpoint import TextEncoder

_CHUNK = 75


class TextConditioning:
    """Encodes captions with as many chunks of 75 tokens as the longest of them needs.

    The WebUI feeds a short prompt as one chunk of 77 tokens, not padded to `max_token_length`: so does this.
    """

    def __init__(self, encoder: TextEncoder, clip_skip: int, max_token_length: int) -> None:
        self.encoder = encoder
        self.clip_skip = clip_skip
        self.max_token_length = max_token_length
        self.chunks = 1

    def fit(self, captions: Sequence[str]) -> None:
        """Provide as many chunks as the longest of all captions needs, up to `max_token_length`."""
        self.chunks = max([1, *(self._chunks_of(caption) for caption in set(captions))])

    def encode(self, captions: Sequence[str]) -> Tensor:
        """States (batch, 77·chunks, width); gradients flow where they are enabled."""
        ids = self.encoder.tokenize(captions, self.max_token_length)[:, : self.chunks]  # (batch, chunks, 77)
        device = next(self.encoder.module.parameters()).device
        return self.encoder.encode(ids.to(device), self.clip_skip)

    def _chunks_of(self, caption: str) -> int:
        return -(-token_count(self.encoder, caption, self.max_token_length) // _CHUNK)


def token_count(encoder: TextEncoder, caption: str, longest: int = 1500) -> int:
    """Tokens of a caption without begin and end, counted up to `longest` (a multiple of 75)."""
    ids, empty = encoder.tokenize([caption, ""], longest)[:, :, 1:-1]  # (chunks, 75) each
    return int((ids != empty).sum())
