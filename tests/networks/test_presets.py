"""Presets against the lists that LyCORIS makes of them (3.4.0's, where 4.1.3 is wrong); filters; presets in files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.checkpoint.text.openclip import SD2_TEXT, SDXL_TEXT_2, OpenClipText, OpenClipTextEncoder
from lora_ext.config.groups import NetworkSettings
from lora_ext.config.groups.network import PRESETS
from lora_ext.host.standalone.unet import SD1_UNET, SD2_UNET, SDXL_UNET, UNet, UNetConfig
from lora_ext.networks.forms import AdapterForm
from lora_ext.networks.presets import BUILTIN, filter_lines
from lora_ext.networks.targets import Target, described, find_targets, select_targets
from lora_ext.protocols import UserError

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, Checkpoint]:
    """The three kinds in full size, without memory."""
    from transformers import CLIPTextConfig, CLIPTextModel

    def checkpoint(architecture: Architecture, config: UNetConfig, encoders: list[Any]) -> Checkpoint:
        return Checkpoint(
            UNet(config), nn.Identity(), encoders, NoiseSchedule.scaled_linear(), architecture, "epsilon", "test",
            None, "",
        )  # fmt: skip

    with torch.device("meta"):
        clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        second = OpenClipTextEncoder(OpenClipText(SDXL_TEXT_2), "lora_te2", pools=True)
        return {
            "sd1": checkpoint("SD1", SD1_UNET, [HFClipTextEncoder(CLIPTextModel(clip))]),
            "sd2": checkpoint("SD2", SD2_UNET, [OpenClipTextEncoder(OpenClipText(SD2_TEXT))]),
            "sdxl": checkpoint("SDXL", SDXL_UNET, [HFClipTextEncoder(CLIPTextModel(clip), "lora_te1"), second]),
        }


def listed(kind: str, preset: str) -> list[str]:
    with gzip.open(DATA / f"{kind}_lycoris_presets.json.gz", "rt", encoding="utf-8") as file:
        content = json.load(file)
    number = str(content["presets"].index(preset))
    return [key for key, numbers in content["keys"].items() if number in numbers]


def keys(checkpoint: Checkpoint, **settings: Any) -> list[str]:
    return [target.key for target in find_targets(checkpoint, NetworkSettings(**settings))]


@pytest.mark.parametrize(
    ("kind", "preset", "count"),
    [
        ("sd1", "full", 354), ("sd1", "full-lin", 302), ("sd1", "attn-mlp", 264), ("sd1", "attn-only", 176),
        ("sd1", "unet-only", 282), ("sd1", "unet-transformer-only", 192), ("sd1", "unet-convblock-only", 88),
        ("sd1", "ia3", 116), ("sd1", "full+train_norm", 462), ("sdxl", "full", 1052), ("sdxl", "full-lin", 1014),
        ("sdxl", "attn-mlp", 986), ("sdxl", "attn-only", 736), ("sdxl", "unet-only", 788),
        ("sdxl", "unet-transformer-only", 722), ("sdxl", "unet-convblock-only", 66), ("sdxl", "ia3", 482),
        ("sdxl", "full+train_norm", 1307),
    ],
)  # fmt: skip
def test_presets_adapt_what_lycoris_adapts(
    checkpoints: dict[str, Checkpoint], kind: str, preset: str, count: int
) -> None:
    name, _, norms = preset.partition("+")
    found = keys(checkpoints[kind], network_preset=name, train_norm=bool(norms))
    assert len(found) == count and found == sorted(listed(kind, preset))


@pytest.mark.parametrize(
    ("name", "conv_dim", "count"),
    [("sd1_lora", None, 264), ("sd1_locon", 4, 350), ("sd2_lora", None, 330), ("sd2_locon", 4, 416),
     ("sdxl_lora", None, 986), ("sdxl_locon", 4, 1052)],
)  # fmt: skip
def test_the_default_adapts_what_sd_scripts_adapts(
    checkpoints: dict[str, Checkpoint], name: str, conv_dim: int | None, count: int
) -> None:
    with gzip.open(DATA / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        expected = sorted(json.load(file))
    found = keys(checkpoints[name.partition("_")[0]], conv_dim=conv_dim)
    assert len(found) == count and found == expected


def test_every_preset_that_is_offered_is_there() -> None:
    assert set(BUILTIN) == set(PRESETS)


def by_key(checkpoint: Checkpoint, **settings: Any) -> dict[str, Target]:
    return {target.key: target for target in find_targets(checkpoint, NetworkSettings(**settings))}


def test_convolutions_of_lycoris_presets_have_the_linear_layers_rank(checkpoints: dict[str, Checkpoint]) -> None:
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    plain = by_key(checkpoints["sd1"], network_preset="full", network_dim=8, network_alpha=4.0)[conv]
    own = by_key(checkpoints["sd1"], network_preset="full", network_dim=8, conv_dim=2, conv_alpha=1.0)[conv]
    assert (plain.rank, plain.alpha, own.rank, own.alpha) == (8, 4.0, 2, 1.0)


def test_ia3_scales_inputs_where_the_paper_does(checkpoints: dict[str, Checkpoint]) -> None:
    targets = by_key(checkpoints["sd1"], network_preset="ia3", network_algorithm="ia3")
    on_input = {key for key, target in targets.items() if target.form.on_input}
    assert on_input == {key for key in targets if key.endswith(("_ff_net_2", "_mlp_fc2"))} and len(on_input) == 28


def test_filters_leave_modules_out_and_say_what_they_matched(checkpoints: dict[str, Checkpoint]) -> None:
    settings = NetworkSettings(
        network_include="attn2\ndown_blocks.0.*", network_exclude="re:to_[kv]$\nnothing_like_it", network_dim=4
    )
    selection = select_targets(checkpoints["sd1"], settings)
    found = [target.key for target in selection.targets]
    assert found and all("attn2" in key or "down_blocks_0_" in key for key in found)
    assert not [key for key in found if key.endswith(("to_k", "to_v"))]
    assert selection.notes == [
        "network_include: attn2 matches 64 modules.",
        "network_include: down_blocks.0.* matches 24 modules.",
        "network_exclude: re:to_[kv]$ matches 64 modules.",
    ]
    assert selection.warnings == ["network_exclude: nothing_like_it matches none of the 264 modules that there are."]
    with pytest.raises(UserError, match="is no regular expression"):
        select_targets(checkpoints["sd1"], NetworkSettings(network_include="re:("))
    assert filter_lines("a, b\n re:x{1,2}\n\n") == ["a", "b", "re:x{1,2}"]


def test_what_is_adapted_is_told_in_a_sentence(checkpoints: dict[str, Checkpoint]) -> None:
    targets = find_targets(checkpoints["sdxl"], NetworkSettings(network_algorithm="loha", network_dim=4))
    assert described(targets) == (
        "Adapts 986 modules: 72 in the text encoder 1, 192 in the text encoder 2, 722 in the U-Net (loha rank 4)."
    )
    some = find_targets(checkpoints["sd1"], NetworkSettings(train_norm=True, network_train_unet_only=True))
    assert described(some) == "Adapts 256 modules: 256 in the U-Net (lora rank 32: 192, norm: 64)."


OWN = """
enable_conv = true
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "HunYuanDiTBlock"]
unet_target_name = ["conv_in"]
text_encoder_target_module = ["CLIPAttention"]
text_encoder_target_name = []
exclude_name = ["mid_block"]

