"""Captions: what shuffling may and may not change."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ext.dataset.caption_files import UnreadableCaptionError, choose_caption_file, read_caption_file
from lora_ext.dataset.captions import caption_version, split_tags
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.seeds import derived_seed


def shuffle_caption(caption: str, keep_tokens: int, rng: random.Random) -> str:
    return caption_version(caption, SubsetOptions(shuffle_caption=True, keep_tokens=keep_tokens), rng)


def test_shuffle_keeps_the_first_tags() -> None:
    shuffled = shuffle_caption("zbx, girl,red hair , smile,  hat", 2, random.Random(1))
    assert shuffled.split(", ")[:2] == ["zbx", "girl"]
    assert sorted(shuffled.split(", ")) == ["girl", "hat", "red hair", "smile", "zbx"]


def test_shuffle_has_a_known_result() -> None:
    assert [shuffle_caption("a, b, c, d, e", 1, random.Random(seed)) for seed in (0, 1, 2)] == [
        "a, d, b, c, e",
        "a, e, b, d, c",
        "a, c, d, e, b",
    ]


def test_shuffle_drops_empty_tags() -> None:
    assert shuffle_caption(" ,a,, ", 0, random.Random(0)) == "a"


def test_shuffle_leaves_the_global_random_state_alone() -> None:
    before = random.getstate()
    shuffle_caption("a, b, c, d", 0, random.Random(5))
    assert random.getstate() == before


@settings(deadline=None)
@given(caption=st.text(), keep=st.integers(0, 8), seed=st.integers(0, 2**32))
def test_shuffle_keeps_every_tag(caption: str, keep: int, seed: int) -> None:
    tags = split_tags(caption.split("\n")[0])
    shuffled = split_tags(shuffle_caption(caption, keep, random.Random(seed)))
    assert sorted(shuffled) == sorted(tags)
    assert shuffled[:keep] == tags[:keep]


def test_derived_seeds_have_known_values() -> None:
    assert derived_seed(42, 1) == 3231197244720825172
    assert len({derived_seed(seed, epoch) & 0xFFFFFFFF for seed in range(50) for epoch in range(50)}) == 2500


@pytest.mark.parametrize(
    ("raw", "text", "further"),
    [
        (b"a cat\n", "a cat", 0),
        (b"\xef\xbb\xbfa cat", "a cat", 0),
        (b"\r\n  a cat  \r\nwith a hat\r\n", "a cat", 1),
        ("katze mit hütchen".encode(), "katze mit hütchen", 0),
        (b"", "", 0),
        (b"\n \n", "", 0),
    ],
)
def test_caption_file(tmp_path: Path, raw: bytes, text: str, further: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    caption = read_caption_file(path)
    assert (caption.text, caption.further_lines) == (text, further)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("hütchen".encode("latin-1"), r"not UTF-8 text \(byte 1\): save it as UTF-8"),
        ("hütchen".encode("utf-16"), "looks like UTF-16"),
        ("hat".encode("utf-16-le"), "looks like UTF-16"),
    ],
)
def test_caption_file_of_another_encoding(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    with pytest.raises(UnreadableCaptionError, match=message):
        read_caption_file(path)


def test_txt_goes_before_caption() -> None:
    both = {".caption": Path("a.caption"), ".txt": Path("a.txt")}
    assert choose_caption_file(both, "auto") == Path("a.txt")
    assert choose_caption_file(both, ".caption") == Path("a.caption")
    assert choose_caption_file({".caption": Path("a.caption")}, ".txt") is None
