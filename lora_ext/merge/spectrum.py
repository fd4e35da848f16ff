"""Singular values of matrices: all of them, the first of them, or the largest alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.networks.weight_delta import exact_matmul

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


def halved(values: Tensor) -> tuple[Tensor, Tensor]:
    """What left and right are multiplied by so that each has the roots of the values; of zeros left alone is zero."""
    roots = values.sqrt()
    return roots, torch.where(roots > 0, roots, 1.0)


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
