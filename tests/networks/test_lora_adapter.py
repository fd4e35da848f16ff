"""The adapter: zero at first, the same function as its delta weight and as lycoris', gradients, exact detaching."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_ext.networks.lora import LoraAdapter
from lora_ext.networks.targets import Target
from lora_ext.networks.weight_delta import weight_delta

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 20), (2, 5, 12)),
    "linear without bias": (lambda: nn.Linear(12, 20, bias=False), (3, 12)),
    "convolution 1x1": (lambda: nn.Conv2d(12, 20, 1), (2, 12, 6, 7)),
    "convolution 3x3": (lambda: nn.Conv2d(12, 20, 3, padding=1), (2, 12, 6, 7)),
    "convolution 3x3 of stride 2": (lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 6, 7)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str, rank: int = 4, alpha: float = 2.0, seed: int = 0) -> tuple[LoraAdapter, Tensor]:
    """An adapter on a module of random weights, and an input for it."""
    build, shape = CASES[name]
    module = build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(1)) * 0.3)
    return LoraAdapter(Target(name, module, rank, alpha, "unet"), seeded(seed)), torch.randn(shape, generator=seeded(2))


def trained(adapter: LoraAdapter) -> LoraAdapter:
    with torch.no_grad():
        adapter.lora_up.weight.copy_(torch.randn(adapter.lora_up.weight.shape, generator=seeded(3)))
    return adapter


def stored(adapter: LoraAdapter) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in adapter.state_dict().items()}


@pytest.mark.parametrize("name", CASES)
def test_nothing_changes_at_first(name: str) -> None:
    adapter, x = make(name)
    module = adapter.target.module
    before = module(x)
    adapter.attach()
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("name", CASES)
def test_forward_is_that_of_the_changed_weight(name: str) -> None:
    adapter, x = make(name)
    trained(adapter).attach()
    module = adapter.target.module
    with_adapter = module(x)
    adapter.detach()
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight += weight_delta(stored(adapter)).reshape(weight.shape)
    torch.testing.assert_close(module(x), with_adapter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_delta_are_lycoris(name: str) -> None:
    from lycoris.modules.locon import LoConModule

    adapter, x = make(name, rank=4, alpha=3.0)
    trained(adapter)
    module = adapter.target.module
    theirs = LoConModule("test", module, 1.0, lora_dim=4, alpha=3.0)
    theirs.load_state_dict({**theirs.state_dict(), **stored(adapter)})
    adapter.attach()
    ours = module(x)
    adapter.detach()
    theirs.apply_to()
    torch.testing.assert_close(ours, module(x), rtol=1e-5, atol=1e-5)
    theirs.restore()
    delta, _ = theirs.get_diff_weight()
    torch.testing.assert_close(weight_delta(stored(adapter)), delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_both_factors_and_not_the_module(name: str) -> None:
    adapter, x = make(name)
    trained(adapter).attach()
    adapter.target.module.requires_grad_(False)
    adapter.target.module(x).square().sum().backward()
    for parameter in adapter.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in adapter.target.module.parameters())


OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 2)
HALF = pytest.param(torch.float16, marks=pytest.mark.skipif(OLD_TORCH, reason="no fp16 on a CPU"))


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
def test_it_computes_in_the_dtype_of_its_input_with_fp32_masters(dtype: torch.dtype) -> None:
    adapter, x = make("linear")
    adapter.target.module.to(dtype)
    trained(adapter).attach()
    assert adapter.target.module(x.to(dtype)).dtype == dtype
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_the_start_is_kaiming_uniform_from_the_generator_alone() -> None:
    target = make("convolution 3x3", rank=16)[0].target
    state = torch.random.get_rng_state()
    adapter = LoraAdapter(target, seeded(5))
    assert torch.equal(torch.random.get_rng_state(), state)
    bound = 1 / math.sqrt(12 * 9)
    down = adapter.lora_down.weight.detach()
    assert 0.99 * bound < down.abs().max() <= bound
    assert abs(float(down.mean())) < 0.05 * bound
    assert torch.equal(down, make("convolution 3x3", rank=16, seed=5)[0].lora_down.weight)
    assert not torch.equal(down, make("convolution 3x3", rank=16, seed=6)[0].lora_down.weight)
    assert not adapter.lora_up.weight.any()


def test_alpha_is_a_buffer_and_scales() -> None:
    adapter, x = make("linear", rank=4, alpha=2.0)
    assert adapter.alpha.item() == 2.0
    assert adapter.scale == 0.5
    assert list(adapter.state_dict()) == ["alpha", "lora_down.weight", "lora_up.weight"]
    module = adapter.target.module
    base = module(x)
    trained(adapter).attach()
    half = module(x) - base
    adapter.load_tensors({**adapter.tensors_for_file(), "alpha": torch.tensor(4.0)})
    torch.testing.assert_close(module(x) - base, 2 * half)


def test_detaching_leaves_no_trace() -> None:
    adapter, _ = make("linear")
    module = adapter.target.module
    before = set(module.__dict__)
    adapter.attach()
    assert "forward" in module.__dict__
    adapter.detach()
    assert set(module.__dict__) == before


def test_detaching_brings_an_older_override_back() -> None:
    adapter, x = make("linear")
    module = adapter.target.module

    def override(x: Tensor) -> Tensor:
        return torch.full((*x.shape[:-1], 20), 7.0)

    module.__dict__["forward"] = override
    adapter.attach()
    assert torch.equal(module(x), override(x))
    adapter.detach()
    assert module.__dict__["forward"] is override


def test_attaching_twice_and_detaching_out_of_order_are_refused() -> None:
    adapter, _ = make("linear")
    with pytest.raises(RuntimeError, match="not attached"):
        adapter.detach()
    adapter.attach()
    with pytest.raises(RuntimeError, match="attached already"):
        adapter.attach()
    second = LoraAdapter(adapter.target, seeded())
    second.attach()
    with pytest.raises(RuntimeError, match="something else"):
        adapter.detach()
    second.detach()
    adapter.detach()


def test_modules_that_cannot_be_adapted_are_refused() -> None:
    with pytest.raises(TypeError, match="LayerNorm"):
        LoraAdapter(Target("norm", nn.LayerNorm(4), 2, 1.0, "unet"), seeded())
    with pytest.raises(ValueError, match="2 groups"):
        LoraAdapter(Target("grouped", nn.Conv2d(4, 4, 3, groups=2), 2, 1.0, "unet"), seeded())
