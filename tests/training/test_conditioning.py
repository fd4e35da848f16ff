from __future__ import annotations

import pytest

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.groups import CaptionSettings
from lora_ext.training.conditioning import TextConditioning

LONG = ", ".join(["word"] * 60)  # 60 words and 59 commas


@pytest.mark.parametrize(("caption", "tokens"), [("", 0), ("a cat", 2), ("a photo of a cat, red", 7), (LONG, 119)])
def test_tokens_are_counted_without_begin_and_end(caption: str, tokens: int, checkpoint: Checkpoint) -> None:
    assert checkpoint.text_encoders[0].count_tokens(caption) == tokens


@pytest.mark.parametrize(
    ("captions", "longest", "tokens"),
    [(["a cat", ""], 225, 77), ([LONG, "a cat"], 225, 154), ([LONG + LONG], 225, 231), ([LONG], 75, 77)],
)
def test_as_many_chunks_as_the_longest_caption_needs(
    captions: list[str], longest: int, tokens: int, checkpoint: Checkpoint
) -> None:
    conditioning = TextConditioning(checkpoint.text_encoders, CaptionSettings(max_token_length=longest))
    conditioning.fit(captions)
    assert conditioning.encode(captions).context.shape == (len(captions), tokens, 32)


def test_clip_skip_reaches_the_encoder(checkpoint: Checkpoint) -> None:
    encoders = checkpoint.text_encoders
    last, before = (
        TextConditioning(encoders, CaptionSettings(clip_skip=skip)).encode(["a cat"]).context for skip in (1, 2)
    )
    assert not last.equal(before)


@pytest.mark.parametrize(("longest", "tokens"), [(75, 77), (150, 152), (225, 227)])
def test_sd_scripts_text_is_one_piece_of_full_length(longest: int, tokens: int, checkpoint: Checkpoint) -> None:
    encoders = checkpoint.text_encoders
    joined = TextConditioning(encoders, CaptionSettings(caption_chunks="sd-scripts", max_token_length=longest))
    joined.fit(["a cat"])
    webui = TextConditioning(encoders, CaptionSettings(max_token_length=longest))
    webui.fit([LONG + LONG])
    states, by_chunk = joined.encode(["a cat", LONG]).context, webui.encode(["a cat", LONG]).context
    assert states.shape == (2, tokens, 32) and by_chunk.shape == (2, longest // 75 * 77, 32)
    assert states[:, :76].equal(by_chunk[:, :76])
    assert states[:, -1].equal(by_chunk[:, -1])
    if longest > 75:
        assert states[:, 76:151].equal(by_chunk[:, 78:153])


@pytest.mark.parametrize("chunks", ["webui", "sd-scripts"])
def test_weights_multiply_the_states_of_their_words(chunks: str, checkpoint: Checkpoint) -> None:
    encoders = checkpoint.text_encoders
    weighted, plain = (
        TextConditioning(encoders, CaptionSettings(caption_chunks=chunks, max_token_length=150, weighted_captions=on))
        for on in (True, False)
    )
    before = plain.encode(["a red cat"]).context
    assert weighted.encode(["a red cat"]).context.equal(before)
    after = weighted.encode(["a (red:1.5) cat"]).context
    assert after[:, 2].equal(before[:, 2] * 1.5)
    assert after[:, :2].equal(before[:, :2]) and after[:, 3:].equal(before[:, 3:])


def test_brackets_of_weights_are_no_tokens(checkpoint: Checkpoint) -> None:
    encoders = checkpoint.text_encoders
    assert encoders[0].count_tokens("a (red:1.5) cat") == 9
    assert encoders[0].count_tokens("a (red:1.5) cat", weighted=True) == 3
