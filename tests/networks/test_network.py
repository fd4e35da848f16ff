"""All adapters together, on the tiny checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.groups import NetworkSettings
from lora_ext.networks.network import Network
from lora_ext.networks.targets import Target, find_targets
from lora_ext.protocols import UserError


def make(checkpoint: Checkpoint, seed: int = 0, rank: int = 4) -> Network:
    settings = NetworkSettings(network_dim=rank, network_alpha=2)
    return Network(find_targets(checkpoint, settings), torch.Generator().manual_seed(seed))


def predict(checkpoint: Checkpoint) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    ids = torch.randint(0, 400, (1, 1, 77), generator=generator)
    with torch.no_grad():
        context = checkpoint.text_encoders[0].encode(ids)
        result: Tensor = checkpoint.unet(latents, torch.tensor([500]), context)
    return result


def forwards(checkpoint: Checkpoint) -> list[tuple[str, object]]:
    roots = [checkpoint.unet, checkpoint.text_encoders[0].module]
    return [
        (name, module.__dict__.get("forward")) for root in roots for name, module in root.named_modules()
    ]  # fmt: skip


def train_a_little(network: Network) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_the_names_in_a_file(checkpoint: Checkpoint) -> None:
    tensors = make(checkpoint).state_dict_for_file()
    assert len(tensors) == 3 * 204
    key = "lora_unet_down_blocks_0_attentions_0_proj_in"
    assert {
        name: tuple(tensors[f"{key}.{name}"].shape) for name in ("alpha", "lora_down.weight", "lora_up.weight")
    } == {
        "alpha": (),
        "lora_down.weight": (4, 32, 1, 1),
        "lora_up.weight": (32, 4, 1, 1),
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")} == {2.0}


def test_tensors_for_a_file_are_copies(checkpoint: Checkpoint) -> None:
    network = make(checkpoint)
    tensors = network.state_dict_for_file()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    train_a_little(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_the_same_seed_gives_the_same_network(checkpoint: Checkpoint) -> None:
    first, second, other = (make(checkpoint, seed).state_dict_for_file() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_attaching_and_detaching(checkpoint: Checkpoint) -> None:
    network = make(checkpoint)
    base, traces = predict(checkpoint), forwards(checkpoint)
    with network.attached():
        assert torch.equal(predict(checkpoint), base)
        train_a_little(network)
        assert not torch.equal(predict(checkpoint), base)
    assert forwards(checkpoint) == traces
    assert torch.equal(predict(checkpoint), base)


def test_attaching_that_fails_leaves_nothing_attached(checkpoint: Checkpoint) -> None:
    network = make(checkpoint)
    traces = forwards(checkpoint)
    last = list(network.adapters.values())[-1]
    last.attach()
    with pytest.raises(RuntimeError, match="attached already"):
        network.attach()
    last.detach()
    assert forwards(checkpoint) == traces


def test_detached_after_an_exception_in_the_block(checkpoint: Checkpoint) -> None:
    traces = forwards(checkpoint)
    with pytest.raises(KeyError), make(checkpoint).attached():
        raise KeyError("stopped")
    assert forwards(checkpoint) == traces


def test_parameters_by_group(checkpoint: Checkpoint) -> None:
    groups = make(checkpoint).parameters_by_group()
    assert {group: len(parameters) for group, parameters in groups.items()} == {"unet": 384, "text_encoder": 24}
    assert all(parameter.requires_grad for parameters in groups.values() for parameter in parameters)
    unet_only = [target for target in find_targets(checkpoint, NetworkSettings()) if target.group == "unet"]
    assert list(Network(unet_only, torch.Generator()).parameters_by_group()) == ["unet"]


def test_the_checkpoints_parameters_are_not_the_networks(checkpoint: Checkpoint) -> None:
    base = {id(parameter) for parameter in checkpoint.unet.parameters()}
    assert not base.intersection(id(parameter) for parameter in make(checkpoint).parameters())


def test_loading_what_was_saved(checkpoint: Checkpoint) -> None:
    network = make(checkpoint, seed=1)
    train_a_little(network)
    tensors = network.state_dict_for_file()
    other = make(checkpoint, seed=2)
    other.load_tensors(tensors)
    loaded = other.state_dict_for_file()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors.items())


def test_loading_what_does_not_fit_changes_nothing(checkpoint: Checkpoint) -> None:
    network, wider = make(checkpoint, seed=1), make(checkpoint, seed=2, rank=8)
    before = network.state_dict_for_file()
    with pytest.raises(UserError, match=r"lora_down\.weight is \(8, 64\) instead of \(4, 64\)"):
        network.load_tensors(wider.state_dict_for_file())
    with pytest.raises(UserError, match=r"mlp_fc1\.alpha is missing.*strange is unknown"):
        tensors = dict(before)
        del tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"]
        network.load_tensors({**tensors, "strange": torch.zeros(1)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict_for_file().items())


def test_linear_layers_may_be_stored_as_convolutions() -> None:
    network = Network([Target("a", nn.Linear(3, 5), 2, 1.0, "unet")], torch.Generator())
    down, up = torch.randn(2, 3, 1, 1), torch.randn(5, 2, 1, 1)
    network.load_tensors({"a.lora_down.weight": down, "a.lora_up.weight": up, "a.alpha": torch.tensor(2.0)})
    assert torch.equal(network.adapters["a"].lora_down.weight, down[:, :, 0, 0])
    assert network.adapters["a"].scale == 1.0
