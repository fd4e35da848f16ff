"""Which networks act in which sampling step."""

from __future__ import annotations

import pytest

from lora_ext.apply.schedule import has_schedule, tags_at
from lora_ext.apply.tags import LoraTag, parse_tags


@pytest.mark.parametrize(
    ("arguments", "acting"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        (":start=2", [2, 3, 4, 5]),
        (":stop=2", [0, 1]),
        (":step=2-4", [2, 3]),
        (":start=9", []),
        (":stop=9", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_steps(arguments: str, acting: list[int]) -> None:
    tags = parse_tags(f"<lora:cat:0.5{arguments}>").tags
    assert has_schedule(tags) == bool(arguments)
    multipliers = [tags_at(tags, step)[0].unet_multiplier for step in range(6)]
    assert multipliers == [0.5 if step in acting else 0.0 for step in range(6)]


def test_one_stops_where_the_other_starts() -> None:
    tags = parse_tags("<lora:a:1:stop=3><lora:b:1:start=3>").tags
    assert [[tag.unet_multiplier for tag in tags_at(tags, step)] for step in (2, 3)] == [[1.0, 0.0], [0.0, 1.0]]


def test_the_text_encoders_part_always_acts() -> None:
    tags = parse_tags("<lora:a:0.8:0.3:start=2>").tags
    assert tags_at(tags, 0) == [LoraTag("a", 0.8, 0.0)]
    assert tags_at(tags, 2) == tags_at(tags, 5) == [LoraTag("a", 0.8, 0.3)]
