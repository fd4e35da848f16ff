"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ext.config.given_path import given_path
from lora_ext.config.sample_prompts import prompts_file


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (' "some folder/a.txt" ', Path("some folder/a.txt")),
        ("~/pictures", Path.home() / "pictures"),
        ("~nobody-of-this-name/pictures", Path("~nobody-of-this-name/pictures")),
    ],
)
def test_quotes_and_homes(text: str, path: Path) -> None:
    assert given_path(text) == path


def test_a_prompts_file_in_quotes_is_no_prompt() -> None:
    assert prompts_file('"some folder/prompts.txt"') == Path("some folder/prompts.txt")
    assert prompts_file('a sign with the words "read.me"') is None
