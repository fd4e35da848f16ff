"""Which number of a list belongs to which module, and what presets stand for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.networks.block_weights import block_name, parse_block_weights, preset_names, read_presets
from lora_ext.protocols import UserError

DATA = Path(__file__).parents[1] / "data"


def _words(text: str) -> list[str]:
    return text.split()


LORA_17 = _words("BASE IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11")
LOCON_26 = _words(
    "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 IN09 IN10 IN11 MID OUT00 OUT01 OUT02 OUT03 "
    "OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"
)
SDXL_LORA_12 = _words("BASE IN04 IN05 IN07 IN08 MID OUT00 OUT01 OUT02 OUT03 OUT04 OUT05")
SDXL_LOCON_20 = _words(
    "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 MID OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08"
)

SD_KEYS = {
    "BASE": "lora_te_text_model_encoder_layers_3_mlp_fc1",
    "IN00": "lora_unet_conv_in",
    "IN01": "lora_unet_down_blocks_0_attentions_0_proj_in",
    "IN02": "lora_unet_down_blocks_0_resnets_1_conv1",
    "IN03": "lora_unet_down_blocks_0_downsamplers_0_conv",
    "IN04": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "IN05": "lora_unet_down_blocks_1_attentions_1_proj_out",
    "IN06": "lora_unet_down_blocks_1_downsamplers_0_conv",
    "IN07": "lora_unet_down_blocks_2_attentions_0_proj_in",
    "IN08": "lora_unet_down_blocks_2_attentions_1_proj_in",
    "IN09": "lora_unet_down_blocks_2_downsamplers_0_conv",
    "IN10": "lora_unet_down_blocks_3_resnets_0_conv1",
    "IN11": "lora_unet_down_blocks_3_resnets_1_conv2",
    "MID": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v",
    "OUT00": "lora_unet_up_blocks_0_resnets_0_conv1",
    "OUT01": "lora_unet_up_blocks_0_resnets_1_conv1",
    "OUT02": "lora_unet_up_blocks_0_upsamplers_0_conv",
    "OUT03": "lora_unet_up_blocks_1_attentions_0_proj_in",
    "OUT04": "lora_unet_up_blocks_1_attentions_1_proj_in",
    "OUT05": "lora_unet_up_blocks_1_attentions_2_proj_in",
    "OUT06": "lora_unet_up_blocks_2_attentions_0_proj_in",
    "OUT07": "lora_unet_up_blocks_2_attentions_1_proj_in",
    "OUT08": "lora_unet_up_blocks_2_attentions_2_proj_in",
    "OUT09": "lora_unet_up_blocks_3_attentions_0_proj_in",
    "OUT10": "lora_unet_up_blocks_3_attentions_1_proj_in",
    "OUT11": "lora_unet_up_blocks_3_attentions_2_proj_in",
}
SDXL_KEYS = {
    "BASE": "lora_te2_text_model_encoder_layers_31_self_attn_q_proj",
    "IN00": "lora_unet_input_blocks_0_0",
    "IN01": "lora_unet_input_blocks_1_0_in_layers_2",
    "IN03": "lora_unet_input_blocks_3_0_op",
    "IN04": "lora_unet_input_blocks_4_1_proj_in",
    "IN05": "lora_unet_input_blocks_5_1_proj_in",
    "IN08": "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q",
    "MID": "lora_unet_middle_block_1_proj_in",
    "OUT00": "lora_unet_output_blocks_0_1_proj_in",
    "OUT05": "lora_unet_output_blocks_5_1_proj_in",
    "OUT08": "lora_unet_output_blocks_8_0_out_layers_3",
}
NO_BLOCK = ("lora_unet_time_embedding_linear_1", "lora_unet_conv_out")


def test_the_block_of_each_module() -> None:
    assert {name: block_name(key, "SD1") for name, key in SD_KEYS.items()} == {name: name for name in SD_KEYS}
    assert {name: block_name(key, "SDXL") for name, key in SDXL_KEYS.items()} == {name: name for name in SDXL_KEYS}
    assert [block_name(key, "SD2") for key in NO_BLOCK] == [None, None]
    assert [block_name(key, "SDXL") for key in ("lora_unet_time_embed_0", "lora_unet_out_2")] == [None, None]


@pytest.mark.parametrize(
    ("file", "architecture", "order"),
    [
        ("sd1_lora", "SD1", LORA_17),
        ("sd1_locon", "SD1", LOCON_26[:1] + LOCON_26[2:]),  # nothing adapts IN00, the first convolution
        ("sd2_lora", "SD2", LORA_17),
        ("sdxl_lora", "SDXL", SDXL_LORA_12),
        ("sdxl_locon", "SDXL", SDXL_LOCON_20[:1] + SDXL_LOCON_20[2:]),
    ],
)
def test_the_lists_have_the_blocks_of_sd_scripts_networks(file: str, architecture: str, order: list[str]) -> None:
    """A LoRA of SD1 touches the 17 blocks of the list of 17, a LoCon of SDXL those of the list of 20, and so on."""
    keys = json.loads(gzip.decompress((DATA / f"{file}.json.gz").read_bytes()))
    names = keys if isinstance(keys, list) else list(keys)
    assert {block_name(name, architecture) for name in names} == set(order)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "keys", "architecture"),
    [(LORA_17, SD_KEYS, "SD1"), (LOCON_26, SD_KEYS, "SD2"), (SDXL_LORA_12, SDXL_KEYS, "SDXL"),
     (SDXL_LOCON_20, SDXL_KEYS, "SDXL")],
)  # fmt: skip
def test_each_number_of_a_list_is_its_blocks(order: list[str], keys: dict[str, str], architecture: str) -> None:
    weights = parse_block_weights(",".join(str(place + 1) for place in range(len(order))))
    for name, key in keys.items():
        expected = order.index(name) + 1.0 if name in order else 0.0
        assert weights.multiplier(key, architecture) == expected, name  # type: ignore[arg-type]


def test_what_belongs_to_no_block_keeps_its_weight() -> None:
    weights = parse_block_weights("NONE")
    assert [weights.multiplier(key, "SD1") for key in NO_BLOCK] == [1.0, 1.0]


LBW_PRESETS = {  # the extension's defaults, in its lists of 17
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": "0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5",
}
SDXL_PRESETS = {  # in lists of 20
    "INS": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,0,0,0,1,1,1,1,1,1,1,0,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": ",".join(["0.5"] * 20),
}


@pytest.mark.parametrize("name", LBW_PRESETS)
def test_presets_do_to_a_lora_what_the_extensions_do(name: str) -> None:
    ours, theirs = parse_block_weights(name), parse_block_weights(LBW_PRESETS[name])
    for block in LORA_17:
        assert ours.multiplier(SD_KEYS[block], "SD1") == theirs.multiplier(SD_KEYS[block], "SD1"), block


@pytest.mark.parametrize("name", SDXL_PRESETS)
def test_presets_on_sdxl(name: str) -> None:
    assert parse_block_weights(name).sdxl == parse_block_weights(SDXL_PRESETS[name]).sdxl


def test_presets_cover_the_blocks_between_those_of_a_lora() -> None:
    weights = parse_block_weights("MIDD")
    acting = [name for name in LOCON_26 if weights.multiplier(SD_KEYS[name], "SD1")]
    assert acting == _words("BASE IN05 IN06 IN07 IN08 IN09 IN10 IN11 MID OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06")


def test_lists_are_for_one_kind_of_checkpoint() -> None:
    with pytest.raises(UserError, match="is not for SDXL checkpoints: those take 12 or 20 numbers"):
        parse_block_weights(",".join("1" * 17)).multiplier(SDXL_KEYS["IN04"], "SDXL")
    with pytest.raises(UserError, match="is not for SD1 checkpoints: those take 17 or 26 numbers"):
        parse_block_weights(",".join("1" * 12)).multiplier(SD_KEYS["IN04"], "SD1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FACE", "'FACE' is no preset; there are NONE, ALL, ALL0.5, INS, IND, INALL, MIDD, OUTD, OUTS, OUTALL"),
        ("", "is no preset"),
        ("1,1", "has 2 numbers; a list has 17 or 26 for SD1 and SD2, 12 or 20 for SDXL"),
        (",".join("1" * 61), "61 numbers, which is for Flux"),
        (",".join(["1"] * 11 + ["x"]), "'x' is no number; write"),
        (",".join(["1"] * 11 + ["R"]), "'R' is no number (random"),
        (",".join(["1"] * 11 + ["nan"]), "'nan' is no number"),
        (",".join(["1"] * 11 + [""]), "'' is no number"),
    ],
)
def test_what_is_wrong_is_told(text: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_block_weights(text)
    assert words in str(raised.value)


OWN = """
My presets, in the extension's format
FACE:1,0,0,0,0,0,0,0,0,0,0,0,0.5,0.5,0.5,0.5,0.5
FACE:1,0,0,0,0,0,0,0,0.25,0.25,0.25,0.25
#OLD:1,1,1,1,1,1,1,1,1,1,1,1
FLUXALL:1,1,1
MIDD : 0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0
"""


def test_a_persons_own_presets() -> None:
    presets = read_presets(OWN)
    assert list(presets) == ["FACE", "MIDD"]
    face = parse_block_weights("FACE", presets)
    assert (face.text, face.multiplier(SD_KEYS["OUT11"], "SD1"), face.multiplier(SD_KEYS["IN01"], "SD1")) == (
        "FACE",
        0.5,
        0.0,
    )
    assert face.multiplier(SDXL_KEYS["OUT05"], "SDXL") == 0.25
    own = parse_block_weights("MIDD", presets)  # before ours of the same name
    assert (own.multiplier(SD_KEYS["MID"], "SD1"), own.multiplier(SD_KEYS["IN08"], "SD1")) == (1.0, 0.0)
    with pytest.raises(UserError, match="not for SDXL"):
        own.multiplier(SDXL_KEYS["MID"], "SDXL")
    assert preset_names(presets)[-1] == "FACE"


@given(st.text())
def test_any_text_is_weights_or_a_message(text: str) -> None:
    try:
        weights = parse_block_weights(text)
    except UserError:
        return
    assert (weights.sd is None) != (weights.sdxl is None) or text.strip() in preset_names()
