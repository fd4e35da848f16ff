"""Text encodings that are computed once, for runs that leave the text encoder as it is."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.dataset.tensor_cache import TensorCache, delete_leftovers
from lora_ext.protocols import Control, Events

_CAPTIONS_AT_ONCE = 16


class EncodingFiles:
    """States in files beside the pictures, by caption and by `kind`: all that they depend on otherwise."""

    def __init__(self, beside: Path, kind: Mapping[str, str], events: Events) -> None:
        self._beside = beside
        self._kind = dict(kind)
        self._cache = TensorCache("encodings", lambda text: events.message("warning", text))
        delete_leftovers(beside)

    def read(self, caption: str) -> Tensor | None:
        """States (tokens, width), None where they have to be encoded."""
        found = self._cache.read(self._beside, {**self._kind, "caption": caption})
        return None if found is None else found["states"]

    def write(self, caption: str, states: Tensor) -> None:
        """Keep states (tokens, width)."""
        self._cache.write(self._beside, {**self._kind, "caption": caption}, {"states": states.contiguous()})


class EncodingCache:
    """Encodings by caption text, kept on the CPU.

    `encode` maps captions to states (batch, tokens, width), every caption to the same number of tokens. Only prepared
    captions are kept: shuffled ones would fill the memory.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], files: EncodingFiles | None = None) -> None:
        self._encode = encode
        self._files = files
        self._states: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._states)

    @torch.no_grad()
    def prepare(self, captions: Sequence[str], events: Events | None = None, control: Control | None = None) -> None:
        """Encode, or read from files, and keep every caption that is not kept yet."""
        wanted = [caption for caption in dict.fromkeys(captions) if caption not in self._states]
        new = [caption for caption in wanted if not self._read(caption)]
        for start in range(0, len(new), _CAPTIONS_AT_ONCE):
            if control is not None:
                control.raise_if_stopping()
            group = new[start : start + _CAPTIONS_AT_ONCE]
            states = self._encode(group).detach().cpu()  # (batch, tokens, width)
            for caption, state in zip(group, states, strict=True):
                self._states[caption] = state.clone()
                if self._files is not None:
                    self._files.write(caption, state)
            if events is not None:
                events.phase("caching captions", len(wanted) - len(new) + start + len(group), len(wanted))

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """States (batch, tokens, width) of a batch, on the CPU; captions not kept are encoded for this call."""
        unknown = [caption for caption in dict.fromkeys(captions) if caption not in self._states]
        passing = dict(zip(unknown, self._encode(unknown).detach().cpu(), strict=True)) if unknown else {}
        states = ChainMap(passing, self._states)
        return torch.stack([states[caption] for caption in captions])  # (batch, tokens, width)

    def _read(self, caption: str) -> bool:
        """Take a caption's states from a file; False where there is none."""
        states = None if self._files is None else self._files.read(caption)
        if states is not None:
            self._states[caption] = states
        return states is not None
