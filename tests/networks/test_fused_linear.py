"""The adapter and its layer as one operation: the same numbers, and where it is not taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_ext.networks.fused_linear import can_fuse, is_untouched, lora_linear
from lora_ext.networks.lora import LoraAdapter
from lora_ext.networks.targets import Target


def tensors(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 2, 3, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_gradients_are_right(shape: tuple[int, ...], has_bias: bool) -> None:
    x, weight, bias, down, up = tensors(torch.float64, shape, (4, 5), (4,), (2, 5), (4, 2))
    trained = [tensor.requires_grad_() for tensor in (x, down, up)]
    given = bias if has_bias else None
    torch.testing.assert_close(
        lora_linear(x, weight, given, down, up, 0.7), F.linear(x, weight + 0.7 * up @ down, given)
    )
    assert torch.autograd.gradcheck(lambda x, down, up: lora_linear(x, weight, given, down, up, 0.7), trained)


@pytest.mark.parametrize("wants", [(True, True, True), (False, True, True), (True, False, False), (False, False, True)])
def test_bit_for_bit_what_the_layers_give_one_after_the_other(wants: tuple[bool, bool, bool]) -> None:
    x, weight, bias, down, up, of_output = tensors(
        torch.float32, (3, 70, 64), (48, 64), (48,), (8, 64), (48, 8), (3, 70, 48)
    )
    found: list[list[Tensor | None]] = []
    for fused in (True, False):
        used = [tensor.clone().requires_grad_(want) for tensor, want in zip((x, down, up), wants, strict=True)]
        if fused:
            output = lora_linear(used[0], weight, bias, used[1], used[2], 0.5)
        else:
            output = F.linear(used[0], weight, bias) + F.linear(F.linear(used[0], used[1]) * 0.5, used[2])
        output.backward(of_output)  # type: ignore[no-untyped-call]
        found.append([output.detach(), *(tensor.grad for tensor in used)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert torch.equal(ours, theirs)


def attached(module: nn.Module) -> LoraAdapter:
    adapter = LoraAdapter(Target("a", module, 2, 1.0, "unet"), torch.Generator().manual_seed(0))
    nn.init.ones_(adapter.lora_up.weight)
    adapter.attach()
    return adapter


def operation(output: Tensor) -> str:
    return type(output.grad_fn).__name__


def test_where_it_is_taken() -> None:
    frozen = nn.Linear(4, 3).requires_grad_(False)
    x = torch.randn(2, 4)
    attached(frozen)
    assert "_LoraLinear" in operation(frozen(x))
    with torch.autocast("cpu", torch.bfloat16):
        output = frozen(x)
    assert output.dtype == torch.bfloat16 and "_LoraLinear" not in operation(output)
    trained = nn.Linear(4, 3)
    attached(trained)
    assert "_LoraLinear" not in operation(trained(x))


def test_what_was_put_over_the_layer_is_called() -> None:
    module = nn.Linear(4, 3).requires_grad_(False)
    module.__dict__["forward"] = lambda x: torch.zeros(*x.shape[:-1], 3)
    adapter = attached(module)
    x = torch.randn(2, 4)
    torch.testing.assert_close(module(x), F.linear(F.linear(x, adapter.lora_down.weight), torch.full((3, 2), 0.5)))

    class Other(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    assert is_untouched(nn.Linear(4, 3)) and not is_untouched(Other(4, 3))
    assert not is_untouched(module) and is_untouched(nn.Conv2d(4, 3, 1)) and not is_untouched(nn.LayerNorm(4))


def test_other_number_formats_are_not_fused() -> None:
    x, weight = tensors(torch.float32, (2, 4), (3, 4))
    assert can_fuse(x, weight)
    assert not can_fuse(x.to(torch.bfloat16), weight) and not can_fuse(x, weight.to(torch.bfloat16))
