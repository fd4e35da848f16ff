"""Keys and paths against the lists made with sd-scripts and the WebUI (tests/data)."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.checkpoint.module_names import text_module_names, text_modules, unet_module_names
from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.checkpoint.text.openclip import (
    SD2_TEXT,
    SDXL_TEXT_2,
    OpenClipConfig,
    OpenClipText,
    OpenClipTextEncoder,
)
from lora_ext.host.standalone.unet import SD1_UNET, SD2_UNET, SDXL_UNET, UNet, UNetConfig

DATA = Path(__file__).parent.parent / "data"
UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."


def name_map(name: str, prefix: str) -> dict[str, str]:
    with gzip.open(DATA / f"name_map_{name}.json.gz", "rt", encoding="utf-8") as file:
        entries: dict[str, str] = json.load(file)
    return {key: path.removeprefix(prefix) for key, path in entries.items() if path.startswith(prefix)}


def names_of(config: UNetConfig, architecture: Architecture) -> dict[str, str]:
    with torch.device("meta"):
        return unet_module_names(UNet(config), architecture)


def test_sd1_unet_names_are_the_list() -> None:
    expected = name_map("sd1", UNET)
    assert len(expected) == 390
    assert names_of(SD1_UNET, "SD1") == expected


def test_sd2_unet_names_hold_the_list() -> None:
    expected, names = name_map("sd2", UNET), names_of(SD2_UNET, "SD2")
    assert len(expected) == 278
    assert {key: names.get(key) for key in expected} == expected
    assert names.keys() == name_map("sd1", UNET).keys()


def test_sdxl_unet_names_hold_the_list_and_the_ends_of_the_network() -> None:
    expected, names = name_map("sdxl", UNET), names_of(SDXL_UNET, "SDXL")
    assert len(expected) == 1043
    assert {key: names.get(key) for key in expected} == expected
    assert {path for key, path in names.items() if key not in expected} == {
        "time_embed.0",
        "time_embed.2",
        "label_emb.0.0",
        "label_emb.0.2",
        "input_blocks.0.0",
        "out.0",
        "out.2",
    }


def test_text_names_are_the_list() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        encoder = HFClipTextEncoder(CLIPTextModel(config))
    expected = name_map("sd1", TEXT)
    assert len(expected) == 72
    assert text_module_names(encoder) == expected


@pytest.mark.parametrize(
    ("name", "prefix", "config", "count"),
    [("sd2", "cond_stage_model.model.", SD2_TEXT, 138), ("sdxl", "conditioner.embedders.1.model.", SDXL_TEXT_2, 192)],
)
def test_openclip_names_are_the_list(name: str, prefix: str, config: OpenClipConfig, count: int) -> None:
    pools = name == "sdxl"
    with torch.device("meta"):
        encoder = OpenClipTextEncoder(OpenClipText(config), "lora_te2" if pools else "lora_te", pools=pools)
    expected = {
        key: re.sub(r"in_proj_weight\[([qkv])]", r"\1_proj", path) for key, path in name_map(name, prefix).items()
    }
    assert len(expected) == count
    assert text_module_names(encoder) == expected
    modules = text_modules(encoder)
    assert modules.keys() == expected.keys() and all(isinstance(each, torch.nn.Linear) for each in modules.values())
    assert (
        modules[f"{encoder.key_prefix}_text_model_encoder_layers_0_self_attn_v_proj"]
        is (encoder.projections["transformer.resblocks.0.attn.v_proj"])
    )


@pytest.mark.parametrize("levels", [2, 3])
def test_small_unets_have_names_of_their_own_block_counts(levels: int) -> None:
    depths = (1,) * (levels - 1) + (0,)
    config = UNetConfig(
        model_channels=32, channel_mult=(1,) * levels, transformer_depth=depths, num_res_blocks=1, num_heads=1,
        context_dim=8,
    )  # fmt: skip
    unet = UNet(config)
    names = unet_module_names(unet, "SD1")
    assert names["lora_unet_down_blocks_0_attentions_0_proj_in"] == "input_blocks.1.1.proj_in"
    assert names["lora_unet_down_blocks_0_downsamplers_0_conv"] == "input_blocks.2.0.op"
    assert names["lora_unet_down_blocks_1_resnets_0_conv1"] == "input_blocks.3.0.in_layers.2"
    assert names["lora_unet_up_blocks_0_upsamplers_0_conv"] == "output_blocks.1.1.conv"
    assert names["lora_unet_up_blocks_1_attentions_0_proj_in"] == "output_blocks.2.1.proj_in"
    assert len(set(names.values())) == len(names)
    weighted = {path for path, module in unet.named_modules() if "weight" in module._parameters}
    assert weighted - set(names.values()) == {"out.0"}
