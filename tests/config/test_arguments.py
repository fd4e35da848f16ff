"""name=value arguments and lists of numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.config.arguments import parse_arguments, parse_numbers


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("weight_decay=0.01", {"weight_decay": 0.01}),
        ("betas=0.9,0.99 decouple=True", {"betas": (0.9, 0.99), "decouple": True}),
        ("betas=(0.9, 0.99)\ndecouple=true  eps=1e-8", {"betas": (0.9, 0.99), "decouple": True, "eps": 1e-8}),
        ("beta3=None n=3 sign=-1", {"beta3": None, "n": 3, "sign": -1}),
        ("step_rules=1:10,0.1:20,0.005", {"step_rules": "1:10,0.1:20,0.005"}),
        ('mode="a b" eps=[1e-30,1e-3]', {"mode": "a b", "eps": [1e-30, 1e-3]}),
        ("flags=true,False name = 'x'", {"flags": (True, False), "name": "x"}),
        ("ns_coeffs=original", {"ns_coeffs": "original"}),
    ],
)
def test_what_is_read(text: str, arguments: dict[str, Any]) -> None:
    assert parse_arguments(text) == (arguments, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("decouple", "'decouple' is no name=value pair"),
        ("0.1 weight_decay=0.1", "'0.1' is no name=value pair"),
        ("weight_decay=", "weight_decay has no value"),
        ("a=1 a=2", "a is given twice"),
    ],
)
def test_what_is_wrong(text: str, words: str) -> None:
    (problem,) = parse_arguments(text)[1]
    assert words in problem


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    arguments, problems = parse_arguments(text)
    assert arguments or problems or not text.strip()
    parse_numbers(text)


@given(st.lists(st.floats(allow_nan=False)))
def test_numbers_come_back(numbers: list[float]) -> None:
    assert parse_numbers(", ".join(map(str, numbers))) == numbers


def test_what_is_no_list_of_numbers() -> None:
    assert parse_numbers("1, two") is None
