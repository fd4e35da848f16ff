"""The ledger: exact sums, exact restoring, one owner at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lora_ext.checkpoint.patches import Patch, PatchLedger

HALF_BITS = {torch.float16: 11, torch.bfloat16: 8}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def bits(tensor: Tensor) -> Tensor:
    """Raw bits, so that NaN payloads and signed zeros count."""
    return tensor.detach().clone().contiguous().view(torch.uint8)


def parameter(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Parameter:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return nn.Parameter(values.to(dtype))


class Added:
    """W₀ + ΔW, made anew each time; equal to itself alone."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self.writes = 0

    def write(self, base: Tensor, out: Tensor) -> None:
        self.writes += 1
        torch.add(base.float(), self._make().reshape(base.shape), out=out)


def constant(value: float, shape: tuple[int, ...]) -> Added:
    return Added(lambda: torch.full(shape, value))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 4, 32])
def test_patched_weights_are_within_the_bounds_of_float64(dtype: torch.dtype, rank: int) -> None:
    out, columns, scale = 96, 160, 0.7
    generator = torch.Generator().manual_seed(rank)
    weight = nn.Parameter((torch.randn(out, columns, generator=generator) * 0.05).to(dtype))
    up = torch.randn(out, rank, generator=generator) * 0.05
    down = torch.randn(rank, columns, generator=generator) * 0.2
    original = weight.detach().double()
    PatchLedger().patch("test", {weight: Added(lambda: (up * scale) @ down)})

    exact = original + scale * (up.double() @ down.double())
    bound = (rank + 2) * 2.0**-23 * (original.abs() + scale * (up.double().abs() @ down.double().abs()))
    error = (weight.detach().double() - exact).abs()
    if dtype == torch.float32:
        assert bool((error <= bound).all())
        return
    assert weight.detach().eq(exact.to(dtype)).double().mean() >= 0.999
    smallest = torch.finfo(dtype).tiny
    half_ulp = torch.exp2(exact.abs().clamp(min=smallest).log2().floor() - HALF_BITS[dtype])
    assert bool((error <= half_ulp + bound).all())


def test_patch_sets_the_whole_state() -> None:
    a, b = parameter((2, 2), seed=1), parameter((3,), seed=2)
    a0, b0 = a.detach().clone(), b.detach().clone()
    ledger = PatchLedger()
    ledger.patch("test", {a: constant(1, (2, 2)), b: constant(2, (3,))})
    assert ledger.patched == 2
    ledger.patch("test", {a: constant(5, (2, 2))})
    assert torch.equal(a, a0 + 5)
    assert torch.equal(b, b0)
    assert (ledger.patched, ledger.owner) == (1, "test")
    ledger.patch("test", {})
    assert torch.equal(a, a0)
    assert (ledger.patched, ledger.owner) == (0, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_restoring_is_bit_exact_even_for_nan_payloads(dtype: torch.dtype) -> None:
    weight = parameter((16, 8, 3, 3), dtype)
    with torch.no_grad():
        integers = {torch.float32: torch.int32}.get(dtype, torch.int16)
        quiet_nan_with_payload = {torch.float32: 0x7FC12345, torch.float16: 0x7E2A, torch.bfloat16: 0x7FD5}[dtype]
        weight.view(integers)[0, 0, 0, 0] = quiet_nan_with_payload
        weight[0, 0, 0, 1], weight[0, 0, 0, 2] = -0.0, float("-inf")
    before = bits(weight)
    ledger = PatchLedger()
    for value in (0.5, -3.0, 1e-4):
        ledger.patch("test", {weight: constant(value, (16, 8, 3, 3))})
        assert not torch.equal(bits(weight), before)
    ledger.restore("test")
    assert torch.equal(bits(weight), before)


def test_channels_last_weights_are_patched_and_restored() -> None:
    weight = nn.Parameter(torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last))
    before, delta = weight.detach().clone(), torch.arange(4 * 6 * 9.0).reshape(4, 6, 3, 3)
    ledger = PatchLedger()
    ledger.patch("test", {weight: Added(lambda: delta)})
    assert torch.equal(weight, before + delta)
    ledger.restore("test")
    assert torch.equal(weight, before)
    assert weight.is_contiguous(memory_format=torch.channels_last)


