"""What CLIP's text encoders have in common: the tokens of captions, and prompts with the WebUI's emphasis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.text.bpe import clip_tokenizer
from lora_ext.checkpoint.text.chunking import CHUNK_TOKENS, WeightedChunk, chunk_ids, chunk_prompt
from lora_ext.checkpoint.text.emphasis import BREAK, parse_emphasis
from lora_ext.protocols import UserError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def apply_emphasis(states: Tensor, weights: Tensor) -> Tensor:
    """States (chunks, 77, width) times weights (chunks, 77), each chunk scaled back to the mean it had.

    The WebUI's "Original" emphasis. Chunks of weight 1 throughout stay as they are, bit for bit.
    """
    weighted = states * weights[..., None].to(states)
    before = states.mean(dim=(1, 2), keepdim=True)
    after = weighted.mean(dim=(1, 2), keepdim=True)
    untouched = (weights == 1).all(dim=1)[:, None, None].to(states.device)
    return torch.where(untouched, states, weighted * (before / after))


def _chunk_count(max_token_length: int) -> int:
    if max_token_length < CHUNK_TOKENS or max_token_length % CHUNK_TOKENS:
        raise UserError(f"max_token_length is {max_token_length}; allowed: 75, 150, 225 or another multiple of 75.")
    return max_token_length // CHUNK_TOKENS


def check_clip_skip(clip_skip: int, layers: int) -> None:
    """Raise UserError where the text encoder has no such layer."""
    if not 1 <= clip_skip <= layers:
        raise UserError(f"clip_skip is {clip_skip}; allowed are 1 to {layers}, the layers of this text encoder.")


class ChunkedTextEncoder(ABC):
    """A `TextEncoder` of CLIP's kind around a module that is the checkpoint's and is not changed.

    Texts come in chunks of 77 tokens, which are encoded each by itself.
    """

    padding: int | None = None
    """The token that fills up a chunk; None is the tokenizer's own, which is EOS."""

    def __init__(self, module: nn.Module, key_prefix: str, tokenizer: CLIPTokenizer | None = None) -> None:
        self.module: Any = module
        self.key_prefix = key_prefix
        self._given_tokenizer = tokenizer

    @abstractmethod
    def encode_pooled(self, ids: Tensor, clip_skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """States (batch, 77·chunks, width) of ids (batch, chunks, 77), each chunk encoded by itself, and the pooled
        vector (batch, projection) of the first chunk, None where the checkpoint's U-Net takes none.
        """

    def encode(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """The states alone."""
        return self.encode_pooled(ids, clip_skip)[0]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """CLIP's tokenizer, made when it is first needed."""
        if self._given_tokenizer is None:
            self._given_tokenizer = clip_tokenizer()
        return self._given_tokenizer

    @property
    def device(self) -> torch.device:
        """Where the module's weights are."""
        device: torch.device = next(self.module.parameters()).device
        return device

    def _special_ids(self) -> tuple[int, int, int]:
        """(BOS, EOS, padding)."""
        tokenizer: Any = self.tokenizer
        padding = tokenizer.pad_token_id if self.padding is None else self.padding
        return tokenizer.bos_token_id, tokenizer.eos_token_id, padding

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, of any length, without BOS and EOS."""
        if not texts:
            return []
        encoded: Any = self.tokenizer(list(texts), truncation=False, add_special_tokens=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def count_tokens(self, caption: str, weighted: bool = False) -> int:
        """Tokens of a caption without BOS and EOS; where captions are `weighted`, without the brackets of emphasis."""
        texts = [text for text, _ in parse_emphasis(caption, breaks=False)] if weighted else [caption]
        return sum(len(ids) for ids in self.token_ids(texts))

    def tokenize(self, captions: Sequence[str], max_token_length: int = CHUNK_TOKENS) -> Tensor:
        """Token ids (batch, chunks, 77), int64 on the CPU; chunks = max_token_length / 75, longer captions are cut.

        Brackets, colons and BREAK in a caption are plain text.
        """
        chunks = _chunk_count(max_token_length)
        return torch.tensor(
            [chunk_ids(tokens, chunks, *self._special_ids()) for tokens in self.token_ids(captions)], dtype=torch.int64
        ).reshape(-1, chunks, CHUNK_TOKENS + 2)

    def tokenize_weighted(self, captions: Sequence[str], max_token_length: int = CHUNK_TOKENS) -> tuple[Tensor, Tensor]:
        """Token ids as `tokenize` gives them, and the weight of each, fp32: both (batch, chunks, 77).

        `(more)`, `(exactly:1.3)` and `[less]` weigh words; BREAK is plain text, and what is added weighs 1.
        """
        chunks = _chunk_count(max_token_length)
        ids, weights = [], []
        for caption in captions:
            pieces = parse_emphasis(caption, breaks=False)
            tokens = self.token_ids([text for text, _ in pieces])
            ids.append(chunk_ids([token for each in tokens for token in each], chunks, *self._special_ids()))
            weighed = [weight for each, (_, weight) in zip(tokens, pieces, strict=True) for _ in each]
            weights.append(chunk_ids(weighed, chunks, 1.0, 1.0, 1.0))
        shape = (-1, chunks, CHUNK_TOKENS + 2)
        return torch.tensor(ids, dtype=torch.int64).reshape(shape), torch.tensor(weights).reshape(shape)

    def _prompt_chunks(self, prompt: str) -> list[WeightedChunk]:
        pieces = parse_emphasis(prompt)
        [comma], *tokens = self.token_ids([",", *(text for text, _ in pieces)])
        weighted = zip(pieces, tokens, strict=True)
        return chunk_prompt([None if piece == BREAK else (ids, piece[1]) for piece, ids in weighted], comma)

    @torch.no_grad()
    def encode_prompts_pooled(self, prompts: Sequence[str], clip_skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """As `encode_pooled`, for rendering: emphasis, BREAK, any length; shorter prompts get empty chunks."""
        chunked = [self._prompt_chunks(prompt) for prompt in prompts]
        count = max(len(chunks) for chunks in chunked)
        filled = [[*chunks, *(WeightedChunk() for _ in range(count - len(chunks)))] for chunks in chunked]
        framed = [[chunk.framed(*self._special_ids()) for chunk in chunks] for chunks in filled]
        ids = torch.tensor([[ids for ids, _ in chunks] for chunks in framed])  # (batch, n, 77)
        weights = torch.tensor([[weights for _, weights in chunks] for chunks in framed])
        states, pooled = self.encode_pooled(ids, clip_skip)
        by_chunk = states.unflatten(1, (count, -1)).flatten(0, 1)  # (batch·n, 77, width)
        weighted = apply_emphasis(by_chunk, weights.flatten(0, 1))
        return weighted.reshape(states.shape), pooled

    def encode_prompts(self, prompts: Sequence[str], clip_skip: int = 1) -> Tensor:
        """The states alone of `encode_prompts_pooled`."""
        return self.encode_prompts_pooled(prompts, clip_skip)[0]
