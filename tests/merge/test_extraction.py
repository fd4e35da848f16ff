"""One weight's change as factors: LyCORIS' ranks, numpy's error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_ext.merge.extraction import RankChoice, all_singular_values, extracted


def decaying(shape: tuple[int, ...], power: float, seed: int) -> Tensor:
    """A random matrix or kernel whose k-th singular value is k^-power."""
    rows, columns = shape[0], int(np.prod(shape[1:]))
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, min(rows, columns), generator=generator))[0]
    values = torch.arange(1, min(rows, columns) + 1) ** -power
    return (left * values @ right.T).reshape(shape)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fixed", "threshold", "ratio", "quantile"])
@pytest.mark.parametrize("shape", [(96, 64), (48, 80), (96, 32, 3, 3), (64, 64, 1, 1)])
@pytest.mark.parametrize("power", [0.6, 1.5])
def test_ranks_are_those_of_lycoris(mode: str, shape: tuple[int, ...], power: float) -> None:
    """Up to half of the outputs: from there on LyCORIS stores the whole difference."""
    from lycoris.utils import extract_conv, extract_linear

    change = decaying(shape, power, seed=3)
    theirs = extract_linear if len(shape) == 2 else extract_conv
    for amount in [4, 9] if mode == "fixed" else [0.05, 0.12, 0.3, 0.5]:
        found, kind = theirs(change, mode, amount)
        choice = RankChoice(mode, int(amount) if mode == "fixed" else None, float(amount))
        ours = extracted(change, choice, torch.float32)
        assert ours is not None
        if kind == "full":
            assert ours.rank >= shape[0] / 2
            continue
        down, up, rest = found
        assert ours.rank == len(down)
        product = ours.tensors["lora_up.weight"].flatten(1) @ ours.tensors["lora_down.weight"].flatten(1)
        expected = up.flatten(1) @ down.flatten(1)
        assert float((product - expected).norm()) < 3e-4 * float(expected.norm())  # both are the best to 1e-5
        assert ours.lost == pytest.approx(float(rest.double().square().sum()), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("power", [0.3, 0.6, 1.0])
def test_the_error_is_that_of_the_whole_decomposition(power: float) -> None:
    """Slowly falling singular values, as real fine-tuning has, with the random start of the first few."""
    change = decaying((300, 260), power, seed=5)
    values = np.linalg.svd(change.double().numpy(), compute_uv=False)
    ours = extracted(change, RankChoice("fixed", 8), torch.float32)
    assert ours is not None
    assert ours.change == pytest.approx(float((values**2).sum()), rel=1e-6)
    assert float((values[8:] ** 2).sum()) * (1 - 1e-6) <= ours.lost <= float((values[8:] ** 2).sum()) * (1 + 1e-4)


@pytest.mark.parametrize("shape", [(70, 50), (50, 2500), (3, 3)])
def test_all_singular_values_are_those_of_numpy(shape: tuple[int, int]) -> None:
    change = decaying(shape, 2.0, seed=2)
    expected = torch.from_numpy(np.linalg.svd(change.double().numpy(), compute_uv=False)).float()
    torch.testing.assert_close(all_singular_values(change), expected, rtol=1e-6, atol=1e-9)


def test_small_changes_survive_half_precision() -> None:
    """With all of σ in one factor, fp16 would flush most of it to zero."""
    change = decaying((80, 60), 1.0, seed=1) * 1e-6
    ours = extracted(change, RankChoice("fixed", 4), torch.float16)
    assert ours is not None
    exact = extracted(change, RankChoice("fixed", 4), torch.float32)
    assert exact is not None
    assert ours.lost < exact.lost * 1.001


def test_nothing_changed_gives_nothing_and_no_rank_is_above_the_smaller_side() -> None:
    assert extracted(torch.zeros(5, 4), RankChoice("fixed", 2), torch.float32) is None
    kernel = extracted(torch.eye(6)[:, :2].reshape(6, 2, 1, 1), RankChoice("fixed", 5), torch.float32)
    assert kernel is not None and kernel.rank == 2 and kernel.kept == pytest.approx(1)
    assert {name: tuple(tensor.shape) for name, tensor in kernel.tensors.items()} == {
        "lora_up.weight": (6, 2, 1, 1), "lora_down.weight": (2, 2, 1, 1), "alpha": (),
    }  # fmt: skip
