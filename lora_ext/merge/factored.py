"""Singular values of ΔW from its factors, without ever making it: batches of equal shapes, in as few digits as suffice.

With G = upᵀup and down·downᵀ = L Lᵀ, the squares of the singular values of up @ down are the eigenvalues of Lᵀ G L, and
its eigenvectors make the singular vectors. In fp32 that takes half of the time (on most graphics cards a thirtieth): it
is done in it first, with a bound of what that does to each value. For those pairs that it does not suffice for all
after G and L Lᵀ is done in fp64, and at last everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_ext.merge.side_by_side import Workspace, side_by_side
from lora_ext.merge.spectrum import Svd, halved
from lora_ext.networks.weight_delta import exact_matmul

Suffices = Callable[[int, Tensor, Tensor], bool]
"""(place, singular values (k,) in fp64, at most how far each is off): whether that is exact enough."""

_BATCH, _LARGE_BATCH = 2**20, 2**22  # numbers of all factors that are decomposed at once
_MAX_CONDITION = 1e4  # of down: its Gram matrix has the square of it, and fp64 16 digits
_MAX_CONDITION_SINGLE = 30.0
_LEAST_RANK = 16  # of fewer ranks fp32's errors are larger beside the bound, and fp64 takes no time
_MOST_OFF, _MOST_TURNED = 1e-2, 4e-4  # a tenth to a fifth of it is usual
_PIECE = 2048  # rows of which the products are summed in fp32
_UNIT, _UNIT_OF_FEW = 9e-7, 4e-6
"""What fp32 does to the squares of the singular values of factors of r ranks, as a share of the bound of ‖up‖²‖down‖²:
the first, and the second over r. A third more than was seen of 16 to 256 ranks and 8 to 10,240 rows, graded, mixed,
even, all near one direction, and stored in fp16 and bf16."""

_OF_GRAMS = 0.45
"""The share of that where fp32 has made the Gram matrices alone: a half more than was seen of the same."""


@dataclass(frozen=True)
class FactoredSvd:
    """The singular values (k,) of a product of two factors, in fp64, and what it takes to make the vectors.

    There are as many as the rank of the factors, or as their product can have where that is less. up (m, r) and down
    (r, n) are multiplied by the `mixes` (r, j) and (j, r), in fp32 and with at least as many vectors.
    """

    values: Tensor
    up: Tensor
    down: Tensor
    mixes: tuple[Tensor, Tensor]

    def cut(self, rank: int) -> Svd:
        """The first `rank` singular values with their vectors: the best approximation of that rank."""
        with exact_matmul():
            left = self.up.float() @ self.mixes[0][:, :rank]
            right = self.mixes[1][:rank] @ self.down.float()
        lost = float(self.values[rank:].square().sum().sqrt())
        return Svd(left, self.values[:rank].float(), right, lost)

    def halves(self, places: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """up (m, k) and down (k, n) in fp32 of the singular values at these places, multiplied, each with their roots.

        Where a value is zero, up alone is.
        """
        of_left, of_right = halved((self.values[places] * factor).float())
        left_mix = self.mixes[0][:, places] * of_left
        right_mix = self.mixes[1][places] * of_right[:, None]
        with exact_matmul():
            return self.up.float() @ left_mix, right_mix @ self.down.float()


def factored_svd(up: Tensor, down: Tensor) -> FactoredSvd:
    """The singular values of up (m, r) @ down (r, n), on their device; accurate to 1e-7 of the largest, and better.

    In O((m + n) r² + r³): no matrix of (m, n) is made.
    """
    [(_, found)] = factored_svds([(up, down)], up.device)
    return found


def factored_svds(
    pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device, suffices: Suffices | None = None
) -> Iterator[tuple[int, FactoredSvd]]:
    """(place in the list, `factored_svd`) of many pairs of factors, those of equal shapes together.

    With `suffices` values may be as far off as it allows, which takes half of the time.
    """

    workspace = Workspace()

    def decomposed(places: Sequence[int]) -> list[tuple[int, FactoredSvd]]:
        batch = [(pairs[place][0].to(device), pairs[place][1].to(device)) for place in places]
        return list(batch_of_svds(places, batch, suffices, workspace))

    shapes = [(len(up), *down.shape) for up, down in pairs]
    for found in side_by_side(decomposed, batches(shapes, device), device):
        yield from found


def batches(shapes: Sequence[tuple[int, int, int]], device: torch.device) -> Iterator[list[int]]:
    """The places of pairs of factors of equal (m, r, n), as many together as a processor's cache holds well."""
    by_shape: dict[tuple[int, int, int], list[int]] = {}
    for place, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(place)
    most = _BATCH if device.type == "cpu" else _LARGE_BATCH
    for (rows, rank, columns), places in by_shape.items():
        count = max(1, most // max(rank * (rows + columns), 1))
        yield from (places[start : start + count] for start in range(0, len(places), count))


def cut_is_exact(values: Tensor, off: Tensor, rank: int) -> bool:
    """Whether the first `rank` singular values (k,) are good to 1e-2, and their product to 4e-4, at the worst.

    Each value may be `off`. Vectors turn towards those that are cut off by that over the distance to their values.
    """
    last = values[rank - 1]
    if not off[rank - 1] <= _MOST_OFF * last:
        return False
    if rank == len(values):
        return True
    squares_off = off[rank - 1] * (2 * last - off[rank - 1])
    turned = squares_off * last / (last.square() - values[rank].square())
    return bool(turned <= _MOST_TURNED * values[:rank].norm())


def suffices_for(rank_of: Callable[[int], int]) -> Suffices:
    """Exact enough for the first `rank_of(place)` singular values and their product."""
    return lambda place, values, off: cut_is_exact(values, off, min(rank_of(place), len(values)))


@torch.no_grad()
def batch_of_svds(
    places: Sequence[int],
    pairs: Sequence[tuple[Tensor, Tensor]],
    suffices: Suffices | None,
    workspace: Workspace,
    stacked: tuple[Tensor, Tensor] | None = None,
) -> Iterator[tuple[int, FactoredSvd]]:
    """(place, `factored_svd`) of pairs of equal shapes on one device, whose places are given to `suffices`.

    In fp32 where that suffices, partly or wholly in fp64 where down allows it, by orthogonal factors else. `stacked`
    are all ups and all downs in fp32 where they are at hand.
    """
    left = list(range(len(pairs)))
    found: Sequence[_Found | None]
    with exact_matmul():
        if suffices is not None and len(pairs[0][1]) >= _LEAST_RANK:
            grams = _Grams.of(stacked or _stacked(pairs, torch.float32, workspace))
            for dtype in (torch.float32, torch.float64):
                found = _decomposed([pairs[number] for number in left], grams.some(left).to(dtype))
                missed = []
                for number, each in zip(left, found, strict=True):
                    if each is not None and suffices(places[number], each.svd.values, each.off):
                        yield places[number], each.svd
                    else:
                        missed.append(number)
                left = missed
                if not left:
                    return
        again = [pairs[number] for number in left]
        found = _decomposed(again, _Grams.of(_stacked(again, torch.float64, workspace)))
        for number, pair, each in zip(left, again, found, strict=True):
            yield places[number], _by_orthogonal_factors(*pair) if each is None else each.svd


@dataclass(frozen=True)
class _Found:
    """A decomposition, and how far its values (k,) may be off for the number formats on the way."""

    svd: FactoredSvd
    off: Tensor


@dataclass(frozen=True)
class _Grams:
    """The Gram matrices (b, r, r) of ups and downs, and the number format of which they were made."""

    up: Tensor
    down: Tensor
    made_in: torch.dtype

    @staticmethod
    def of(stacked: tuple[Tensor, Tensor]) -> _Grams:
        """Those of all ups (b, m, r) and all downs (b, r, n)."""
        ups, downs = stacked
        return _Grams(_gram(ups), _gram(downs.mT), ups.dtype)

    def some(self, numbers: Sequence[int]) -> _Grams:
        """Some of them."""
        return self if len(numbers) == len(self.up) else replace(self, up=self.up[numbers], down=self.down[numbers])

    def to(self, dtype: torch.dtype) -> _Grams:
        """The same in a number format to go on with."""
        return replace(self, up=self.up.to(dtype), down=self.down.to(dtype))

    @property
    def unit(self) -> float:
        """How far the squares of the singular values may be off, as a share of the bound of ‖up‖²‖down‖²."""
        if self.made_in == torch.float64:
            return 0.0
        return (_UNIT + _UNIT_OF_FEW / self.up.shape[-1]) * (1 if self.up.dtype == torch.float32 else _OF_GRAMS)


def _decomposed(pairs: Sequence[tuple[Tensor, Tensor]], grams: _Grams) -> list[_Found | None]:
    """The decompositions from Gram matrices; None where the rows of down nearly depend on each other."""
    lengths, up_gram, down_gram = _evened(grams.up, grams.down)
    bound = _largest(up_gram) * _largest(down_gram)
    lower, failed = torch.linalg.cholesky_ex(down_gram)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    has_numbers = up_gram.flatten(1).isfinite().all(1)
    fits = ((failed == 0) & has_numbers & _is_independent(lower, identity, grams.made_in)).tolist()
    usable = torch.tensor(fits, device=lower.device)[:, None, None]
    squares, vectors = torch.linalg.eigh(torch.where(usable, lower.mT @ up_gram @ lower, identity))
    values = squares.double().flip(-1).clamp_min(0).sqrt()
    lower = lengths[:, :, None] * lower
    inverses = torch.where(values > values[:, :1] * 1e-9, 1 / values, 0).to(vectors.dtype)
    left_mixes = (lower @ vectors.flip(-1) * inverses[:, None]).float()
    right_mixes = torch.linalg.solve_triangular(lower.mT, vectors.flip(-1), upper=True).mT.float()
    squares_off = grams.unit * bound.double()[:, None]
    below = values - (values.square() - squares_off).clamp_min(0).sqrt()
    off = torch.maximum(below, (values.square() + squares_off).sqrt() - values)
    found: list[_Found | None] = []
    for number, ((up, down), fit) in enumerate(zip(pairs, fits, strict=True)):
        possible = min(up.shape[0], down.shape[1])
        svd = FactoredSvd(values[number, :possible], up, down, (left_mixes[number], right_mixes[number]))
        found.append(_Found(svd, off[number, :possible]) if fit else None)
    return found


def _evened(up_gram: Tensor, down_gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lengths of down's rows (b, r), and both Gram matrices with all rows of down as long as 1, and up the longer.

    What a network learnt least is in its shortest rows; decomposing down is not left to them then.
    """
    lengths = down_gram.diagonal(dim1=-2, dim2=-1).sqrt()
    lengths = torch.where(lengths > 0, lengths, 1)
    products = lengths[:, :, None] * lengths[:, None]
    return lengths, up_gram * products, down_gram / products


def _is_independent(lower: Tensor, identity: Tensor, made_in: torch.dtype) -> Tensor:
    """Whether the rows of down, of whose Gram matrices these are the triangular factors, can be told apart (b,).

    In fp64 by the condition; of fp32, where whatever is doubtful is decomposed again, by what is on the diagonal.
    """
    if made_in == torch.float32:
        sizes = lower.diagonal(dim1=-2, dim2=-1)
        return sizes.amax(-1) < _MAX_CONDITION_SINGLE * sizes.amin(-1)
    inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return lower.flatten(1).norm(dim=1) * inverse.flatten(1).norm(dim=1) < _MAX_CONDITION  # False where it is no number


def _by_orthogonal_factors(up: Tensor, down: Tensor) -> FactoredSvd:
    """Any pair of factors, (m, r) and (r, n): QR of both in fp64, and the decomposition of the small product."""
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().mT)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    return FactoredSvd(values, left.float(), right.mT.float(), (inner_left.float(), inner_right.float()))


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """All ups (b, m, r) and all downs (b, r, n)."""
    (up, down), count = pairs[0], len(pairs)
    ups = workspace.take(f"up {dtype}", (count, *up.shape), dtype, up.device)
    downs = workspace.take(f"down {dtype}", (count, *down.shape), dtype, down.device)
    for number, pair in enumerate(pairs):
        ups[number].copy_(pair[0])
        downs[number].copy_(pair[1])
    return ups, downs


def _gram(matrices: Tensor) -> Tensor:
    """matrixᵀ matrix of each (m, r), of some rows at a time."""
    pieces = matrices.split(_PIECE, dim=1)
    total = pieces[0].mT @ pieces[0]
    for piece in pieces[1:]:
        total += piece.mT @ piece
    return total


def _largest(symmetric: Tensor) -> Tensor:
    """A bound of the largest eigenvalue of each positive matrix (b, r, r), that of its fourth power's norm."""
    traces = symmetric.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(symmetric.dtype).tiny)
    fourth = torch.linalg.matrix_power(symmetric / traces[:, None, None], 4)
    return traces * fourth.flatten(1).norm(dim=1) ** 0.25
