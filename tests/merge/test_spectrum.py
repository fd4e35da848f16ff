"""Singular values of factors and matrices, against torch's dense decomposition in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_ext.merge.factored import factored_svd, factored_svds, suffices_for
from lora_ext.merge.spectrum import Svd, dense_svd, spectral_norm


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(svd: Svd) -> Tensor:
    return (svd.left.double() * svd.values.double()) @ svd.right.double()


def exact_values(up: Tensor, down: Tensor) -> Tensor:
    return torch.linalg.svdvals(up.double() @ down.double())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 40), rank=st.integers(1, 24), seed=st.integers(0, 1000),
    decay=st.floats(0.3, 1.0),
)  # fmt: skip
def test_factors_have_the_singular_values_of_their_product(
    rows: int, columns: int, rank: int, seed: int, decay: float
) -> None:
    up = normal(rows, rank, seed=seed) * decay ** torch.arange(rank)
    down = normal(rank, columns, seed=seed + 1)
    found = factored_svd(up, down)
    wanted = exact_values(up, down)[: min(rank, rows, columns)]
    assert len(found.values) == len(wanted)
    torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-7 * float(wanted[0]))
    whole = up.double() @ down.double()
    assert float((product(found.cut(len(wanted))) - whole).norm()) <= 2e-6 * float(whole.norm())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), kept=st.integers(1, 7))
def test_the_first_values_are_the_best_approximation(seed: int, kept: int) -> None:
    up, down = normal(20, 8, seed=seed), normal(8, 30, seed=seed + 1)
    cut = factored_svd(up, down).cut(kept)
    values = exact_values(up, down)
    least = float(values[kept:].norm())
    assert float((product(cut) - up.double() @ down.double()).norm()) == pytest.approx(least, rel=1e-5)
    assert cut.lost == pytest.approx(least, rel=1e-6)
    torch.testing.assert_close(cut.left.T @ cut.left, torch.eye(kept), rtol=0, atol=1e-5)
    torch.testing.assert_close(cut.right @ cut.right.T, torch.eye(kept), rtol=0, atol=1e-5)


@pytest.mark.parametrize("copies", [1e-9, 0.0])
def test_rows_that_depend_on_each_other_lose_no_accuracy(copies: float) -> None:
    """Concatenated networks are like that; a Gram matrix of them cannot be inverted."""
    once = normal(6, 40)
    down = torch.cat([once, once + copies * normal(6, 40, seed=2)])
    up = normal(30, 12, seed=1)
    found = factored_svd(up, down)
    torch.testing.assert_close(found.values, exact_values(up, down)[:12], rtol=0, atol=1e-6)
    assert float((product(found.cut(6)) - up.double() @ down.double()).norm()) < 5e-5


def test_small_singular_values_are_as_exact_as_large_ones() -> None:
    up = normal(64, 16).double() @ torch.diag(10.0 ** -torch.arange(0, 8, 0.5, dtype=torch.float64))
    down = normal(16, 48, seed=1)
    wanted = exact_values(up.float(), down)[:16]
    assert float(wanted[-1] / wanted[0]) < 1e-7
    torch.testing.assert_close(factored_svd(up.float(), down).values, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("zero", ["up", "down", "both"])
def test_zeros_have_singular_values_of_zero_and_a_product_of_zero(zero: str) -> None:
    up = torch.zeros(12, 4) if zero != "down" else normal(12, 4)
    down = torch.zeros(4, 9) if zero != "up" else normal(4, 9)
    found = factored_svd(up, down)
    assert found.values.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert not product(found.cut(4)).any()


def test_many_pairs_give_what_each_gives_alone() -> None:
    pairs = [(normal(12, 4, seed=n), normal(4, 9 + n % 2, seed=n + 50)) for n in range(6)]
    found = dict(factored_svds(pairs, torch.device("cpu")))
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    for place, (up, down) in enumerate(pairs):
        torch.testing.assert_close(found[place].values, exact_values(up, down)[:4], rtol=1e-9, atol=1e-9)


def test_half_precision_factors_are_decomposed_as_they_are() -> None:
    up, down = normal(12, 4).half(), normal(4, 9, seed=1).bfloat16()
    torch.testing.assert_close(factored_svd(up, down).values, exact_values(up, down)[:4], rtol=1e-9, atol=1e-9)


def test_a_small_matrix_is_decomposed_whole() -> None:
    matrix = normal(10, 14)
    whole, cut = dense_svd(matrix), dense_svd(matrix, 3)
    torch.testing.assert_close(product(whole).float(), matrix)
    assert whole.lost == 0.0
    wanted = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(cut.values, wanted[:3].float())
    assert cut.lost == pytest.approx(float(wanted[3:].norm()), rel=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1, 10.0])
def test_the_first_values_of_a_large_matrix_lose_as_little_as_possible(noise: float) -> None:
    matrix = normal(300, 4) @ normal(4, 200, seed=1) + noise * normal(300, 200, seed=2)
    found = dense_svd(matrix, 4)
    wanted = torch.linalg.svdvals(matrix.double())
    least = float(wanted[4:].norm())
    error = float((product(found) - matrix.double()).norm())
    assert error <= least * (1 + 1e-4) + 1e-6 * float(matrix.norm())
    assert found.lost == pytest.approx(error, rel=1e-3, abs=1e-6 * float(matrix.norm()))
    torch.testing.assert_close(found.values.double(), wanted[:4], rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (120, 160)])
def test_the_spectral_norm_is_the_largest_singular_value(shape: tuple[int, int]) -> None:
    matrix = normal(*shape)
    assert spectral_norm(matrix) == pytest.approx(float(torch.linalg.matrix_norm(matrix.double(), 2)), rel=1e-5)
    assert spectral_norm(torch.zeros(shape)) == 0.0


@settings(max_examples=60, deadline=None)
@example(rows=8, columns=15, rank=3, seed=1, last=1e-5, is_mixed=True)  # the last value becomes zero in fp32
@given(
    rows=st.integers(8, 200), columns=st.integers(8, 200), rank=st.integers(1, 24), seed=st.integers(0, 1000),
    last=st.floats(1e-5, 1.0), is_mixed=st.booleans(),
)  # fmt: skip
def test_in_few_digits_values_are_as_near_as_is_told(
    rows: int, columns: int, rank: int, seed: int, last: float, is_mixed: bool
) -> None:
    up = normal(rows, rank, seed=seed) * last ** (torch.arange(rank) / rank)
    if is_mixed:
        up = up @ torch.linalg.qr(normal(rank, rank, seed=seed + 2))[0]
    down = normal(rank, columns, seed=seed + 1)
    told = {}

    def suffices(place: int, values: Tensor, off: Tensor) -> bool:
        told[place] = values, off
        return True

    list(factored_svds([(up, down)], torch.device("cpu"), suffices))
    for values, off in told.values():
        assert bool(((values - exact_values(up, down)[: len(values)]).abs() <= off).all())


@pytest.mark.parametrize(("kept", "is_exact"), [(1, False), (16, True)])
def test_what_few_digits_do_not_suffice_for_is_decomposed_again(kept: int, is_exact: bool) -> None:
    up, down = normal(64, 16) * 1e-4 ** (torch.arange(16) / 15), normal(16, 48, seed=1)
    wanted = exact_values(up, down)[:16]
    [(_, found)] = factored_svds([(up, down)], torch.device("cpu"), suffices_for(lambda place: kept))
    torch.testing.assert_close(found.values[:kept], wanted[:kept], rtol=1e-4, atol=0)
    assert torch.equal(found.values, factored_svd(up, down).values) == is_exact
    exact = product(factored_svd(up, down).cut(kept))
    assert float((product(found.cut(kept)) - exact).norm()) < 1e-5 * float(exact.norm())


@pytest.mark.parametrize(("rows", "columns", "rank"), [(2600, 32, 2), (2600, 2600, 2), (1280, 320, 8), (1280, 640, 32)])
def test_few_ranks_of_many_rows_are_as_near_as_is_told(rows: int, columns: int, rank: int) -> None:
    up, down = (normal(rows, rank) + 2 * normal(rows, 1, seed=2)).half().float(), normal(rank, columns, seed=1)

    def suffices(place: int, values: Tensor, off: Tensor) -> bool:
        assert bool(((values - exact).abs() <= off).all())
        return True

    exact = factored_svd(up, down).values
    list(factored_svds([(up, down)], torch.device("cpu"), suffices))


def test_numbers_whose_squares_are_too_large_for_fp32_are_decomposed_in_fp64() -> None:
    generator = torch.Generator().manual_seed(7)
    up, down = 1e20 * torch.randn(24, 16, generator=generator), torch.randn(16, 20, generator=generator)
    [(_, found)] = factored_svds([(up, down)], up.device, suffices_for(lambda place: 2))
    wanted = torch.linalg.svdvals(up.double() @ down.double())[:16]
    torch.testing.assert_close(found.values, wanted, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.99, 0.9, 0.7])
def test_no_value_is_further_off_than_is_told(dtype: torch.dtype, decay: float) -> None:
    """Of fp32 throughout, and of fp32 for the Gram matrices alone; what is asked again in fp64 is exact."""
    rank = 48
    pairs = [
        (
            (normal(96, rank, seed=seed) * decay ** torch.arange(rank)).to(dtype),
            normal(rank, 80, seed=seed + 9).to(dtype),
        )
        for seed in range(8)
    ]
    wanted = [exact_values(*pair)[:rank] for pair in pairs]
    told: dict[int, list[Tensor]] = {}

    def never(place: int, values: Tensor, off: Tensor) -> bool:
        assert ((values - wanted[place]).abs() <= off).all()
        told.setdefault(place, []).append(off)
        return False

    for place, found in factored_svds(pairs, torch.device("cpu"), never):
        torch.testing.assert_close(found.values, wanted[place], rtol=0, atol=1e-7 * float(wanted[place][0]))
    assert sorted(told) == list(range(len(pairs)))
    for single, partly in told.values():
        assert 0 < float(partly[0]) < float(single[0]) < 1e-5 * float(wanted[0][0])


def test_halves_are_what_is_cut() -> None:
    up, down = normal(30, 8), normal(8, 20, seed=1)
    found = factored_svd(up, down)
    left, right = found.halves(torch.arange(5))
    torch.testing.assert_close(left @ right, product(found.cut(5)).float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))
    left, right = found.halves(torch.tensor([0, 3]), 2.0)
    whole = found.cut(8)
    wanted = 2 * (whole.left[:, [0, 3]] * whole.values[[0, 3]]) @ whole.right[[0, 3]]
    torch.testing.assert_close(left @ right, wanted, rtol=0, atol=1e-5)
