"""Singular values of ΔW: from its factors, without ever making it; from a matrix, whole or the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.networks.weight_delta import exact_matmul

_BATCH = 2**22  # numbers of all factors that are decomposed at once
_MAX_CONDITION = 1e4  # of down: its Gram matrix has the square of it, and fp64 16 digits
_PIECE, _LARGE_PIECE = 2**16, 2**24  # numbers
_OVERSAMPLE = 16
_MAX_ROUNDS = 40
_LANCZOS_STEPS = 120
_ENOUGH = 1e-5  # gain in one more round, as a share of what is not reached


@dataclass(frozen=True)
class Svd:
    """A matrix as left @ diag(values) @ right: (m, k), (k,) from the largest on, (k, n), in fp32.

    `lost` is the Frobenius norm of what is missing, 0 where all of it is there. Columns of `left` that belong to
    values of zero may be zero.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    lost: float = 0.0


@dataclass(frozen=True)
class FactoredSvd:
    """The singular values (k,) of a product of two factors, in fp64, with what it takes to make the vectors.

    There are as many as the rank of the factors, or as their product can have where that is less.
    """

    values: Tensor
    up: Tensor
    down: Tensor
    left_mix: Tensor
    right_mix: Tensor

    def cut(self, rank: int) -> Svd:
        """The first `rank` singular values with their vectors: the best approximation of that rank."""
        with exact_matmul():
            left = self.up.float() @ self.left_mix[:, :rank]
            right = self.right_mix[:rank] @ self.down.float()
        lost = float(self.values[rank:].square().sum().sqrt())
        return Svd(left, self.values[:rank].float(), right, lost)


def factored_svd(up: Tensor, down: Tensor) -> FactoredSvd:
    """The singular values of up (m, r) @ down (r, n), on their device; accurate to 1e-7 of the largest, and better.

    In O((m + n) r² + r³): no matrix of (m, n) is made.
    """
    [(_, found)] = factored_svds([(up, down)], up.device)
    return found


