"""Networks that a run begins with, and networks that are part of its base."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.config.run_rules import base_networks
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.networks.file import read_network, write_network
from lora_ext.networks.network import Network
from lora_ext.networks.targets import find_targets
from lora_ext.networks.weight_delta import weight_delta
from lora_ext.protocols import Control, Events, MessageLevel, StepReport, UserError
from lora_ext.training.first_network import first_network
from lora_ext.training.first_weights import merged, read_base_networks
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


class Listener(Events):
    """Keeps messages, and stops the run before its first step."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.messages: list[str] = []

    def step(self, report: StepReport) -> None:
        self.control.stop()

    def message(self, level: MessageLevel, text: str) -> None:
        self.messages.append(text)


def write_lora(path: Path, checkpoint: Checkpoint, rank: int, seed: int, **values: Any) -> Path:
    """A LoRA whose up weights are not zero, with alpha 3."""
    settings = make_config({"network_dim": rank, "network_alpha": 3.0, **values}).network
    generator = torch.Generator().manual_seed(seed)
    network = Network(find_targets(checkpoint, settings), generator)
    for name, parameter in network.named_parameters():
        if "lora_up" in name:
            parameter.data.normal_(std=0.02, generator=generator)
    write_network(path, network.state_dict_for_file(), {}, "float")
    return path


def train_one_step(
    checkpoint: Checkpoint, config: TrainConfig, folder: Path, networks: tuple[Path, ...] = ()
) -> tuple[Path, list[str]]:
    control = Control()
    events = Listener(control)
    result = Trainer(checkpoint, config, folder / "out", events, control, network_folders=networks).run()
    return result.files[-1], events.messages


@pytest.mark.parametrize("by_name", [False, True])
def test_a_run_begins_with_a_file(
    by_name: bool, checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    first = write_lora(tmp_path / "first.safetensors", checkpoint, 4, 1)
    config = small_config(network_weights="first" if by_name else str(first), learning_rate=1e-9)
    written, _ = train_one_step(checkpoint, config, tmp_path, (tmp_path,))
    before, after = read_network(first).tensors, read_network(written).tensors
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-7)
    assert float(after[next(name for name in after if name.endswith("alpha"))]) == 3.0


def test_an_average_begins_with_the_file(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    first = write_lora(tmp_path / "first.safetensors", checkpoint, 4, 1)
    config = small_config(network_weights=str(first), learning_rate=1e-9, ema_decay=0.9)
    written, _ = train_one_step(checkpoint, config, tmp_path)
    before, after = read_network(first).tensors, read_network(written).tensors
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-7)


