"""Where a run takes the text states of its captions from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import ImageDataset
from lora_ext.dataset.encodings import EncodingCache
from lora_ext.dataset.sources import scan_dataset
from lora_ext.dataset.tensor_cache import FOLDER_NAME
from lora_ext.protocols import Control, Events
from lora_ext.training.conditioning import TextConditioning
from lora_ext.training.text_encoding import Encode, prepare_text

Make = Callable[..., tuple[ImageDataset, TextConditioning, Encode]]


class Said(Events):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.cached = 0

    def message(self, level: str, text: str) -> None:
        self.messages.append(text)

    def phase(self, name: str, done: int, total: int) -> None:
        self.cached = done


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def prepared(checkpoint: Checkpoint, small_config: Callable[..., TrainConfig], said: Said) -> Make:
    def make(trained: bool = False, **values: Any) -> tuple[ImageDataset, TextConditioning, Encode]:
        config = small_config(**values)
        dataset = ImageDataset(scan_dataset(config), config)
        with torch.no_grad():
            conditioning, encode = prepare_text(checkpoint, dataset, config, trained, said, Control())
        return dataset, conditioning, encode

    return make


def shown(dataset: ImageDataset, epochs: int) -> list[str]:
    """The captions of so many epochs, without latents."""
    return [dataset._caption(each, 0, 1) for e in range(1, epochs + 1) for b in dataset.epoch_order(e) for each in b]


def test_captions_are_encoded_once_where_the_encoder_stands_still(prepared: Make, said: Said) -> None:
    dataset, conditioning, encode = prepared()
    assert isinstance(encode, EncodingCache) and len(encode) == said.cached == 3 and said.messages == []
    captions = shown(dataset, 1)
    torch.testing.assert_close(encode(captions).context, conditioning.encode(captions).context, atol=1e-5, rtol=0)


def test_a_trained_encoder_is_asked_each_time(prepared: Make, said: Said) -> None:
    _, conditioning, encode = prepared(trained=True, caption_variants=4, shuffle_caption=True)
    assert encode == conditioning.encode and said.cached == 0 and said.messages == []


@pytest.mark.parametrize(
    "values", [{"shuffle_caption": True}, {"caption_tag_dropout_rate": 0.5}, {"enable_wildcard": True}]
)
def test_changing_captions_are_not_kept_and_that_is_said_once(
    values: dict[str, Any], prepared: Make, said: Said, pictures: Path
) -> None:
    (pictures / "2_cat" / "0.txt").write_text("a {red|blue} cat, yellow, {old|young}", encoding="utf-8")
    dataset, _, encode = prepared(**values)
    assert not isinstance(encode, EncodingCache) and said.cached == 0
    assert len(said.messages) == 1 and "caption_variants = 8" in said.messages[0]
    assert not encode(["a cat"]).context.requires_grad
    assert len(set(shown(dataset, 20))) > 4


def test_versions_of_captions_are_all_kept_and_no_other_comes_up(prepared: Make, said: Said) -> None:
    values = {"shuffle_caption": True, "caption_dropout_rate": 0.2, "caption_variants": 4}
    dataset, _, encode = prepared(**values)
    assert isinstance(encode, EncodingCache) and said.messages == []
    captions = set(shown(dataset, 40))
    assert captions <= set(dataset.captions) and len(encode) == len(dataset.captions)
    assert "" in captions and 7 < len(captions) <= 13
    assert shown(prepared(**values)[0], 5) == shown(dataset, 5)


def test_versions_cannot_grow_with_the_steps(prepared: Make, said: Said) -> None:
    dataset, _, encode = prepared(token_warmup_step=10, caption_variants=4)
    assert not isinstance(encode, EncodingCache) and "token_warmup_step" in said.messages[0]
    (first,) = [each for batch in dataset.epoch_order(1) for each in batch if (each.picture, each.repeat) == (0, 0)]
    assert [dataset._caption(first, step, 20) for step in (0, 5, 10)] == [
        "a cat", "a cat, number 0", "a cat, number 0, yellow",
    ]  # fmt: skip


def test_the_cache_can_be_switched_off_and_nothing_else_changes(prepared: Make, said: Said) -> None:
    versions = {"caption_variants": 4, "shuffle_caption": True}
    dataset, conditioning, encode = prepared(cache_text_encoder_outputs=False, **versions)
    assert not isinstance(encode, EncodingCache) and said.messages == []
    assert shown(dataset, 5) == shown(prepared(**versions)[0], 5)
    assert encode(["a cat"]).context.equal(conditioning.encode(["a cat"]).context.detach())


def test_files_know_encoder_chunks_and_skip(prepared: Make, said: Said, pictures: Path, checkpoint: Checkpoint) -> None:
    on_disk = {"cache_text_encoder_outputs_to_disk": True}

    def encoded(**values: Any) -> int:
        said.cached = 0
        dataset, conditioning, encode = prepared(**on_disk, **values)
        given, expected = encode(dataset.captions), conditioning.encode(dataset.captions)
        torch.testing.assert_close(given.context, expected.context, atol=1e-5, rtol=0)
        return said.cached

    assert encoded() == 3
    assert len(list((pictures / "2_cat" / FOLDER_NAME).iterdir())) == 3
    assert encoded() == encoded(seed=9, cache_text_encoder_outputs=False) == 0
    assert encoded(clip_skip=2) == encoded(caption_chunks="sd-scripts") == encoded(weighted_captions=True) == 3
    weight = checkpoint.text_encoders[0].module.text_model.encoder.layers[0].mlp.fc1.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 1
        assert encoded() == 3
        weight.copy_(original)
    assert encoded() == 0
