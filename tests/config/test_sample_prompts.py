from __future__ import annotations

from pathlib import Path

import pytest

from lora_ext.config.sample_prompts import SamplePrompt, parse_sample_prompts, prompts_file, sampler_name
from lora_ext.config.train_config import make_config
from lora_ext.protocols import ConfigError


def test_lines_with_options() -> None:
    prompts, problems = parse_sample_prompts(
        "# a comment\n"
        "a cat, sitting --n dog, blurry --w 512 --h 768 --d 7 --s 12 --l 5.5 --ss k_euler_a\n"
        "\n"
        "  a well-known -- and long -- prompt\n"
    )
    assert problems == []
    assert prompts == [
        SamplePrompt("a cat, sitting", "dog, blurry", 512, 768, 7, 12, 5.5, "Euler a"),
        SamplePrompt("a well-known -- and long -- prompt", "", None, None, None, 20, 7.0, None),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a cat --w 100", "--w 100: allowed is a multiple of 8 from 64 to 4096"),
        ("a cat --s many", "--s many: allowed is a whole number from 1 to 500"),
        ("a cat --d -1", "--d -1: allowed is a whole number from 0 to 4294967295"),
        ("a cat --l 0", "--l 0: allowed is a number from 1 to 100"),
        ("a cat --l nan", "--l nan: allowed is a number from 1 to 100"),
        ("a cat --steps 20", "--steps: allowed are --n, --w, --h, --d, --s, --l, --ss"),
        ("--w 64 --h 64", "there are options, but no prompt before them"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(line: str, problem: str) -> None:
    assert parse_sample_prompts(f"a dog\n{line}")[1] == [f"sample_prompts, line 2: {problem}"]
    with pytest.raises(ConfigError, match="sample_prompts, line 2: "):
        make_config({"sample_prompts": f"a dog\n{line}"})


def test_samplers_of_sd_scripts() -> None:
    names = {"ddim": "DDIM", "k_euler": "Euler", "dpmsolver++": "DPM++ 2M", "DPM++ 2M Karras": "DPM++ 2M Karras"}
    assert {name: sampler_name(name) for name in names} == names


def test_a_file_in_place_of_prompts() -> None:
    assert prompts_file("lists/prompts.txt\n") == Path("lists/prompts.txt")
    assert [prompts_file(text) for text in ("", "a cat", "a.txt\nb", "a cat --n x.txt")] == [None] * 4
