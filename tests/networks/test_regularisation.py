"""Dropouts and max norm, against sd-scripts' formulas written out, and literal numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_ext.networks.dropout import Dropout, rank_mask
from lora_ext.networks.lora import LoraAdapter
from lora_ext.networks.max_norm import MaxNorm
from lora_ext.networks.network import Network
from lora_ext.networks.targets import Target
from lora_ext.networks.weight_delta import weight_delta

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 20), (3, 5, 12)),
    "linear without tokens": (lambda: nn.Linear(12, 20), (3, 12)),
    "convolution 1x1": (lambda: nn.Conv2d(12, 20, 1), (3, 12, 6, 7)),
    "convolution 3x3": (lambda: nn.Conv2d(12, 20, 3, padding=1), (3, 12, 6, 7)),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str, dropout: Dropout) -> tuple[LoraAdapter, Tensor]:
    build, shape = CASES[name]
    adapter = LoraAdapter(Target(name, build(), 4, 2.0, "unet"), seeded(0), dropout)
    with torch.no_grad():
        adapter.lora_up.weight.copy_(torch.randn(adapter.lora_up.weight.shape, generator=seeded(1)))
    adapter.attach()
    return adapter, torch.randn(shape, generator=seeded(2))


def sd_scripts(adapter: LoraAdapter, x: Tensor) -> Tensor:
    """LoRAModule.forward of sd-scripts' networks/lora.py in our words: what is drawn, and in which order."""
    dropout, scale = adapter.dropout, adapter.scale
    adapter.detach()
    output = adapter.target.module(x)
    adapter.attach()
    if dropout.module and torch.rand(1) < dropout.module:
        return output
    hidden = adapter.lora_down(x)
    if dropout.values:
        hidden = F.dropout(hidden, dropout.values)
    if dropout.rank:
        kept = torch.rand(hidden.shape[0], 4) > dropout.rank
        hidden = hidden * {2: kept, 3: kept[:, None], 4: kept[:, :, None, None]}[hidden.ndim]
        scale = scale / (1 - dropout.rank)
    return output + adapter.lora_up(hidden) * scale


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "dropout", [Dropout(), Dropout(values=0.3), Dropout(rank=0.4), Dropout(module=0.5), Dropout(0.3, 0.4, 0.5)]
)
def test_the_same_random_state_gives_what_sd_scripts_gives(name: str, dropout: Dropout) -> None:
    adapter, x = make(name, dropout)
    for seed in range(6):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ours = adapter.target.module(x)
            torch.manual_seed(seed)
            theirs = sd_scripts(adapter, x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_dropout_acts_in_train_mode_alone(name: str) -> None:
    adapter, x = make(name, Dropout(0.5, 0.5, 0.5))
    plain, _ = make(name, Dropout())
    plain.target.module.load_state_dict(adapter.target.module.state_dict())
    adapter.eval()
    state = torch.random.get_rng_state()
    assert torch.equal(adapter.target.module(x), plain.target.module(x))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_module_dropout_leaves_a_share_of_the_modules_out() -> None:
    adapter, x = make("linear", Dropout(module=0.25))
    adapter.detach()
    base = adapter.target.module(x)
    adapter.attach()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        left_out = sum(torch.equal(adapter.target.module(x), base) for _ in range(400))
    assert 75 <= left_out <= 125


@pytest.mark.parametrize(("shape", "first"), [((2, 4), False), ((2, 9, 4), False), ((2, 4, 3, 5), True)])
def test_a_rank_is_left_out_of_a_whole_sample(shape: tuple[int, ...], first: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        mask = rank_mask(torch.ones(shape), 0.5, first)
    assert mask.numel() == 8 and set(mask.unique().tolist()) == {0.0, 1.0}
    assert (torch.ones(shape) * mask).shape == torch.Size(shape)


def test_a_network_gives_its_adapters_the_dropout() -> None:
    network = Network([Target("a", nn.Linear(3, 5), 2, 1.0, "unet")], seeded(0), Dropout(rank=0.2))
    assert network.adapters["a"].dropout == Dropout(rank=0.2)


@pytest.mark.parametrize("name", CASES)
def test_the_norm_is_that_of_the_delta(name: str) -> None:
    adapter, _ = make(name, Dropout())
    delta = weight_delta({key: tensor.detach() for key, tensor in adapter.state_dict().items()})
    assert float(adapter.delta_norm()) == pytest.approx(float(delta.norm()), rel=1e-5)


def test_max_norm_in_numbers() -> None:
    """down = (3, 0), up = (0, 4)ᵀ, alpha = rank = 1: ‖ΔW‖ = 12; held to 3 both factors are halved."""
    targets = [Target(key, nn.Linear(2, 2), 1, 1.0, "unet") for key in ("long", "short", "none")]
    network = Network(targets, seeded(0))
    for key, up in (("long", 4.0), ("short", 0.5), ("none", 0.0)):
        factors = {"lora_down.weight": torch.tensor([[3.0, 0.0]]), "lora_up.weight": torch.tensor([[0.0], [up]])}
        network.adapters[key].load_tensors(factors)
    norms = MaxNorm(network.adapters.values(), 3.0)
    assert norms.report() is None
    norms.apply()
    report = norms.report()
    assert report is not None
    assert (report.keys_scaled, report.average, report.maximum) == (1, pytest.approx(1.5), pytest.approx(3.0))
    long, short = network.adapters["long"], network.adapters["short"]
    torch.testing.assert_close(long.lora_down.weight.detach(), torch.tensor([[1.5, 0.0]]))
    torch.testing.assert_close(long.lora_up.weight.detach(), torch.tensor([[0.0], [2.0]]))
    assert torch.equal(short.lora_down.weight, torch.tensor([[3.0, 0.0]]))
    norms.apply()
    again = norms.report()
    assert again is not None and again.keys_scaled <= 1 and again.maximum == pytest.approx(3.0)


@pytest.mark.parametrize("name", CASES)
def test_factors_in_another_dtype(name: str) -> None:
    adapter, x = make(name, Dropout())
    wanted = adapter.target.module(x)
    adapter.cast(torch.bfloat16)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.bfloat16}
    assert adapter.alpha.dtype == torch.float32
    torch.testing.assert_close(adapter.target.module(x), wanted, rtol=0.02, atol=0.05)
