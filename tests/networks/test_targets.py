"""The set of modules that plain LoRA adapts, against sd-scripts' list (tests/data)."""

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
from lora_ext.config.groups import NetworkSettings
from lora_ext.host.standalone.unet import SD1_UNET, SD2_UNET, SDXL_UNET, UNet, UNetConfig
from lora_ext.networks.blocks import adapted_blocks, block_count
from lora_ext.networks.network import Network
from lora_ext.networks.targets import find_targets
from lora_ext.protocols import UserError

DATA = Path(__file__).parent.parent / "data"
UNET_ONLY = NetworkSettings(network_train_unet_only=True)


def stored_list(name: str, prefix: str = "lora_") -> dict[str, dict[str, Any]]:
    with gzip.open(DATA / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        entries: dict[str, dict[str, Any]] = json.load(file)
    return {key: entry for key, entry in entries.items() if key.startswith(prefix)}


def checkpoint_of(unet: nn.Module, architecture: Architecture, encoders: list[Any]) -> Checkpoint:
    return Checkpoint(
        unet, nn.Identity(), encoders, NoiseSchedule.scaled_linear(), architecture, "epsilon", "test", None, ""
    )


def full_size_sd1() -> Checkpoint:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        return checkpoint_of(UNet(SD1_UNET), "SD1", [HFClipTextEncoder(CLIPTextModel(config))])


def test_sd1_has_the_keys_and_shapes_of_the_list_in_file_order() -> None:
    expected = stored_list("sd1_lora")
    targets = find_targets(full_size_sd1(), NetworkSettings(network_dim=8, network_alpha=4))
    assert [target.key for target in targets] == sorted(expected)
    assert sum(target.group == "unet" for target in targets) == 192
    assert sum(target.group == "text_encoder" for target in targets) == 72
    assert {(target.rank, target.alpha) for target in targets} == {(8, 4.0)}

    network = Network([t for t in targets if t.module.weight.numel() < 2**20][:40], torch.Generator())  # the small ones
    for key, adapter in network.adapters.items():
        assert list(adapter.lora_down.weight.shape[1:]) == expected[key]["in"], key
        assert [adapter.lora_up.weight.shape[0], *adapter.lora_up.weight.shape[2:]] == expected[key]["out"], key
    kinds = {key: "conv" if isinstance(t.module, nn.Conv2d) else "linear" for t in targets for key in [t.key]}
    assert kinds == {key: entry["type"] for key, entry in expected.items()}


@pytest.mark.parametrize(
    ("name", "config", "architecture", "count"), [("sd2", SD2_UNET, "SD2", 192), ("sdxl", SDXL_UNET, "SDXL", 722)]
)
def test_other_unets_have_the_keys_of_the_lists(
    name: str, config: UNetConfig, architecture: Architecture, count: int
) -> None:
    with torch.device("meta"):
        targets = find_targets(checkpoint_of(UNet(config), architecture, []), UNET_ONLY)
    assert len(targets) == count
    assert [target.key for target in targets] == sorted(stored_list(f"{name}_lora", "lora_unet"))


@pytest.mark.parametrize(
    ("name", "config", "architecture", "count"),
    [("sd1", SD1_UNET, "SD1", 278), ("sd2", SD2_UNET, "SD2", 278), ("sdxl", SDXL_UNET, "SDXL", 788)],
)
def test_locon_has_the_keys_of_the_lists(name: str, config: UNetConfig, architecture: Architecture, count: int) -> None:
    with torch.device("meta"):
        checkpoint = checkpoint_of(UNet(config), architecture, [])
    settings = NetworkSettings(network_dim=8, network_alpha=4, conv_dim=6, conv_alpha=3, network_train_unet_only=True)
    targets = find_targets(checkpoint, settings)
    assert len(targets) == count
    assert [target.key for target in targets] == sorted(stored_list(f"{name}_locon", "lora_unet"))
    wide = {target.key for target in targets if getattr(target.module, "kernel_size", None) == (3, 3)}
    assert {(target.rank, target.alpha) for target in targets if target.key in wide} == {(6, 3.0)}
    assert {(target.rank, target.alpha) for target in targets if target.key not in wide} == {(8, 4.0)}
    if name != "sd2":  # no list of SD2's; its blocks are SD1's
        blocks = stored_list(f"block_index_{name}")
        assert {target.key: target.block for target in targets} == blocks
        plain = {target.block for target in find_targets(checkpoint, UNET_ONLY)}
        assert plain == adapted_blocks(block_count(architecture), with_convolutions=False)
        assert set(blocks.values()) == adapted_blocks(block_count(architecture), with_convolutions=True)


def test_an_alpha_of_the_convolutions_is_1_unless_set(checkpoint: Checkpoint) -> None:
    targets = find_targets(checkpoint, NetworkSettings(conv_dim=4, network_dim=4, network_alpha=2))
    assert {target.alpha for target in targets if getattr(target.module, "kernel_size", None) == (3, 3)} == {1.0}


def listed(values: dict[int, float], others: float, count: int = 25) -> str:
    return ",".join(str(values.get(number, others)) for number in range(count))


def test_ranks_and_alphas_by_block(checkpoint: Checkpoint) -> None:
    settings = NetworkSettings(
        network_dim=4, network_alpha=2, block_dims=listed({4: 8, 5: 0}, 6), block_alphas=listed({4: 0}, 3),
        conv_block_dims=listed({4: 2}, 0), conv_block_alphas=listed({4: 5}, 1),
    )  # fmt: skip
    targets = find_targets(checkpoint, settings)
    unet = [target for target in targets if target.group == "unet"]
    wide = [target for target in unet if getattr(target.module, "kernel_size", None) == (3, 3)]
    assert {(target.block, target.rank, target.alpha) for target in wide} == {(4, 2, 5.0)}
    rest = {(target.block == 4, target.rank, target.alpha) for target in unet if target not in wide}
    assert rest == {(True, 8, 8.0), (False, 6, 3.0)}  # an alpha of 0 is the rank
    assert 5 not in {target.block for target in unet}
    assert {(target.rank, target.alpha) for target in targets if target.group == "text_encoder"} == {(4, 2.0)}


def test_blocks_of_rate_0_are_left_out(checkpoint: Checkpoint) -> None:
    rates = [0.0] * 25
    rates[12] = 0.5
    unet = [target for target in find_targets(checkpoint, UNET_ONLY, rates) if target.group == "unet"]
    assert unet and {target.block for target in unet} == {12}
    with pytest.raises(UserError, match="left out by block"):
        find_targets(checkpoint, UNET_ONLY, [0.0] * 25)


@pytest.mark.parametrize(
    ("text", "words"),
    [("1,2", "block_dims = '1,2' has 2 numbers: SD1 checkpoints take 25"), ("a", "is not a list of numbers")],
)
def test_wrong_numbers_by_block_are_refused(text: str, words: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match=words):
        find_targets(checkpoint, NetworkSettings(block_dims=text))


def test_one_part_alone(checkpoint: Checkpoint) -> None:
    unet = find_targets(checkpoint, UNET_ONLY)
    text = find_targets(checkpoint, NetworkSettings(network_train_text_encoder_only=True))
    both = find_targets(checkpoint, NetworkSettings())
    assert {target.group for target in unet} == {"unet"}
    assert {target.group for target in text} == {"text_encoder"}
    assert (len(unet), len(text), len(both)) == (192, 12, 204)


def test_alpha_0_is_the_rank(checkpoint: Checkpoint) -> None:
    targets = find_targets(checkpoint, NetworkSettings(network_dim=6, network_alpha=0))
    assert {target.alpha for target in targets} == {6.0}


def test_a_checkpoint_without_targets_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="none of its modules"):
        find_targets(checkpoint_of(UNet(UNetConfig(
            model_channels=32, channel_mult=(1,), transformer_depth=(0,), transformer_depth_middle=0, num_heads=1
        )), "SD1", []), UNET_ONLY)  # fmt: skip
