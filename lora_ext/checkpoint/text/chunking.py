"""Texts in chunks of 77, as CLIP takes them: BOS, up to 75 tokens of text, EOS, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

_Entry = TypeVar("_Entry")

CHUNK_TOKENS = 75
COMMA_BACKTRACK = 20
"""So many tokens before a chunk's end a comma is looked for, so that a phrase moves to the next chunk as a whole."""


def _frame(tokens: Sequence[_Entry], bos: _Entry, eos: _Entry, pad: _Entry) -> list[_Entry]:
    return [bos, *tokens, eos, *[pad] * (CHUNK_TOKENS - len(tokens))]


def chunk_ids(
    tokens: Sequence[_Entry], chunks: int | None, bos: _Entry, eos: _Entry, pad: _Entry
) -> list[list[_Entry]]:
    """A caption's tokens, or their weights, in consecutive chunks of 75, each framed to 77.

    `chunks` cuts off what is longer and fills up what is shorter with empty chunks; None takes what the text needs,
    one at least.
    """
    needed = max(1, -(-len(tokens) // CHUNK_TOKENS))
    count = needed if chunks is None else chunks
    parts = [tokens[index * CHUNK_TOKENS : (index + 1) * CHUNK_TOKENS] for index in range(count)]
    return [_frame(part, bos, eos, pad) for part in parts]


def joined_chunks(states: Tensor) -> Tensor:
    """States (batch, 77·n, width) of n chunks as one text of 75·n + 2, as sd-scripts feeds the U-Net.

    The first chunk's BOS, what stands between BOS and EOS in each, and the last position of the last one.
    """
    by_chunk = states.unflatten(1, (-1, CHUNK_TOKENS + 2))  # (batch, n, 77, width)
    inner = by_chunk[:, :, 1:-1].flatten(1, 2)  # (batch, 75·n, width)
    return torch.cat([states[:, :1], inner, states[:, -1:]], dim=1)


@dataclass
class WeightedChunk:
    """Up to 75 tokens of a prompt with the weight of each."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def framed(self, bos: int, eos: int, pad: int) -> tuple[list[int], list[float]]:
        """77 ids and 77 weights; what is added has weight 1."""
        filling = CHUNK_TOKENS + 1 - len(self.weights)
        return _frame(self.tokens, bos, eos, pad), [1.0, *self.weights, *[1.0] * filling]

    def split(self, at: int) -> WeightedChunk:
        """Cut off and return what stands from position `at` on."""
        tail = WeightedChunk(self.tokens[at:], self.weights[at:])
        del self.tokens[at:], self.weights[at:]
        return tail


def chunk_prompt(
    pieces: Sequence[tuple[Sequence[int], float] | None], comma: int, backtrack: int = COMMA_BACKTRACK
) -> list[WeightedChunk]:
    """A prompt's pieces (tokens, weight; None is a BREAK) in chunks as the WebUI makes them; one at least.

    Where a chunk is full and a comma stands among its last `backtrack` tokens, what follows the comma moves on.
    """
    chunks: list[WeightedChunk] = []
    chunk = WeightedChunk()
    last_comma: int | None = None

    for piece in pieces:
        if piece is None:
            chunks.append(chunk)
            chunk, last_comma = WeightedChunk(), None
            continue
        tokens, weight = piece
        for token in tokens:
            full = len(chunk.tokens) == CHUNK_TOKENS
            if token == comma:
                last_comma = len(chunk.tokens)
            if full:
                near = token != comma and last_comma is not None and CHUNK_TOKENS - last_comma <= backtrack
                moved = chunk.split(last_comma + 1) if near and last_comma is not None else WeightedChunk()
                chunks.append(chunk)
                chunk, last_comma = moved, None
            chunk.tokens.append(token)
            chunk.weights.append(weight)
    if chunk.tokens or not chunks:
        chunks.append(chunk)
    return chunks