@torch.no_grad()
def factored_svds(pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[int, FactoredSvd]]:
    """(place in the list, `factored_svd`) of many pairs of factors, those of equal shapes together."""
    by_shape: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for place, (up, down) in enumerate(pairs):
        by_shape.setdefault((up.shape, down.shape), []).append(place)
    for (up_shape, down_shape), places in by_shape.items():
        count = max(1, _BATCH // (up_shape.numel() + down_shape.numel()))
        for start in range(0, len(places), count):
            chosen = places[start : start + count]
            batch = [(pairs[place][0].to(device), pairs[place][1].to(device)) for place in chosen]
            yield from zip(chosen, _decomposed(batch), strict=True)


@torch.no_grad()
def dense_svd(matrix: Tensor, rank: int | None = None) -> Svd:
    """The singular value decomposition of a matrix (m, n) in fp32: thin, or its first `rank` values alone.

    The first few of many are found by block subspace iteration with a fixed random start: until one more round gains
    less than 1e-5 of the energy that is not reached, so that `lost` is the least possible to about 1e-5 of itself.
    """
    matrix = matrix.float()
    smaller = min(matrix.shape)
    if rank is not None and 4 * (rank + _OVERSAMPLE) < smaller:
        return _first_values(matrix, rank)
    with exact_matmul():
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = smaller if rank is None else min(rank, smaller)
    lost = float(values[kept:].double().square().sum().sqrt())
    return Svd(left[:, :kept].clone(), values[:kept].clone(), right[:kept].clone(), lost)  # views keep all of it


def squared_norm(values: Tensor) -> float:
    """Σ x² of fp32 numbers, summed in fp64 piece by piece, so that a processor's cache holds what is widened."""
    pieces = values.flatten().split(_PIECE if values.device.type == "cpu" else _LARGE_PIECE)
    return sum(float(piece.double().square().sum()) for piece in pieces)


@torch.no_grad()
def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value of a matrix (m, n) in fp32, by Lanczos' method until its square changes by 1e-7."""
    count = min(_LANCZOS_STEPS, *matrix.shape)
    basis = matrix.new_empty(count, matrix.shape[1])
    inner = torch.zeros(count, count, dtype=torch.float64)  # the lower half of what matrixᵀ matrix is in the basis
    largest = 0.0
    with exact_matmul():
        vector = _random(1, matrix.shape[0], matrix.device)[0] @ matrix
        for step in range(count if vector.any() else 0):
            basis[step] = vector / vector.norm()
            known = basis[: step + 1]
            image = matrix.mT @ (matrix @ basis[step])
            overlaps = known @ image
            inner[step, : step + 1] = overlaps.cpu()
            before, largest = largest, max(float(torch.linalg.eigvalsh(inner[: step + 1, : step + 1])[-1]), 0.0)
            vector = image - overlaps @ known
            vector = vector - (known @ vector) @ known
            if float(vector.norm()) <= 1e-7 * largest or (step > 8 and largest - before <= 1e-7 * largest):
                break
    return float(largest**0.5)


def _decomposed(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[FactoredSvd]:
    """Pairs of equal shapes, (m, r) and (r, n), each by the Gram matrices where down allows it.

    With down·downᵀ = L Lᵀ, the squares of the singular values are the eigenvalues of Lᵀ upᵀup L. In fp64 that is more
    accurate than any decomposition in fp32, unless the rows of down nearly depend on each other.
    """
    ups = torch.stack([up.double() for up, _ in pairs])
    downs = torch.stack([down.double() for _, down in pairs])
    lower, failed = torch.linalg.cholesky_ex(downs @ downs.mT)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    condition = lower.flatten(1).norm(dim=1) * inverse.flatten(1).norm(dim=1)
    fits = ((failed == 0) & (condition < _MAX_CONDITION)).tolist()  # False too where it is no number
    inner = lower.mT @ (ups.mT @ ups) @ lower
    usable = torch.tensor(fits, device=inner.device)[:, None, None]
    squares, vectors = torch.linalg.eigh(torch.where(usable, inner, identity))
    values = squares.flip(-1).clamp_min(0).sqrt()
    vectors = vectors.flip(-1)
    inverses = torch.where(values > values[:, :1] * 1e-9, 1 / values, 0)
    left_mixes = (lower @ vectors * inverses[:, None]).float()
    right_mixes = (vectors.mT @ inverse).float()
    possible = min(ups.shape[1], downs.shape[2])
    return [
        FactoredSvd(values[place, :possible], *pairs[place], left_mixes[place], right_mixes[place])
        if fit
        else _by_orthogonal_factors(ups[place], downs[place])
        for place, fit in enumerate(fits)
    ]


def _by_orthogonal_factors(up: Tensor, down: Tensor) -> FactoredSvd:
    """Any pair of factors, (m, r) and (r, n) in fp64: QR of both, and the decomposition of the small product."""
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.mT)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    return FactoredSvd(values, left.float(), right.mT.float(), inner_left.float(), inner_right.float())


def _first_values(matrix: Tensor, rank: int) -> Svd:
    start = _random(matrix.shape[1], rank + _OVERSAMPLE, matrix.device)
    energy = squared_norm(matrix)
    with exact_matmul():
        reached = matrix @ start
        captured = 0.0
        for _ in range(_MAX_ROUNDS):
            rows = torch.linalg.qr(matrix.mT @ torch.linalg.qr(reached)[0])[0]
            reached = matrix @ rows
            before, captured = captured, _energy(reached, rank)
            if captured - before <= max(_ENOUGH * (energy - captured), 1e-7 * energy):
                break
        basis = torch.linalg.qr(reached)[0]
        inner, values, right = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
        left, values, right = basis @ inner[:, :rank], values[:rank], right[:rank]
        lost = float(torch.addmm(matrix, left * values, right, alpha=-1).norm())
    return Svd(left, values, right, lost)


def _random(rows: int, columns: int, device: torch.device) -> Tensor:
    """The same normal numbers every time, on every device."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(device)


def _energy(columns: Tensor, rank: int) -> float:
    """The sum of the squares of the first `rank` singular values of a tall matrix."""
    wide = columns.double()
    return float(torch.linalg.eigvalsh(wide.mT @ wide)[-rank:].sum())
