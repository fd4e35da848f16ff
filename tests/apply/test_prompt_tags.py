"""The grammar of tags in prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.apply.tags import LoraTag, parse_tags
from lora_ext.networks.block_weights import parse_block_weights

LIST = "1,0,0,0,0.5,0.5,-1,0,0,0,0,0"


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:cat>", LoraTag("cat", 1.0)),
        ("<lora:cat:0.8>", LoraTag("cat", 0.8)),
        ("<lora:cat:0.8:0.5>", LoraTag("cat", 0.8, 0.5)),
        ("<lora:cat:0.8:0.5:4>", LoraTag("cat", 0.8, 0.5, 4)),
        ("<lora:cat:unet=0.5>", LoraTag("cat", 1.0, 0.5)),
        ("<lora:cat:te=0.5>", LoraTag("cat", 0.5)),
        ("<lora:cat:te=0.5:unet=-1>", LoraTag("cat", 0.5, -1.0)),
        ("<lora:te=0.5:cat:dyn=2>", LoraTag("cat", 0.5, None, 2)),
        ("<lora:cat:0.8:te=0.2>", LoraTag("cat", 0.2)),
        ("<lora:cat:1e-1>", LoraTag("cat", 0.1)),
        ("<lora:cat: .5 >", LoraTag("cat", 0.5)),
        ("<lora:cat:1:epoch=3:stop=10>", LoraTag("cat", 1.0, epoch=3, stop=10)),
        ("<lora:cat:epoch=last>", LoraTag("cat", epoch="last")),
        ("<lora:cat:epoch= 007 :1>", LoraTag("cat", epoch=7)),
        ("<lora:cat:1:start=5>", LoraTag("cat", start=5)),
        ("<lora:cat:1:start=0:stop=1>", LoraTag("cat", stop=1)),
        ("<lora:cat:1:step=5-10>", LoraTag("cat", start=5, stop=10)),
        ("<lora:cat:1:lbw=OUTALL>", LoraTag("cat", lbw=parse_block_weights("OUTALL"))),
        (f"<lora:cat:1:lbw={LIST}:unet=0.5>", LoraTag("cat", 1.0, 0.5, lbw=parse_block_weights(LIST))),
        ("<lora:cat:1:later=1>", LoraTag("cat")),
        ("<lora:a=b=c:1>", LoraTag("a=b=c", 1.0)),
        ("<lora:cat v1.2 (new):1>", LoraTag("cat v1.2 (new)", 1.0)),
        ("<lyco:cat:0.7>", LoraTag("cat", 0.7)),
    ],
)
def test_forms(tag: str, expected: LoraTag) -> None:
    parsed = parse_tags(f"a {tag}photo")
    assert (parsed.text, parsed.tags, parsed.problems) == ("a photo", [expected], [])


def test_the_unets_multiplier_is_the_text_encoders_unless_given() -> None:
    assert LoraTag("cat", 0.3).unet_multiplier == 0.3
    assert LoraTag("cat", 0.3, 0.0).unet_multiplier == 0.0


def test_several_tags_and_the_same_name_twice() -> None:
    parsed = parse_tags("<lora:a:1>x, <lora:b:2> y<lora:a:0.5>")
    assert parsed.text == "x,  y"
    assert parsed.tags == [LoraTag("a", 1.0), LoraTag("b", 2.0), LoraTag("a", 0.5)]


def test_other_tags_and_brackets_stay() -> None:
    prompt = "a < b > c <hypernet:x:1> <lora> <lora:> (cat:1.2) [dog] < lora:x:1> <LORA:x:1>"
    parsed = parse_tags(prompt)
    assert (parsed.text, parsed.tags, parsed.problems) == (prompt, [], [])


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("<lora:cat:strong>", "te = 'strong' is no number"),
        ("<lora:cat:1:much>", "unet = 'much' is no number"),
        ("<lora:cat:unet=0,5>", "unet = '0,5' is no number"),
        ("<lora:cat:nan>", "te = 'nan' is no number"),
        ("<lora:cat:>", "te = '' is no number"),
        ("<lora:cat:1:1:half>", "dyn = 'half' is no rank"),
        ("<lora:cat:dyn=0>", "dyn = '0' is no rank"),
        (f"<lora:cat:1:{LIST}>", "is no number; write one like 0.8; weights by block are written lbw="),
        ("<lora:cat:epoch=0>", "epoch = '0' is no epoch; write a whole number from 1 on, or last"),
        ("<lora:cat:epoch=first>", "epoch = 'first' is no epoch"),
        ("<lora:cat:start=0.5>", "start = '0.5' is no number of steps; write a whole number like 10"),
        ("<lora:cat:stop=-1>", "stop = '-1' is no number of steps"),
        ("<lora:cat:step=5>", "step = '5' is no range of steps; write one like step=5-10"),
        ("<lora:cat:step=5-10:start=2>", "step= stands for start= and stop= together; give either"),
        ("<lora:cat:step=5-5>", "it would act in no step: stop = 5 has to be above start = 5"),
        ("<lora:cat:start=8:stop=4>", "stop = 4 has to be above start = 8"),
        ("<lora:cat:stop=0>", "stop = 0 has to be above start = 0"),
        ("<lora:cat:lbw=SIDE>", "lbw = 'SIDE' is no preset; there are NONE, ALL, "),
        ("<lora:cat:lbw=1,2,3>", "lbw has 3 numbers; a list has 17 or 26 for SD1 and SD2, 12 or 20 for SDXL"),
        ("<lora:cat:lbwe=ATTN>", "lbwe= is not known here"),
        ("<lora: :1>", "no name"),
        ("<lora:te=1>", "no name"),
    ],
)
def test_malformed_tags_are_taken_out_and_told(tag: str, words: str) -> None:
    parsed = parse_tags(f"a {tag}photo <lora:dog:1>")
    assert (parsed.text, parsed.tags) == ("a photo ", [LoraTag("dog", 1.0)])
    assert len(parsed.problems) == 1
    assert parsed.problems[0].startswith(f"{tag} is ignored: ")
    assert words in parsed.problems[0]


NAMES = st.text(st.characters(blacklist_characters=":<>=", blacklist_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda name: name == name.strip()
)
MULTIPLIERS = st.integers(-2000, 2000).map(lambda thousandths: thousandths / 1000)
LISTS = st.sampled_from([12, 17, 20, 26]).flatmap(lambda count: st.lists(MULTIPLIERS, min_size=count, max_size=count))
WEIGHTS = st.sampled_from(["ALL", "OUTD"]) | LISTS.map(lambda numbers: ",".join(map(str, numbers)))
TAGS = st.builds(
    LoraTag,
    NAMES,
    MULTIPLIERS,
    st.none() | MULTIPLIERS,
    st.none() | st.integers(1, 128),
    st.none() | st.integers(1, 99) | st.just("last"),
    st.none() | WEIGHTS.map(parse_block_weights),
    st.integers(0, 5),
    st.none() | st.integers(6, 20),
)
TEXTS = st.text(st.characters(blacklist_characters="<>", blacklist_categories=["Cs"]))


@given(st.lists(st.tuples(TEXTS, TAGS)), TEXTS)
def test_tags_survive_the_way_through_a_prompt_and_the_text_is_untouched(
    parts: list[tuple[str, LoraTag]], end: str
) -> None:
    parsed = parse_tags("".join(text + tag.text() for text, tag in parts) + end)
    assert parsed.text == "".join(text for text, _ in parts) + end
    assert parsed.tags == [tag for _, tag in parts]
    assert parsed.problems == []


@given(st.text())
def test_any_text_is_parsed(prompt: str) -> None:
    parsed = parse_tags(prompt)
    if "<lora:" not in prompt and "<lyco:" not in prompt:
        assert parsed.text == prompt


def test_block_weights_multiply_one_module() -> None:
    (tag,) = parse_tags("<lora:cat:1:lbw=OUTALL>").tags
    assert tag.block_multiplier("lora_te_text_model_encoder_layers_0_mlp_fc1", "SD1") == 1.0
    assert tag.block_multiplier("lora_unet_mid_block_attentions_0_proj_in", "SD1") == 0.0
    assert tag.block_multiplier("lora_unet_up_blocks_1_attentions_0_proj_in", "SD1") == 1.0
    assert LoraTag("cat").block_multiplier("lora_unet_mid_block_attentions_0_proj_in", "SD1") == 1.0


def test_a_persons_own_presets_are_known_where_they_are_given() -> None:
    own = {"FACE": [LIST]}
    assert parse_tags("<lora:cat:lbw=FACE>", own).tags[0].lbw == parse_block_weights(LIST)
    assert "'FACE' is no preset" in parse_tags("<lora:cat:lbw=FACE>").problems[0]
    assert parse_tags("<lora:cat:lbw=FACE>", own).tags[0].text() == "<lora:cat:1:lbw=FACE>"