class Failing:
    """Writes a part of the weight before it fails."""

    def write(self, base: Tensor, out: Tensor) -> None:
        out[0] = 9
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("bad", [Failing(), constant(1, (7,))])
def test_after_an_exception_nothing_is_patched(bad: Patch) -> None:
    weights = [parameter((4, 4), torch.float16, seed) for seed in range(3)]
    before = [bits(weight) for weight in weights]
    ledger = PatchLedger()
    ledger.patch("test", {weights[2]: constant(1, (4, 4))})
    with pytest.raises((RuntimeError, ValueError)):
        ledger.patch("test", {weights[0]: constant(1, (4, 4)), weights[1]: bad, weights[2]: constant(2, (4, 4))})
    assert all(torch.equal(bits(weight), old) for weight, old in zip(weights, before, strict=True))
    assert (ledger.patched, ledger.owner) == (0, None)


def test_an_equal_patch_is_not_written_again() -> None:
    a, b, ledger = parameter((2,)), parameter((2,), seed=1), PatchLedger()
    same, other = constant(1, (2,)), constant(2, (2,))
    ledger.patch("test", {a: same, b: constant(3, (2,))})
    ledger.patch("test", {a: same, b: other})
    assert (same.writes, other.writes) == (1, 1)
    ledger.patch("test", {b: other})
    ledger.patch("test", {a: same, b: other})
    assert (same.writes, other.writes) == (2, 1)


def test_after_an_exception_the_same_patch_is_written_again() -> None:
    a, b, ledger = parameter((2, 2)), parameter((2, 2), seed=1), PatchLedger()
    a0, patch = a.detach().clone(), constant(1, (2, 2))
    ledger.patch("test", {a: patch})
    with pytest.raises(RuntimeError, match="out of memory"):
        ledger.patch("test", {a: patch, b: Failing()})
    ledger.patch("test", {a: patch})
    assert torch.equal(a, a0 + 1)


@pytest.mark.parametrize("trainable", [True, False])
def test_requires_grad_stays(trainable: bool) -> None:
    weight = parameter((2, 2)).requires_grad_(trainable)
    ledger = PatchLedger()
    ledger.patch("test", {weight: constant(1, (2, 2))})
    assert (weight.requires_grad, weight.grad_fn) == (trainable, None)
    ledger.restore("test")
    assert (weight.requires_grad, weight.grad_fn) == (trainable, None)


def test_a_second_owner_is_refused_by_name() -> None:
    a, b = parameter((2,)), parameter((2,))
    ledger = PatchLedger()
    ledger.patch("the prompt", {a: constant(1, (2,))})
    with pytest.raises(RuntimeError, match=r"the merge cannot .* while the prompt"):
        ledger.patch("the merge", {b: constant(1, (2,))})
    ledger.restore("the merge")
    assert ledger.patched == 1
    ledger.restore("the prompt")
    ledger.patch("the merge", {b: constant(1, (2,))})
    assert ledger.owner == "the merge"


def test_exclusive_use_restores_refuses_others_and_restores_again() -> None:
    a = parameter((2,))
    before = bits(a)
    ledger = PatchLedger()
    ledger.patch("the prompt", {a: constant(1, (2,))})
    with ledger.exclusive("training"):
        assert torch.equal(bits(a), before)
        assert ledger.owner == "training"
        with pytest.raises(RuntimeError, match="while training"):
            ledger.patch("the prompt", {a: constant(1, (2,))})
        with pytest.raises(RuntimeError, match="while training"), ledger.exclusive("merging"):
            pass
        ledger.restore("the prompt")
        ledger.patch("training", {a: constant(3, (2,))})
        assert not torch.equal(bits(a), before)
    assert torch.equal(bits(a), before)
    assert ledger.owner is None
    ledger.patch("the prompt", {a: constant(1, (2,))})


def test_exclusive_use_ends_with_an_exception_too() -> None:
    a = parameter((2,))
    before = bits(a)
    ledger = PatchLedger()
    with pytest.raises(KeyError), ledger.exclusive("training"):
        ledger.patch("training", {a: constant(3, (2,))})
        raise KeyError("stopped")
    assert torch.equal(bits(a), before)
    assert ledger.owner is None


def test_revision_grows_with_every_change() -> None:
    a, ledger = parameter((2,)), PatchLedger()
    seen = [ledger.revision]
    ledger.patch("test", {a: constant(1, (2,))})
    seen.append(ledger.revision)
    with ledger.exclusive("training"):
        seen.append(ledger.revision)
    ledger.patch("test", {a: constant(1, (2,))})
    seen.append(ledger.revision)
    ledger.restore("test")
    seen.append(ledger.revision)
    assert seen == sorted(set(seen))
