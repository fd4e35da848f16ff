"""CLIP-L's states for captions and prompts, against transformers and against the WebUI's formula."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from lora_ext.checkpoint.text.bpe import clip_tokenizer
from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.checkpoint.text.encoder import apply_emphasis
from lora_ext.host.standalone.random_checkpoint import fill_randomly
from lora_ext.protocols import UserError

WIDTH = 32
LONG = ", ".join(["a very long walk"] * 20)  # 100 tokens


@pytest.fixture(scope="module")
def encoder() -> HFClipTextEncoder:
    config = CLIPTextConfig(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    module = CLIPTextModel(config).eval()
    fill_randomly(module, 5)
    return HFClipTextEncoder(module)


@torch.no_grad()
def transformers_states(encoder: HFClipTextEncoder, text: str, clip_skip: int) -> torch.Tensor:
    """(1, 77, width), by transformers' own tokenizer call and model."""
    batch = clip_tokenizer()([text], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    output = encoder.module(input_ids=batch["input_ids"], output_hidden_states=True)
    if clip_skip == 1:
        return output.last_hidden_state
    return encoder.module.text_model.final_layer_norm(output.hidden_states[-clip_skip])


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_captions_and_plain_prompts_equal_transformers(encoder: HFClipTextEncoder, clip_skip: int) -> None:
    expected = transformers_states(encoder, "a photo of a cat", clip_skip)
    with torch.no_grad():
        encoded = encoder.encode(encoder.tokenize(["a photo of a cat"], 75), clip_skip)
    torch.testing.assert_close(encoded, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_prompts(["a photo of a cat"], clip_skip), expected, atol=1e-5, rtol=0)


def test_clip_skip_takes_the_layer_before(encoder: HFClipTextEncoder) -> None:
    ids = encoder.tokenize(["cat"])
    assert not torch.allclose(encoder.encode(ids, 1), encoder.encode(ids, 2))
    with pytest.raises(UserError, match="clip_skip is 4; allowed are 1 to 3"):
        encoder.encode(ids, 4)


def test_token_ids_have_the_shape_that_the_length_asks_for(encoder: HFClipTextEncoder) -> None:
    ids = encoder.tokenize(["cat", LONG], 225)
    assert ids.shape == (2, 3, 77)
    assert ids.dtype == torch.int64
    assert ids[0, 0, :4].tolist() == [49406, 2368, 49407, 49407]
    assert ids[0, 1].tolist() == [49406, *[49407] * 76]
    assert encoder.encode(ids).shape == (2, 231, WIDTH)
    with pytest.raises(UserError, match="max_token_length is 100; allowed: 75, 150, 225"):
        encoder.tokenize(["cat"], 100)


def test_brackets_in_captions_are_text(encoder: HFClipTextEncoder) -> None:
    assert encoder.token_ids(["(cat)"])[0] == [263, 2368, 264]


def test_weighted_captions_have_the_ids_of_their_words(encoder: HFClipTextEncoder) -> None:
    ids, weights = encoder.tokenize_weighted(["a (red:1.5) cat [dog] ((sky)) \\(x\\)", "BREAK"], 150)
    plain = encoder.tokenize(["a red cat dog sky (x)", "BREAK"], 150)
    assert ids.equal(plain) and ids.shape == weights.shape == (2, 2, 77) and weights.dtype == torch.float32
    assert weights[0, 0, :10].tolist() == pytest.approx([1, 1, 1.5, 1, 1 / 1.1, 1.21, 1, 1, 1, 1])
    assert (weights[0, 0, 10:] == 1).all() and (weights[0, 1] == 1).all() and (weights[1] == 1).all()


def test_the_weight_stays_with_a_word_of_the_next_chunk(encoder: HFClipTextEncoder) -> None:
    _, weights = encoder.tokenize_weighted([f"{'walk ' * 75}(cat:1.3)"], 150)
    assert weights[0, 0].eq(1).all() and weights[0, 1, :3].tolist() == pytest.approx([1, 1.3, 1])


def test_gradients_flow_through_encode(encoder: HFClipTextEncoder) -> None:
    weight = encoder.module.text_model.encoder.layers[0].mlp.fc1.weight
    weight.requires_grad_(True)
    encoder.encode(encoder.tokenize(["cat"])).square().sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    weight.grad = None


def test_emphasis_multiplies_states_and_restores_the_mean() -> None:
    states = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[1.0, 1.0], [5.0, 5.0]]])
    weighted = apply_emphasis(states, torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
    # mean 2 before, (1 + 3 + 4 + 4) / 4 = 3 after
    torch.testing.assert_close(weighted[0], torch.tensor([[1.0, 3.0], [4.0, 4.0]]) * 2 / 3)
    assert torch.equal(weighted[1], states[1])


def test_weights_of_one_change_nothing_and_others_do(encoder: HFClipTextEncoder) -> None:
    plain = encoder.encode_prompts(["a red cat"])
    assert torch.equal(encoder.encode_prompts(["a (red:1.0) cat"]), plain)
    stronger = encoder.encode_prompts(["a (red:1.5) cat"])
    assert not torch.allclose(stronger, plain)
    torch.testing.assert_close(stronger.mean(), plain.mean(), atol=1e-5, rtol=1e-3)


def test_long_prompts_and_break_give_more_chunks(encoder: HFClipTextEncoder) -> None:
    assert encoder.encode_prompts([LONG]).shape == (1, 154, WIDTH)
    both = encoder.encode_prompts(["a cat BREAK a dog", "a cat"])
    assert both.shape == (2, 154, WIDTH)
    torch.testing.assert_close(both[:1, 77:], encoder.encode_prompts(["a dog"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1:, 77:], encoder.encode_prompts([""]), atol=1e-5, rtol=0)


def test_a_prompt_does_not_depend_on_its_batch(encoder: HFClipTextEncoder) -> None:
    alone = encoder.encode_prompts(["a (red:1.5) cat"])
    together = encoder.encode_prompts(["a (red:1.5) cat", "(dog:0.2)"])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)
