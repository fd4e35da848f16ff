"""Lists of values: the WebUI's grammar, tidy numbers, and refusals that name the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.grid.values import format_number, parse_epochs, parse_numbers, parse_values
from lora_ext.protocols import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1-5", [1, 2, 3, 4, 5]),
        ("1-5 (+2)", [1, 3, 5]),
        ("2-10(+4)", [2, 6, 10]),
        ("5-1", [5, 4, 3, 2, 1]),
        ("10-5 (-3)", [10, 7]),
        ("0.4-1.2 (+0.2)", [0.4, 0.6, 0.8, 1.0, 1.2]),
        ("0-0.3 (+0.1)", [0.0, 0.1, 0.2, 0.3]),
        ("0.2-1.0 [5]", [0.2, 0.4, 0.6, 0.8, 1.0]),
        ("1-10 [4]", [1, 4, 7, 10]),
        ("-1--1 [3]", [-1, -1, -1]),
        ("-1 - -0.5 (+0.25)", [-1.0, -0.75, -0.5]),
        ("1e-1", [0.1]),
        ("a, b c", ["a", "b c"]),
        ("name-v2, 3", ["name-v2", 3]),
        ("1, 3-5, 0.5", [1, 3, 4, 5, 0.5]),
        (" , 1,, 2 ", [1, 2]),
    ],
)
def test_values(text: str, expected: list[object]) -> None:
    found = parse_values(text)
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("0.4-1.2", "needs a step"),
        ("0.4-", "is not a range"),
        ("1-5 (+0)", "never comes"),
        ("1-5 (-1)", "never comes"),
        ("0.5-1 [0]", "allowed are 1 to 1000"),
        ("1-100000", "more than 1000 values"),
    ],
)
def test_refused_ranges(text: str, part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        parse_values(text, "weights")
    assert repr(text) in str(caught.value)
    assert str(caught.value).startswith("weights = ")


@pytest.mark.parametrize("text", ["", "strong", "0.5, nan", "1, big"])
def test_words_are_no_numbers(text: str) -> None:
    with pytest.raises(UserError, match="is not a number; allowed are"):
        parse_numbers(text)


def test_numbers() -> None:
    assert parse_numbers("0.5, 1-2") == [0.5, 1.0, 2.0]


def test_epochs() -> None:
    assert parse_epochs("1-3, last") == [1, 2, 3, "last"]
    assert parse_epochs("") is None
    assert parse_epochs(" all ") is None


@pytest.mark.parametrize("text", ["0", "1.5", "first", "-1", ","])
def test_refused_epochs(text: str) -> None:
    with pytest.raises(UserError, match="is no epoch; allowed are whole numbers"):
        parse_epochs(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (0.6000000000000001, "0.6"), (-0.0, "0"), (100.0, "100"), (-0.25, "-0.25"), (1e-5, "0.00001")],
)
def test_number_format(value: float, text: str) -> None:
    assert format_number(value) == text


@given(st.integers(-50, 50), st.integers(1, 40), st.integers(0, 30))
def test_a_stepped_range_is_the_exact_decimals(start: int, stride: int, count: int) -> None:
    """Hundredths, counted in whole numbers, are the oracle."""
    end = start + stride * count
    text = f"{start / 100}-{end / 100} (+{stride / 100})"
    assert parse_numbers(text) == [(start + stride * index) / 100 for index in range(count + 1)]
