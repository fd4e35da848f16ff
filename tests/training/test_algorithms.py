"""Runs with every algorithm: they learn, go on from a state bit for bit, and train on from their own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.text.openclip import explicit_attention
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.networks.file import read_network, write_network
from lora_ext.networks.network import Network
from lora_ext.networks.targets import find_targets
from lora_ext.networks.weight_delta import module_delta
from lora_ext.protocols import Control, Events, MessageLevel
from lora_ext.training.first_weights import BaseNetwork, merged
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
SMALL: dict[str, Any] = {"network_include": "re:input_blocks_1_|down_blocks_0_attentions_0|layers_0_", "network_dim": 4}


class Listener(Events):
    """Keeps messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[MessageLevel, str]] = []

    def message(self, level: MessageLevel, text: str) -> None:
        self.messages.append((level, text))


def run(checkpoint: Checkpoint, config: TrainConfig, folder: Path, events: Events | None = None) -> dict[str, Tensor]:
    result = Trainer(checkpoint, config, folder, events or Events(), Control()).run()
    assert result.bad_steps == 0
    return read_network(result.files[-1]).tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "suffixes"),
    [
        ({"network_algorithm": "loha"}, {"alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        ({"network_algorithm": "lokr", "network_dim": 2, "factor": 4, "use_scalar": True, "rank_dropout": 0.1},
         {"alpha", "lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
        ({"network_algorithm": "ia3", "network_preset": "ia3"}, {"weight", "on_input"}),
        ({"network_algorithm": "full"}, {"diff", "diff_b"}),
        ({"network_algorithm": "diag-oft", "rescaled": True, "constraint": 0.01}, {"alpha", "oft_blocks", "rescale"}),
        ({"network_algorithm": "boft", "network_dim": 8}, {"alpha", "oft_blocks"}),
        ({"network_algorithm": "glora"}, {"alpha", "a1.weight", "a2.weight", "b1.weight", "b2.weight"}),
        ({"network_algorithm": "dylora", "block_size": 2, "gradient_checkpointing": True},
         {"alpha", "lora_down.weight", "lora_up.weight"}),
        ({"network_algorithm": "tlora"}, {"alpha", "lora_down.weight", "lora_up.weight"}),
        ({"dora_wd": True, "rs_lora": True}, {"alpha", "lora_down.weight", "lora_up.weight", "dora_scale"}),
        ({"lora_fa": True, "ema_decay": 0.9}, {"alpha", "lora_down.weight", "lora_up.weight"}),
        ({"network_preset": "full", "use_tucker": True, "train_norm": True, "scale_weight_norms": 0.5},
         {"alpha", "lora_down.weight", "lora_up.weight", "lora_mid.weight", "w_norm", "b_norm"}),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_run_of(
    values: dict[str, Any], suffixes: set[str], checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    values = {**SMALL, **values}
    if values.get("network_preset") == "full":
        values["network_include"] = "down_blocks_0_resnets_0\ndown_blocks_0_attentions_0"
    config = small_config(**values, save_state=True, save_every_n_epochs=1, gradient_accumulation_steps=1)
    whole = run(checkpoint, config, tmp_path / "a")
    assert {name.partition(".")[2] for name in whole} - {"diff_b"} == suffixes - {"diff_b"}
    modules = read_network(tmp_path / "a" / "cat.safetensors").modules
    assert all(module_delta(tensors).algorithm for tensors in modules.values())
    half = small_config(**values, resume=str(tmp_path / "a" / "cat-000001-state"))
    again = run(checkpoint, half, tmp_path / "a")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    if values.get("network_algorithm") == "tlora":
        return
    from_file = {"network_weights": str(tmp_path / "a" / "cat.safetensors"), "learning_rate": 1e-9}
    for own in (values, {"dim_from_weights": True, "network_algorithm": values.get("network_algorithm", "lora")}):
        extra = {name: own[name] for name in own if name not in ("scale_weight_norms", "rank_dropout", "ema_decay")}
        gone_on = run(checkpoint, small_config(**extra, **from_file, max_train_epochs=1), tmp_path / "b")
        assert gone_on.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(gone_on[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_run_says_what_it_adapts(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    events = Listener()
    control = Control()
    control_config = small_config(
        network_include="attn1", network_exclude="no_such_thing", network_train_unet_only=True, max_train_steps=1,
        max_train_epochs=None, network_algorithm="loha",
    )  # fmt: skip
    result = Trainer(checkpoint, control_config, tmp_path, events, control).run()
    assert ("info", "Adapts 64 modules: 64 in the U-Net (loha rank 4).") in events.messages
    assert ("info", "network_include: attn1 matches 64 modules.") in events.messages
    assert any(level == "warning" and "no_such_thing matches none" in text for level, text in events.messages)
    metadata = read_network(result.files[-1]).metadata
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"]) == {"algo": "loha", "preset": "attn-mlp"}


@pytest.fixture(scope="module")
def sdxl(tiny_kind_path: Callable[[str], Path]) -> Checkpoint:
    return load_checkpoint(tiny_kind_path("sdxl"), torch.device("cpu"), torch.float32).checkpoint


@torch.no_grad()
def outputs(checkpoint: Checkpoint) -> list[Tensor]:
    """What the text encoders and the U-Net give for some caption and some noise."""
    states, pooled = [], []
    with explicit_attention(checkpoint.text_encoders):
        for encoder in checkpoint.text_encoders:
            given, vector = encoder.encode_pooled(encoder.tokenize(["a cat"], 75))
            states.append(given)
            pooled += [vector] if vector is not None else []
    generator = torch.Generator().manual_seed(0)
    width = next(m for name, m in checkpoint.unet.named_modules() if name == "label_emb.0.0").weight.shape[1]
    y = torch.cat([pooled[0], torch.randn((1, width - pooled[0].shape[1]), generator=generator)], dim=1)
    latents = torch.randn((1, 4, 8, 8), generator=generator)
    noise = checkpoint.unet(latents, torch.tensor([500]), torch.cat(states, dim=-1), y)
    return [*states, *pooled, noise]


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {}, {"dora_wd": True}, {"dora_wd": True, "wd_on_output": False}, {"network_algorithm": "dylora"},
        {"network_preset": "full", "use_tucker": True, "train_norm": True, "use_scalar": True, "conv_dim": 2},
        {"network_algorithm": "loha", "network_preset": "full", "use_tucker": True},
        {"network_algorithm": "lokr", "network_preset": "full", "rs_lora": True, "network_dim": 2, "factor": 4},
        {"network_algorithm": "ia3", "network_preset": "ia3"}, {"network_algorithm": "full", "network_preset": "full"},
        {"network_algorithm": "diag-oft", "rescaled": True}, {"network_algorithm": "boft", "network_dim": 8},
        {"network_algorithm": "glora"}, {"network_algorithm": "tlora"},
    ],
    ids=lambda values: " ".join(map(str, values.values())),
)  # fmt: skip
def test_a_saved_network_applied_is_what_was_trained(values: dict[str, Any], sdxl: Checkpoint, tmp_path: Path) -> None:
    """SDXL: both text encoders, with fused attention in the second, and the U-Net; everything as it was afterwards."""
    settings = make_config({"network_dim": 4, "network_alpha": 4.0, **values}).network
    before = outputs(sdxl)
    network = Network(find_targets(sdxl, settings), torch.Generator().manual_seed(0)).eval()
    for number, parameter in enumerate(network.parameters()):
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.02
    with network.attached():
        trained = outputs(sdxl)
    path = tmp_path / "cat.safetensors"
    write_network(path, network.state_dict_for_file(), {}, "float")
    with merged(sdxl, [BaseNetwork(read_network(path), 1.0, "")]):
        applied = outputs(sdxl)
    for one, other, untouched in zip(trained, applied, before, strict=True):
        assert float((one - untouched).abs().max()) > 1e-3 * float(untouched.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4 * float(untouched.abs().max()))
    assert all(torch.equal(one, other) for one, other in zip(outputs(sdxl), before, strict=True))
