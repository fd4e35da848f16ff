"""Text encodings that are computed once, for runs that leave the text encoder as it is."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from lora_ext.checkpoint.conditioning import Conditioning, concatenated
from lora_ext.dataset.tensor_cache import TensorCache, delete_leftovers
from lora_ext.protocols import Control, Events

_CAPTIONS_AT_ONCE = 16


class EncodingFiles:
    """Encodings in files beside the pictures, by caption and by `kind`: all that they depend on otherwise."""

    def __init__(self, beside: Path, kind: Mapping[str, str], events: Events) -> None:
        self._beside = beside
        self._kind = dict(kind)
        self._cache = TensorCache("encodings", lambda text: events.message("warning", text))
        delete_leftovers(beside)

    def read(self, caption: str) -> Conditioning | None:
        """That of one caption, batch 1; None where it has to be encoded."""
        found = self._cache.read(self._beside, {**self._kind, "caption": caption})
        return (
            None if found is None else Conditioning(found["states"], found.get("pooled")).map(lambda each: each[None])
        )

    def write(self, caption: str, encoded: Conditioning) -> None:
        """Keep that of one caption, batch 1."""
        tensors = {"states": encoded.context} | ({} if encoded.pooled is None else {"pooled": encoded.pooled})
        only = {name: tensor[0].contiguous() for name, tensor in tensors.items()}
        self._cache.write(self._beside, {**self._kind, "caption": caption}, only)


class EncodingCache:
    """Encodings by caption text, kept on the CPU.

    `encode` gives every caption the same number of tokens. Only prepared captions are kept: shuffled ones would fill
    the memory.
    """

    def __init__(self, encode: Callable[[list[str]], Conditioning], files: EncodingFiles | None = None) -> None:
        self._encode = encode
        self._files = files
        self._kept: dict[str, Conditioning] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def prepare(self, captions: Sequence[str], events: Events | None = None, control: Control | None = None) -> None:
        """Encode, or read from files, and keep every caption that is not kept yet."""
        wanted = [caption for caption in dict.fromkeys(captions) if caption not in self._kept]
        new = [caption for caption in wanted if not self._read(caption)]
        for start in range(0, len(new), _CAPTIONS_AT_ONCE):
            if control is not None:
                control.raise_if_stopping()
            group = new[start : start + _CAPTIONS_AT_ONCE]
            for caption, encoded in self._encoded(group).items():
                self._kept[caption] = encoded
                if self._files is not None:
                    self._files.write(caption, encoded)
            if events is not None:
                events.phase("caching captions", len(wanted) - len(new) + start + len(group), len(wanted))

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """That of a batch, on the CPU; captions not kept are encoded for this call."""
        unknown = [caption for caption in dict.fromkeys(captions) if caption not in self._kept]
        known = ChainMap(self._encoded(unknown) if unknown else {}, self._kept)
        return concatenated([known[caption] for caption in captions])

    def _encoded(self, captions: list[str]) -> dict[str, Conditioning]:
        """Captions with what is made of each, batch 1, in memory of its own."""
        encoded = self._encode(captions).detached()
        return {
            caption: encoded[place : place + 1].map(lambda tensor: tensor.clone())
            for place, caption in enumerate(captions)
        }

    def _read(self, caption: str) -> bool:
        """Take a caption's encoding from a file; False where there is none."""
        found = None if self._files is None else self._files.read(caption)
        if found is not None:
            self._kept[caption] = found
        return found is not None
