from __future__ import annotations

import pytest

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.groups import CaptionSettings
from lora_ext.training.conditioning import TextConditioning, token_count

LONG = ", ".join(["word"] * 60)  # 60 words and 59 commas


@pytest.mark.parametrize(("caption", "tokens"), [("", 0), ("a cat", 2), ("a photo of a cat, red", 7), (LONG, 119)])
def test_tokens_are_counted_without_begin_and_end(caption: str, tokens: int, checkpoint: Checkpoint) -> None:
    assert token_count(checkpoint.text_encoders[0], caption) == tokens


@pytest.mark.parametrize(
    ("captions", "longest", "tokens"),
    [(["a cat", ""], 225, 77), ([LONG, "a cat"], 225, 154), ([LONG + LONG], 225, 231), ([LONG], 75, 77)],
)
def test_as_many_chunks_as_the_longest_caption_needs(
    captions: list[str], longest: int, tokens: int, checkpoint: Checkpoint
) -> None:
    conditioning = TextConditioning(checkpoint.text_encoders[0], CaptionSettings(max_token_length=longest))
    conditioning.fit(captions)
    assert conditioning.encode(captions).shape == (len(captions), tokens, 32)


def test_clip_skip_reaches_the_encoder(checkpoint: Checkpoint) -> None:
    encoder = checkpoint.text_encoders[0]
    last, before = (TextConditioning(encoder, CaptionSettings(clip_skip=skip)).encode(["a cat"]) for skip in (1, 2))
    assert not last.equal(before)
