"""The WebUI's infotext, written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.host.standalone.infotext import Infotext, format_infotext, parse_infotext, quote

PARAMETERS = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7.0", "Seed": "1", "Size": "64x64"}


def test_literal_form() -> None:
    text = format_infotext(
        Infotext("a cat <lora:x:1>", "bad, worse", {**PARAMETERS, "Lora hashes": "x: 0123456789ab, y: ba9876543210"})
    )
    assert text == (
        "a cat <lora:x:1>\n"
        "Negative prompt: bad, worse\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 1, Size: 64x64, "
        'Lora hashes: "x: 0123456789ab, y: ba9876543210"'
    )


def test_no_negative_prompt_no_line() -> None:
    assert format_infotext(Infotext("a cat", "", {"Steps": "1"})) == "a cat\nSteps: 1"


@pytest.mark.parametrize(
    ("value", "quoted"), [("plain", "plain"), ("a, b", '"a, b"'), ("a: b", '"a: b"'), ("a\nb", '"a\\nb"'), (7, "7")]
)
def test_quoting(value: object, quoted: str) -> None:
    assert quote(value) == quoted


def test_several_lines_and_the_webuis_own_text() -> None:
    parsed = parse_infotext(
        "girl with a hat,\nmasterpiece\nNegative prompt: ugly,\nfat\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x512, "
        'Model hash: 45dee52b, Lora hashes: "a: 1, b: 2", Version: v1.10.1'
    )
    assert parsed.prompt == "girl with a hat,\nmasterpiece"
    assert parsed.negative_prompt == "ugly,\nfat"
    assert parsed.parameters["Schedule type"] == "Karras"
    assert parsed.parameters["Lora hashes"] == "a: 1, b: 2"
    assert parsed.parameters["Version"] == "v1.10.1"


def test_text_without_parameters_is_all_prompt() -> None:
    assert parse_infotext("a cat: big, small") == Infotext("a cat: big, small")


words = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=12)
lines = words.filter(lambda text: not text.startswith("Negative prompt:"))


@given(lines, words | st.just(""), st.lists(st.text('abc,:"\\ \nxyz', min_size=1).map(str.strip).filter(bool)))
def test_round_trip(prompt: str, negative: str, values: list[str]) -> None:
    parameters = {**PARAMETERS, **{f"Key {index}": value for index, value in enumerate(values) if '"' not in value}}
    infotext = Infotext(prompt, negative, parameters)
    assert parse_infotext(format_infotext(infotext)) == infotext
