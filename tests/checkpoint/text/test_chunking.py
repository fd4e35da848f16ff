"""Chunks of 77 ids for captions, and of weighted tokens for prompts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.checkpoint.text.chunking import chunk_ids, chunk_prompt, joined_chunks

BOS, EOS, PAD, COMMA = 1, 2, 3, 9


def test_a_short_caption_is_framed_and_padded() -> None:
    assert chunk_ids([7, 8], None, BOS, EOS, PAD) == [[1, 7, 8, 2, *[3] * 73]]


def test_an_empty_caption_is_one_chunk() -> None:
    assert chunk_ids([], None, BOS, EOS, PAD) == [[1, 2, *[3] * 75]]


def test_long_captions_are_cut_or_filled_to_the_number_of_chunks() -> None:
    tokens = list(range(10, 90))  # 80 tokens
    assert chunk_ids(tokens, None, BOS, EOS, PAD) == [[1, *range(10, 85), 2], [1, *range(85, 90), 2, *[3] * 70]]
    assert chunk_ids(tokens, 1, BOS, EOS, PAD) == [[1, *range(10, 85), 2]]
    assert chunk_ids(tokens, 3, BOS, EOS, PAD)[2] == [1, 2, *[3] * 75]


def test_weights_are_framed_like_ids() -> None:
    [first, second] = chunk_ids([1.5] * 76, 2, 1.0, 1.0, 1.0)
    assert first == [1.0, *[1.5] * 75, 1.0]
    assert second == [1.0, 1.5, *[1.0] * 75]


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_joined_chunks_have_one_begin_and_one_end(chunks: int) -> None:
    positions = torch.arange(77 * chunks).reshape(1, -1, 1)
    inner = [77 * chunk + place for chunk in range(chunks) for place in range(1, 76)]
    assert joined_chunks(positions).flatten().tolist() == [0, *inner, 77 * chunks - 1]


def test_exactly_75_tokens_need_one_chunk() -> None:
    assert len(chunk_ids([5] * 75, None, BOS, EOS, PAD)) == 1
    assert len(chunk_prompt([([5] * 75, 1.0)], COMMA)) == 1


def test_break_starts_a_new_chunk() -> None:
    chunks = chunk_prompt([([5], 1.0), None, ([6], 1.5)], COMMA)
    assert [(chunk.tokens, chunk.weights) for chunk in chunks] == [([5], [1.0]), ([6], [1.5])]
    assert [chunk.tokens for chunk in chunk_prompt([None, ([6], 1.0)], COMMA)] == [[], [6]]
    assert [chunk.tokens for chunk in chunk_prompt([([6], 1.0), None], COMMA)] == [[6]]
    assert [chunk.tokens for chunk in chunk_prompt([], COMMA)] == [[]]


@pytest.mark.parametrize(("after_comma", "first_chunk"), [(19, 56), (20, 75)])
def test_what_follows_a_comma_near_the_end_moves_on(after_comma: int, first_chunk: int) -> None:
    tokens = [5] * (74 - after_comma) + [COMMA] + [6] * after_comma + [7]
    chunks = chunk_prompt([(tokens, 1.0)], COMMA)
    assert len(chunks[0].tokens) == first_chunk
    assert chunks[0].tokens + chunks[1].tokens == tokens
    assert [len(chunk.tokens) for chunk in chunk_prompt([(tokens, 1.0)], COMMA, backtrack=0)] == [75, 1]


@given(st.lists(st.tuples(st.lists(st.sampled_from([5, 6, COMMA]), max_size=120), st.sampled_from([1.0, 1.2]))))
def test_no_token_is_lost_and_no_chunk_is_too_long(pieces: list[tuple[list[int], float]]) -> None:
    chunks = chunk_prompt(list(pieces), COMMA)
    assert [token for chunk in chunks for token in chunk.tokens] == [token for ids, _ in pieces for token in ids]
    for chunk in chunks:
        assert len(chunk.tokens) == len(chunk.weights) <= 75
        ids, weights = chunk.framed(BOS, EOS, PAD)
        assert len(ids) == len(weights) == 77
