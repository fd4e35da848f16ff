"""Networks with weights: the words that people write, and what networks are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ext.merge.inputs import base_of, common_base, weighted_networks
from lora_ext.merge.work import Work
from lora_ext.networks.file import write_network
from lora_ext.networks.weight_delta import module_deltas
from lora_ext.protocols import UserError

SD1_KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SDXL_KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
TEXT_KEY = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def factors(outputs: int = 6, inputs: int = 8, rank: int = 2) -> dict[str, Tensor]:
    return {
        "lora_up.weight": torch.ones(outputs, rank),
        "lora_down.weight": torch.ones(rank, inputs),
        "alpha": torch.tensor(float(rank)),
    }


def written(path: Path, *keys: str, inputs: int = 8, metadata: dict[str, str] | None = None) -> Path:
    tensors = {f"{key}.{suffix}": tensor for key in keys for suffix, tensor in factors(inputs=inputs).items()}
    write_network(path, tensors, metadata or {}, "float")
    return path


def by_windows_path(folder: Path) -> Work:
    """A program that finds one network by the words `C:\\nets\\a.safetensors` or `a`."""
    path = written(folder / "a.safetensors", SD1_KEY, TEXT_KEY)
    names = {"C:\\nets\\a.safetensors": path, "a": path}
    return Work(find_network=names.get)


@pytest.mark.parametrize(
    ("line", "weight"),
    [
        ("a:0.7", 0.7),
        ("a", 1.0),
        ("C:\\nets\\a.safetensors:-0.3", -0.3),
        ("C:\\nets\\a.safetensors", 1.0),
        (" a : 2 ", 2),
    ],
)
def test_the_last_colon_that_a_number_follows_gives_the_weight(tmp_path: Path, line: str, weight: float) -> None:
    (network,) = weighted_networks(by_windows_path(tmp_path), line)
    assert network.name == "a"
    assert (network.weight, network.te_weight, network.blocks) == (weight, weight, None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no network is given"),
        (" \n ", "no network is given"),
        ("b:0.7", "'b': there is no such network"),
        ("a:much", "'much' is no weight; write a number after the colon, like a:0.7"),
        ("a:nan", "'nan' is no weight"),
        ("a:inf", "'inf' is no weight"),
        ("a:0,7", "'0,7' is no weight"),
        ("D:\\nets\\b.safetensors", "there is no such network"),
        (":0.7", "':0.7': there is no such network"),
    ],
)
def test_what_is_no_network_with_a_weight_is_told(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        weighted_networks(by_windows_path(tmp_path), line)
    assert said in str(error.value)


def test_text_encoder_weights_and_blocks_are_one_for_all_or_one_for_each(tmp_path: Path) -> None:
    work = by_windows_path(tmp_path)
    one, two = weighted_networks(work, "a:0.5\na:-2", "0.25", "MIDD")
    assert (one.te_weight, two.te_weight) == (0.25, 0.25)
    assert (one.multiplier(TEXT_KEY, "SD1"), one.multiplier(SD1_KEY, "SD1")) == (0.25, 0.0)
    one, two = weighted_networks(work, "a:0.5\na:-2", "same\n3", "ALL0.5\n" + ",".join(["1", *["4"] * 16]))
    assert (one.te_weight, two.te_weight) == (0.5, 3.0)
    assert (one.multiplier(TEXT_KEY, "SD1"), one.multiplier(SD1_KEY, "SD1")) == (0.25, 0.25)
    assert (two.multiplier(TEXT_KEY, "SD1"), two.multiplier(SD1_KEY, "SD1")) == (3.0, -8.0)


@pytest.mark.parametrize(
    ("te_weight", "lbw", "said"),
    [
        ("1\n2\n3", "", "te_weight has 3 lines for 2 networks"),
        ("a", "", "te_weight = 'a' is no number"),
        ("", "ALL\nALL\nALL", "lbw has 3 lines for 2 networks"),
        ("", "1,2,3", "lbw has 3 numbers"),
    ],
)
def test_weights_that_do_not_go_with_the_networks_are_told(tmp_path: Path, te_weight: str, lbw: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        weighted_networks(by_windows_path(tmp_path), "a:1\na:2", te_weight, lbw)


@pytest.mark.parametrize(
    ("keys", "inputs", "metadata", "base"),
    [
        ([SDXL_KEY], 2048, {}, "SDXL"),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1"], 8, {}, "SDXL"),
        ([SD1_KEY], 768, {}, "SD1"),
        ([SD1_KEY], 1024, {}, "SD2"),
        ([SD1_KEY], 8, {}, "SD1 or SD2"),
        ([SD1_KEY], 8, {"ss_base_model_version": "sd_v2_v"}, "SD2"),
        ([SD1_KEY], 8, {"ss_v2": "True"}, "SD2"),
        ([SD1_KEY], 8, {"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
        (["lora_unet_double_blocks_0_img_mlp_0"], 8, {"ss_base_model_version": "flux1"}, "flux1"),
        ([TEXT_KEY], 8, {}, ""),
    ],
)
def test_what_a_network_is_for(keys: list[str], inputs: int, metadata: dict[str, str], base: str) -> None:
    deltas = module_deltas({key: factors(inputs=inputs) for key in keys})
    assert base_of(deltas, metadata) == base


def test_networks_for_different_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path / "old.safetensors", SD1_KEY, inputs=768)
    written(tmp_path / "either.safetensors", SD1_KEY)
    written(tmp_path / "text.safetensors", TEXT_KEY)
    written(tmp_path / "large.safetensors", SDXL_KEY, inputs=2048)

    def base(*names: str) -> str:
        return common_base(weighted_networks(Work(), "\n".join(str(tmp_path / f"{n}.safetensors") for n in names)))

    assert base("text", "either", "old") == "SD1"
    assert base("text", "either") == "SD1 or SD2"
    with pytest.raises(UserError, match="old is for SD1 checkpoints, and large for SDXL"):
        base("text", "old", "large")
    with pytest.raises(UserError, match="either is for SD1 or SD2 checkpoints, and large for SDXL"):
        base("either", "large")


def test_a_damaged_file_and_one_without_a_network_are_named(tmp_path: Path) -> None:
    write_network(tmp_path / "none.safetensors", {"model.weight": torch.ones(2)}, {}, "float")
    write_network(tmp_path / "nan.safetensors", {f"{SD1_KEY}.diff": torch.full((2, 2), torch.nan)}, {}, "float")
    with pytest.raises(UserError, match=r"none\.safetensors holds no network"):
        weighted_networks(Work(), str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match=rf"nan\.safetensors: {SD1_KEY}: diff has values that are not numbers"):
        weighted_networks(Work(), str(tmp_path / "nan.safetensors"))


def test_what_is_in_no_module_is_told(tmp_path: Path) -> None:
    tensors = {f"{SD1_KEY}.{suffix}": tensor for suffix, tensor in factors().items()}
    tensors |= {"bundle_emb.cat.string_to_param.*": torch.ones(1, 8), "stranger": torch.ones(1)}
    write_network(tmp_path / "a.safetensors", tensors, {}, "float")
    (network,) = weighted_networks(Work(), str(tmp_path / "a.safetensors"))
    assert network.left_out() == [
        "a: the embeddings in it (cat) are left out; they work with the file itself",
        "a: 1 of its tensors are of no known network and are left out (stranger)",
    ]
