"""Cached text encodings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ext.checkpoint.conditioning import Conditioning
from lora_ext.dataset.encodings import EncodingCache, EncodingFiles
from lora_ext.protocols import Cancelled, Control, Events


class Encoder:
    """States are (length of the caption, index in the call); remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, captions: list[str]) -> Conditioning:
        self.calls.append(captions)
        weight = torch.ones((), requires_grad=True)
        return Conditioning(torch.tensor([[[float(len(c)), float(i)]] for i, c in enumerate(captions)]) * weight)


def test_prepared_captions_are_encoded_once() -> None:
    encoder = Encoder()
    cache = EncodingCache(encoder)
    cache.prepare(["a", "bb", "a", ""])
    cache.prepare(["bb"])
    assert encoder.calls == [["a", "bb", ""]]
    states = cache(["bb", "a", "bb"]).context
    assert states.tolist() == [[[2, 1]], [[1, 0]], [[2, 1]]] and not states.requires_grad
    assert len(encoder.calls) == 1 and len(cache) == 3


def test_other_captions_are_encoded_and_not_kept() -> None:
    encoder = Encoder()
    cache = EncodingCache(encoder)
    cache.prepare(["a"])
    for _ in range(2):
        assert cache(["ccc", "a", "ccc"]).context.tolist() == [[[3, 0]], [[1, 0]], [[3, 0]]]
    assert encoder.calls == [["a"], ["ccc"], ["ccc"]] and len(cache) == 1


def test_progress_and_stop_between_groups() -> None:
    seen: list[tuple[str, int, int]] = []

    class Recorder(Events):
        def phase(self, name: str, done: int, total: int) -> None:
            seen.append((name, done, total))

    captions = [f"caption {number}" for number in range(20)]
    EncodingCache(Encoder()).prepare(captions, Recorder())
    assert seen == [("caching captions", 16, 20), ("caching captions", 20, 20)]
    control = Control()
    control.stop()
    with pytest.raises(Cancelled):
        EncodingCache(Encoder()).prepare(captions, control=control)


def test_files_spare_the_encoder_and_are_never_stale(tmp_path: Path) -> None:
    def states(captions: list[str], **kind: str) -> tuple[list[list[str]], Tensor]:
        encoder = Encoder()
        cache = EncodingCache(encoder, EncodingFiles(tmp_path, {"encoder": "1", "chunks": "1", **kind}, Events()))
        cache.prepare(captions)
        return encoder.calls, cache(captions).context

    calls, first = states(["a", "bb"])
    assert calls == [["a", "bb"]]
    calls, again = states(["bb", "ccc", "a"])
    assert calls == [["ccc"]]
    assert again.tolist() == [[[2, 1]], [[3, 0]], [[1, 0]]] and again[0].equal(first[1])
    assert states(["a"], encoder="2")[0] == [["a"]] and states(["a"], chunks="2")[0] == [["a"]]
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-4])
    assert states(["a", "bb"])[0] == [["a", "bb"]]
