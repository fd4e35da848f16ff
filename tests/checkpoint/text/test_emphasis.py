"""The WebUI's emphasis grammar; expectations from its documentation and from running its parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.checkpoint.text.emphasis import BREAK, parse_emphasis


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("", [("", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("a [less] b", [("a ", 1.0), ("less", 1 / 1.1), (" b", 1.0)]),
        ("(exact:0.3)", [("exact", 0.3)]),
        ("(exact: 1.5 ) rest", [("exact", 1.5), (" rest", 1.0)]),
        ("(minus:-1)", [("minus", -1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[unbalanced", [("unbalanced", 1 / 1.1)]),
        ("closing) only]", [("closing) only]", 1.0)]),
        (r"\(literal\] \\", [("(literal] \\", 1.0)]),
        (r"back\slash", [("backslash", 1.0)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
        ("[x:1.2)", [("x:1.2)", 1 / 1.1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        ("(a BREAK b:1.5)", [("a", 1.5), BREAK, ("b", 1.5)]),
        ("BREAK", [BREAK]),
    ],
)
def test_prompts(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parse_emphasis(prompt) == expected


def test_the_documented_nesting() -> None:
    parsed = parse_emphasis("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).")
    assert parsed == [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ]


@given(st.text(st.characters(blacklist_characters="()[]\\"), min_size=1).filter(lambda text: "BREAK" not in text))
def test_text_without_brackets_comes_back_whole(text: str) -> None:
    assert parse_emphasis(text) == [(text, 1.0)]


@given(st.text("ab():[]\\1. ", max_size=30))
def test_any_text_parses_and_weights_are_finite(prompt: str) -> None:
    for text, weight in parse_emphasis(prompt):
        assert text or prompt.strip("()[]\\ ") == "" or weight == 1.0
        assert abs(weight) < float("inf")


def test_without_breaks_the_word_is_text() -> None:
    assert parse_emphasis("a BREAK (b)", breaks=False) == [("a BREAK ", 1.0), ("b", 1.1)]