def test_another_rank_is_refused_or_taken_from_the_file(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    first = write_lora(tmp_path / "first.safetensors", checkpoint, 6, 1, network_train_unet_only=True)
    config = small_config(network_weights=str(first))
    with pytest.raises(UserError, match=r"the file has rank 6 instead of 4; switch dim_from_weights on"):
        train_one_step(checkpoint, config, tmp_path)
    from_file = replace(config, network=replace(config.network, dim_from_weights=True))
    written, _ = train_one_step(checkpoint, from_file, tmp_path)
    shapes = [{name: tensor.shape for name, tensor in read_network(path).tensors.items()} for path in (first, written)]
    assert shapes[0] == shapes[1]


def test_what_a_file_has_and_lacks_is_said(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    unet = write_lora(tmp_path / "unet.safetensors", checkpoint, 4, 1, network_train_unet_only=True)
    both = write_lora(tmp_path / "both.safetensors", checkpoint, 4, 1)
    _, messages = train_one_step(checkpoint, small_config(network_weights=str(unet)), tmp_path)
    assert any("unet.safetensors has nothing for" in text and "begin anew" in text for text in messages)
    assert "unet.safetensors has alphas of its own, which are kept (3 instead of 4)" in messages
    config = small_config(network_weights=str(both), network_train_unet_only=True)
    _, messages = train_one_step(checkpoint, config, tmp_path)
    assert any("of both.safetensors are left out: their part is not trained" in text for text in messages)
    with pytest.raises(UserError, match="network_weights = nowhere: there is no such file"):
        train_one_step(checkpoint, small_config(network_weights="nowhere"), tmp_path)
    odd = tmp_path / "odd.safetensors"
    write_network(odd, {"lora_unet_x.hada_w1_a": torch.zeros(2)}, {}, "float")
    with pytest.raises(UserError, match=r"lora_unet_x has hada_w1_a, which is no kind of network"):
        train_one_step(checkpoint, small_config(network_weights=str(odd)), tmp_path)
    write_network(odd, {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, {}, "float")
    with pytest.raises(UserError, match=r"lora_unet_x lacks lora_down.weight: the file is damaged"):
        train_one_step(checkpoint, small_config(network_weights=str(odd)), tmp_path)


def test_merged_networks_are_in_the_weights_and_gone_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    paths = [write_lora(tmp_path / f"{seed}.safetensors", checkpoint, 2, seed) for seed in (1, 2)]
    settings = make_config({
        "base_weights": f"{paths[0]}\n2", "base_weights_multiplier": "0.5, -2",
    }).network  # fmt: skip
    networks = read_base_networks(settings, [tmp_path])
    assert [(each.file.path.name, each.multiplier) for each in networks] == [
        ("1.safetensors", 0.5),
        ("2.safetensors", -2),
    ]
    weights = {key: view.detach() for key, view in checkpoint_weights(checkpoint).items()}
    before = {key: weight.clone() for key, weight in weights.items()}
    files = [read_network(path).modules for path in paths]
    with merged(checkpoint, networks):
        for key in files[0]:
            change = 0.5 * weight_delta(files[0][key]) - 2.0 * weight_delta(files[1][key])
            torch.testing.assert_close(weights[key], before[key] + change.reshape(before[key].shape))
    assert all(torch.equal(weight, before[key]) for key, weight in weights.items())


def test_a_run_trains_on_the_merged_base_and_says_so(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    base = write_lora(tmp_path / "base.safetensors", checkpoint, 2, 1)
    plain = Trainer(checkpoint, small_config(max_train_epochs=1), tmp_path / "a").run()
    none = small_config(max_train_epochs=1, base_weights=str(base), base_weights_multiplier="0")
    assert Trainer(checkpoint, none, tmp_path / "b").run().losses == plain.losses
    config = small_config(max_train_epochs=1, base_weights="base", save_state_on_train_end=True)
    result = Trainer(checkpoint, config, tmp_path / "c", network_folders=[tmp_path]).run()
    assert result.losses[0] != plain.losses[0]
    told = json.loads(read_network(result.files[-1]).metadata["lw_base_networks"])
    assert [entry[:2] for entry in told] == [["base.safetensors", 1.0]]
    without = small_config(max_train_epochs=1, resume=str(tmp_path / "c" / "cat-state"))
    with pytest.raises(UserError, match=r"base_weights: base.safetensors × 1 \(\w{10}\) then, none now"):
        Trainer(checkpoint, without, tmp_path / "c").run()


def test_a_base_network_for_another_checkpoint_is_refused(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    tensors = {
        "lora_unet_other.lora_down.weight": torch.zeros(2, 4),
        "lora_unet_other.lora_up.weight": torch.ones(4, 2),
    }
    write_network(tmp_path / "other.safetensors", tensors, {}, "float")
    with pytest.raises(UserError, match=r"it has 1 module that tiny-sd1.* lacks .*another kind of checkpoint"):
        train_one_step(checkpoint, small_config(base_weights="other"), tmp_path, (tmp_path,))


def test_what_cannot_be_merged_or_trained_on_is_named(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    good = read_network(write_lora(tmp_path / "good.safetensors", checkpoint, 4, 1)).tensors
    key = next(name for name in good if name.endswith("lora_up.weight"))
    write_network(tmp_path / "nan.safetensors", {**good, key: torch.full_like(good[key], torch.nan)}, {}, "float")
    write_network(tmp_path / "none.safetensors", {"double_blocks.0.img_mlp": torch.ones(1)}, {}, "float")
    write_network(tmp_path / "more.safetensors", {**good, "double_blocks.0.img_mlp": torch.ones(1)}, {}, "float")
    for setting, shown in (("base_weights", r"\.safetensors"), ("network_weights", "")):
        with pytest.raises(
            UserError, match=rf"{setting} = nan{shown}: lora_.*: lora_up.weight has values that are not"
        ):
            train_one_step(checkpoint, small_config(**{setting: "nan"}), tmp_path, (tmp_path,))
        with pytest.raises(UserError, match=rf"{setting} = none{shown}: none of its 1 tensors is one of a network"):
            train_one_step(checkpoint, small_config(**{setting: "none"}), tmp_path, (tmp_path,))
        _, messages = train_one_step(checkpoint, small_config(**{setting: "more"}), tmp_path, (tmp_path,))
        left_out = "1 of its tensors are of no known network and are left out (double_blocks.0.img_mlp)"
        assert f"more.safetensors: {left_out}" in messages


@pytest.mark.parametrize(("architecture", "prefix"), [("SD1", "lora_te_"), ("SDXL", "lora_te1_")])
def test_names_that_leave_it_open_follow_the_checkpoint(architecture: Any, prefix: str, tmp_path: Path) -> None:
    layer = "text_model.encoder.layers.0.mlp.fc1"
    factors = {
        f"text_encoder.{layer}.lora_A.weight": torch.ones(2, 4),
        f"text_encoder.{layer}.lora_B.weight": torch.ones(4, 2),
    }
    write_network(tmp_path / "peft.safetensors", factors, {}, "float")
    file = first_network(make_config({"network_weights": "peft"}).network, [tmp_path], architecture)
    assert file is not None and list(file.modules) == [prefix + layer.replace(".", "_")]


def test_ranks_of_a_lokr_file_need_the_package(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lora(tmp_path / "lokr.safetensors", checkpoint, 2, 1, network_algorithm="lokr")
    monkeypatch.setitem(sys.modules, "lycoris.functional", None)
    monkeypatch.setitem(sys.modules, "lycoris.modules.lokr", None)
    with pytest.raises(UserError, match="network_algorithm = lokr needs the package lycoris_lora"):
        train_one_step(checkpoint, small_config(network_weights="lokr", dim_from_weights=True), tmp_path, (tmp_path,))


@pytest.mark.parametrize(
    ("files", "multipliers", "expected"),
    [
        ("", "", []),
        ("a\n b \n\n", "", [("a", 1.0), ("b", 1.0)]),
        ("a\nb", "0.5", [("a", 0.5), ("b", 1.0)]),
        ("a\nb", "0.5, -1", [("a", 0.5), ("b", -1.0)]),
    ],
)
def test_multipliers_are_given_out_in_order(files: str, multipliers: str, expected: list[tuple[str, float]]) -> None:
    settings = make_config({"base_weights": files, "base_weights_multiplier": multipliers}).network
    assert base_networks(settings) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"full_bf16": True}, "full_bf16 is on and mixed_precision = no: set the latter to bf16"),
        ({"dim_from_weights": True}, "network_weights is empty"),
        ({"base_weights": "a", "base_weights_multiplier": "much"}, "allowed are numbers"),
        ({"base_weights": "a", "base_weights_multiplier": "1,2"}, "2 numbers for 1 files"),
    ],
)
def test_contradictions_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(values)
