"""The tensors of a network whose ΔW is a sum of several: exactly, by ranks side by side, or the nearest of a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lora_ext.merge.factored import batch_of_svds, batches, suffices_for
from lora_ext.merge.low_rank_out import factor_tensors, stored_factors
from lora_ext.merge.module_sums import ModuleSum, balanced
from lora_ext.merge.ranks import chosen_rank
from lora_ext.merge.side_by_side import Workspace, side_by_side
from lora_ext.merge.spectrum import dense_svd
from lora_ext.networks.lora import factors_norm
from lora_ext.networks.weight_delta.module import rows

Step = Callable[[int, int], None]
"""(done, total): called between modules; the place where long work ends when it was told to."""


@dataclass(frozen=True)
class MergedModule:
    """One module's tensors by suffix, in fp32 on the CPU; ‖ΔW‖² before and what of it is kept.

    `values` are the singular values that were found, None where none were looked for.
    """

    key: str
    tensors: Mapping[str, Tensor]
    energy: float
    kept: float
    values: Tensor | None = None

    @property
    def is_whole(self) -> bool:
        """Whether ΔW is stored as it is, and not as factors."""
        return "diff" in self.tensors

    @property
    def rank(self) -> int | None:
        """The number of ranks; None where there are no factors."""
        down = self.tensors.get("lora_down.weight")
        return None if down is None else len(down)


def concatenated(sums: Sequence[ModuleSum], device: torch.device, step: Step) -> Iterator[MergedModule]:
    """Every ΔW exactly: the factors of all networks side by side, with scale 1; what has no factors is stored whole."""
    low = [module for module in sums if module.is_low_rank]
    joined = side_by_side(lambda module: _joined(module, device), low, device)
    for done, module in enumerate(sums):
        step(done, len(sums))
        yield next(joined) if module.is_low_rank else _whole(module, device)
    step(len(sums), len(sums))


def approximated(
    sums: Sequence[ModuleSum], rank: int | None, conv_rank: int | None, device: torch.device, step: Step
) -> Iterator[MergedModule]:
    """The nearest ΔW of a rank: `conv_rank` for kernels, the largest rank of its parts where none is given.

    Ranks that a module does not have are left out. Norms and biases, which have no rank, stay exact.
    """
    low = [module for module in sums if module.is_low_rank]
    others = [module for module in sums if not module.is_low_rank]

    workspace = Workspace()

    def nearest(places: Sequence[int]) -> list[MergedModule]:
        group = [low[place] for place in places]
        return list(_nearest_of_factors(group, [rank_of(each, rank, conv_rank) for each in group], device, workspace))

    shapes = [(module.shape[0], module.rank or 0, prod(module.shape[1:])) for module in low]
    done = 0
    for group in side_by_side(nearest, batches(shapes, device), device):
        step(done, len(sums))
        done += len(group)
        yield from group
    for module in others:
        step(done, len(sums))
        done += 1
        yield _nearest(module, rank_of(module, rank, conv_rank), device) if has_rank(module) else _whole(module, device)
    step(done, len(sums))


def has_rank(module: ModuleSum) -> bool:
    """Whether its ΔW is a matrix or a convolution, and not a norm's or a bias alone."""
    return bool(module.weight_parts) and len(module.shape) > 1


def rank_of(module: ModuleSum, rank: int | None, conv_rank: int | None) -> int:
    """The rank that a module is to have at most: as told, or the largest of its parts; of whole ones all ranks."""
    is_kernel = prod(module.shape[2:]) != 1 if has_rank(module) else False
    wanted = conv_rank if is_kernel and conv_rank is not None else rank
    if wanted is not None:
        return wanted
    ranks = [part.delta.rank for part in module.weight_parts]
    known = [each for each in ranks if each is not None]
    return max(known) if len(known) == len(ranks) and known else min(module.shape[0], prod(module.shape[1:]))


def rounding(module: MergedModule, dtype: torch.dtype) -> float:
    """‖rounded ΔW - ΔW‖² as it is to be expected when the tensors, in fp32, are rounded to `dtype`."""
    if dtype == torch.float32:
        return 0.0
    if "diff" in module.tensors:
        return _lost(module.tensors["diff"], dtype).sum().item()
    if "lora_down.weight" not in module.tensors:
        return 0.0
    up, down = rows(module.tensors["lora_up.weight"]).t(), rows(module.tensors["lora_down.weight"])
    by_rank = _lost(up, dtype) * down.square().sum(1) + up.square().sum(1) * _lost(down, dtype)
    return by_rank.sum().item()


def _lost(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of the squares of what rounding takes from each row."""
    return (tensor.to(dtype).float() - tensor).flatten(1).square().sum(1)


def _nearest_of_factors(
    modules: Sequence[ModuleSum], ranks: Sequence[int], device: torch.device, workspace: Workspace
) -> Iterator[MergedModule]:
    """Those of modules of one size."""
    rank, count, shape = modules[0].rank or 0, len(modules), modules[0].shape
    ups = workspace.take("up", (count, shape[0], rank), torch.float32, device)
    downs = workspace.take("down", (count, rank, prod(shape[1:])), torch.float32, device)
    pairs = [module.factors(device, (up, down)) for module, up, down in zip(modules, ups, downs, strict=True)]
    for place, found in batch_of_svds(range(count), pairs, suffices_for(ranks.__getitem__), workspace, (ups, downs)):
        module = modules[place]
        count = chosen_rank(found.values, None, ranks[place], len(found.values))
        squares = found.values.double().square()
        kept = float(squares[:count].sum())
        up, down = found.halves(torch.arange(count, device=device))
        tensors = stored_factors(up, down, module.shape) | _bias(module, device)
        yield MergedModule(module.key, _on_cpu(tensors), float(squares.sum()), kept, found.values.float().cpu())


def _joined(module: ModuleSum, device: torch.device) -> MergedModule:
    up, down = balanced(*module.factors(device))
    energy = float(factors_norm(down, up)) ** 2
    tensors = stored_factors(up, down, module.shape) | _bias(module, device)
    return MergedModule(module.key, _on_cpu(tensors), energy, energy)


def _nearest(module: ModuleSum, rank: int, device: torch.device) -> MergedModule:
    whole = module.dense(device)
    energy = float(whole.double().square().sum())
    svd = dense_svd(rows(whole), min(rank, *rows(whole).shape))
    kept = max(energy - svd.lost**2, 0.0)
    tensors = factor_tensors(svd, module.shape) | _bias(module, device)
    return MergedModule(module.key, _on_cpu(tensors), energy, kept, svd.values.cpu())


def _whole(module: ModuleSum, device: torch.device) -> MergedModule:
    bias, names = module.bias(device), ("w_norm", "b_norm") if module.is_norm else ("diff", "diff_b")
    tensors = {} if bias is None else {names[1]: bias}
    energy = 0.0
    if module.weight_parts:
        whole = tensors[names[0]] = module.dense(device)
        energy = float(whole.double().square().sum())
    return MergedModule(module.key, _on_cpu(tensors), energy, energy)


def _bias(module: ModuleSum, device: torch.device) -> dict[str, Tensor]:
    """The bias of a module that has factors; their scale is 1."""
    bias = module.bias(device)
    return {} if bias is None else {"lora_up.bias": bias.cpu()}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {suffix: tensor.cpu().contiguous() for suffix, tensor in tensors.items()}
