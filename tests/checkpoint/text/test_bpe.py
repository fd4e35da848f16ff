"""CLIP's tokenizer, made from the BPE file: ids as the published tokenizer has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from lora_ext.checkpoint.text.bpe import (
    BOS,
    EOS,
    VOCABULARY_SIZE,
    byte_alphabet,
    clean_text,
    clip_tokenizer,
    vocabulary,
    write_tokenizer_folder,
)


def ids(text: str) -> list[int]:
    return list(clip_tokenizer()(text, add_special_tokens=False)["input_ids"])


def test_vocabulary_has_clips_ids() -> None:
    tokens = vocabulary()
    assert len(tokens) == VOCABULARY_SIZE == 49408
    known = {"!": 0, "!</w>": 256, "a</w>": 320, ",</w>": 267, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368}
    assert {token: tokens[token] for token in known} == known
    assert (tokens["<|startoftext|>"], tokens["<|endoftext|>"]) == (BOS, EOS) == (49406, 49407)


def test_byte_alphabet_has_a_character_for_every_byte() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert (alphabet[0], alphabet[93], alphabet[94], alphabet[188]) == ("!", "~", "¡", "Ā")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A PHOTO  of\na cat", [320, 1125, 539, 320, 2368]),
        ("", []),
        ("cat,cat", [2368, 267, 2368]),
    ],
)
def test_well_known_texts(text: str, expected: list[int]) -> None:
    assert ids(text) == expected


def test_accents_are_kept_and_typography_is_made_plain() -> None:
    assert clip_tokenizer().tokenize("café") == ["cafÃ©</w>"]
    assert ids("don\u2019t \u201cgo\u201d") == ids('don\'t "go"')
    assert ids("cafe\u0301") == ids("caf\u00e9")
    assert ids("ｃａｔ") == ids("cat")


def test_clean_text_leaves_markup_alone() -> None:
    assert clean_text("a &amp; b") == "a & b"
    assert clean_text("<b>a &amp; b") == "<b>a &amp; b"


def test_a_written_folder_loads_in_transformers_with_the_same_ids(tmp_path: Path) -> None:
    write_tokenizer_folder(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    encoded = tokenizer(["a photo of a cat"], padding="max_length", truncation=True)["input_ids"][0]
    assert encoded == [49406, 320, 1125, 539, 320, 2368, *[49407] * 71]


def test_open_clip_is_located_and_not_imported() -> None:
    clip_tokenizer()
    assert "open_clip" not in sys.modules
