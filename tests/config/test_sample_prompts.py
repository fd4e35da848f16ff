from __future__ import annotations

from pathlib import Path

import pytest

from lora_ext.config.sample_prompts import (
    SamplePrompt,
    parse_prompts_file,
    parse_sample_prompts,
    prompts_file,
    sampler_name,
)
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
    assert [prompts_file(f"lists/p{suffix}") for suffix in (".toml", ".JSON")] == [
        Path("lists/p.toml"),
        Path("lists/p.JSON"),
    ]
    assert [prompts_file(text) for text in ("", "a cat", "a.txt\nb", "a cat --n x.txt")] == [None] * 4


TOML = """
[prompt]
width = 512
negative_prompt = "blurry"
[[prompt.subset]]
prompt = "a cat"
height = 768
seed = 7
sample_steps = 12
scale = 5.5
sample_sampler = "k_euler_a"
[[prompt.subset]]
prompt = "a dog"
width = 256
guidance_scale = 3.5
"""
JSON = """[
 {"prompt": "a cat", "negative_prompt": "blurry", "width": 512, "height": 768, "seed": 7, "sample_steps": 12,
  "scale": 5.5, "sample_sampler": "euler_a"},
 "a dog --n blurry --w 256 --g 3.5",
 {"prompt": "a bird"}
]"""
CAT = SamplePrompt("a cat", "blurry", 512, 768, 7, 12, 5.5, "Euler a")
DOG = SamplePrompt("a dog", "blurry", 256)


def test_files_as_sd_scripts_writes_them() -> None:
    assert parse_prompts_file(TOML, ".toml") == ([CAT, DOG], [])
    assert parse_prompts_file(JSON, ".json") == ([CAT, DOG, SamplePrompt("a bird")], [])
    assert parse_prompts_file("# mine\na dog --n blurry --w 256\n", ".txt") == ([DOG], [])
    assert parse_prompts_file('[prompt]\nprompt = "a bird"', ".TOML") == ([SamplePrompt("a bird")], [])


@pytest.mark.parametrize(
    ("text", "suffix", "problem"),
    [
        ("[prompt", ".toml", "sample_prompts: the file cannot be read as TOML: "),
        ("prompt = 3", ".toml", "sample_prompts: the file cannot be read as TOML: a [prompt] table is wanted"),
        ('{"prompt": "a"}', ".json", "sample_prompts: the file cannot be read as JSON: a list of prompts is wanted"),
        ('["a", 3]', ".json", "sample_prompts, prompt 2: 3 is neither a line nor a table"),
        ('[{"width": 64}]', ".json", "sample_prompts, prompt 1: there is no prompt in it"),
        ('[{"prompt": "a", "width": 100}]', ".json", "sample_prompts, prompt 1: width = 100: allowed is"),
        ('[{"prompt": "a", "sampler": "ddim"}]', ".json", "sample_prompts, prompt 1: sampler: allowed are prompt, "),
        ('["a --w 7"]', ".json", "sample_prompts, prompt 1: --w 7: allowed is a multiple of 8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(text: str, suffix: str, problem: str) -> None:
    (found,) = parse_prompts_file(text, suffix)[1]
    assert found.startswith(problem)