[module_algo_map.Attention]
algo = "lokr"
factor = 8
dim = 10000
full_matrix = true

[module_algo_map.ResnetBlock2D]
algo = "locon"
dim = 6
alpha = 3

[name_algo_map."ff.net.2"]
algo = "glora"
dim = 2
"""


def test_a_preset_of_ones_own_maps_parts_and_names_to_algorithms(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN, encoding="utf-8")
    targets = by_key(checkpoints["sd1"], network_preset=str(path), network_dim=16, network_alpha=8.0)
    block = "lora_unet_down_blocks_0_attentions_0_"
    kinds = {key: (each.form.algorithm, each.rank, each.alpha) for key, each in targets.items()}
    assert kinds[f"{block}proj_in"] == ("lora", 16, 8.0)
    assert kinds[f"{block}transformer_blocks_0_attn1_to_q"] == ("lokr", 10000, 8.0)
    assert targets[f"{block}transformer_blocks_0_attn1_to_q"].form.factor == 8
    assert kinds[f"{block}transformer_blocks_0_ff_net_2"] == ("glora", 2, 8.0)
    assert kinds["lora_unet_down_blocks_0_resnets_0_conv1"] == ("lora", 6, 3.0)
    assert kinds["lora_unet_conv_in"] == ("lora", 16, 8.0)
    assert kinds["lora_te_text_model_encoder_layers_0_self_attn_q_proj"] == ("lora", 16, 8.0)  # that is CLIPAttention
    assert not [key for key in targets if "mid_block" in key or "mlp" in key or "samplers" in key or "time_emb" in key
                and "resnets" not in key]  # fmt: skip


def test_other_algorithms_in_a_preset_take_their_own_settings(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[module_algo_map.CLIPAttention]\nalgo = "lokr"\n[name_algo_map.conv_in]\nalgo = "diag-oft"\n')
    targets = by_key(checkpoints["sd1"], network_preset=str(path), factor=8, constraint=0.5, full_matrix=True)
    text = targets["lora_te_text_model_encoder_layers_0_self_attn_q_proj"].form
    assert text == AdapterForm("lokr", factor=8, full_matrix=True)
    assert targets["lora_unet_conv_in"].form == AdapterForm("diag-oft", constraint=0.5)
    assert targets["lora_te_text_model_encoder_layers_0_mlp_fc1"].form == AdapterForm()
    assert targets["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"].form == AdapterForm()


def test_patterns_of_shells_are_whole_names(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all are left out by block or by name"):
        keys(checkpoints["sdxl"], network_include="attn1*")
    path = tmp_path / "ia3.toml"
    path.write_text(
        'use_fnmatch = true\nunet_target_module = []\nunet_target_name = ["*to_k", "*to_v", "*ff.net.2"]\n'
        'text_encoder_target_module = []\ntext_encoder_target_name = ["*k_proj", "*v_proj", "*mlp.fc2"]\n',
        encoding="utf-8",
    )
    assert keys(checkpoints["sdxl"], network_preset=str(path)) == sorted(listed("sdxl", "ia3"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unet_targets = []", "unet_targets: allowed are enable_conv, exclude_name"),
        ("unet_target_module = 3", "unet_target_module = 3: allowed is a list of texts"),
        ('[name_algo_map.x]\nalgo = "abba"', r"name_algo_map.x: algo = 'abba': allowed are lora, dylora"),
        ("[name_algo_map.x]\nranks = 3", "name_algo_map.x: ranks is unknown; allowed are algo, alpha"),
        ("[name_algo_map.x]\ndim = 0", "name_algo_map.x: dim = 0: allowed is a whole number from 1 to 100000"),
        ('[name_algo_map.x]\nalpha = "1"', "name_algo_map.x: alpha = '1': allowed is a number from 0 to 100000"),
        ("[name_algo_map.x]\nalpha = nan", "name_algo_map.x: alpha = nan: allowed is a number from 0 to 100000"),
        ("[name_algo_map.x]\nfactor = 1.5", "name_algo_map.x: factor = 1.5: allowed is a whole number from -1 to"),
        ("[name_algo_map.x]\nblock_size = 0", "name_algo_map.x: block_size = 0: allowed is a whole number from 1"),
        ('[name_algo_map.x]\nuse_tucker = "no"', "name_algo_map.x: use_tucker = 'no': allowed is true or false"),
        ("module_algo_map = 3", "module_algo_map: allowed is a table of tables"),
        ("[[", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_preset_of_ones_own_is_said(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        keys(checkpoints["sd1"], network_preset=str(path))
    with pytest.raises(UserError, match="allowed are attn-mlp, full, .* and the path of a .toml file"):
        keys(checkpoints["sd1"], network_preset="ful")
