"""Text encodings that are computed once, for runs that leave the text encoder as it is."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lora_ext.protocols import Control, Events

_CAPTIONS_AT_ONCE = 16


class EncodingCache:
    """Encodings by caption text, kept on the CPU.

    `encode` maps captions to states (batch, tokens, width), every caption to the same number of tokens. Only prepared
    captions are kept: shuffled ones would fill the memory.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor]) -> None:
        self._encode = encode
        self._states: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._states)

    @torch.no_grad()
    def prepare(self, captions: Sequence[str], events: Events | None = None, control: Control | None = None) -> None:
        """Encode and keep every caption that is not kept yet."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._states]
        for start in range(0, len(new), _CAPTIONS_AT_ONCE):
            if control is not None:
                control.raise_if_stopping()
            group = new[start : start + _CAPTIONS_AT_ONCE]
            states = self._encode(group).detach().cpu()  # (batch, tokens, width)
            self._states.update((caption, state.clone()) for caption, state in zip(group, states, strict=True))
            if events is not None:
                events.phase("caching captions", start + len(group), len(new))

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """States (batch, tokens, width) of a batch, on the CPU; captions not kept are encoded for this call."""
        unknown = [caption for caption in dict.fromkeys(captions) if caption not in self._states]
        passing = dict(zip(unknown, self._encode(unknown).detach().cpu(), strict=True)) if unknown else {}
        states = ChainMap(passing, self._states)
        return torch.stack([states[caption] for caption in captions])  # (batch, tokens, width)
