"""What resizing knows of a network: each module's singular values, and what of the file stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from lora_ext.merge.factored import FactoredSvd, Suffices, factored_svds
from lora_ext.merge.layer_shapes import layer_shape
from lora_ext.merge.low_rank_out import factor_outlines, factor_tensors, lengths_column, stored_factors
from lora_ext.merge.spectrum import Svd, dense_svd
from lora_ext.networks.formats import EMBEDDING, NetworkModules
from lora_ext.networks.weight_delta import LowRankFactors, ModuleDelta, module_deltas
from lora_ext.networks.weight_delta.decomposed import SUFFIX as DORA
from lora_ext.networks.weight_delta.low_rank import BIAS_SUFFIX as _BIAS
from lora_ext.protocols import UserError

Shapes = Mapping[str, Sequence[int]]
"""Module key → shape of the weight in a checkpoint."""


_PROPORTIONAL = (
    "lora_up.weight", _BIAS, "bias_values", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", "diff_b", "w_norm", "b_norm"
)  # fmt: skip
"""The tensors to multiply where a change that stays is multiplied: one of each product."""


@dataclass(frozen=True)
class ModuleSpectrum:
    """The singular values (k,) of a module's ΔW / scale, in fp64 on the CPU, and how to get the first of its vectors.

    `energy` is the sum of the squares of all of them, also of those that are not in `values`. `extra` are tensors by
    suffix that go beside the factors: lengths of DoRA, a bias. `algorithm` and `rank` are the file's, None where it has
    no rank. `cut` makes ΔW again where it is not `factored`.
    """

    key: str
    algorithm: str
    values: Tensor
    energy: float
    scale: float
    shape: tuple[int, ...]
    rank: int | None
    cut: Callable[[int], Svd]
    factored: FactoredSvd | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out, in·kh·kw)."""
        return self.shape[0], prod(self.shape[1:])

    @property
    def scaled_values(self) -> Tensor:
        """The singular values of ΔW itself."""
        return self.values * abs(self.scale)

    def kept(self, places: Tensor) -> float:
        """The share of ‖ΔW‖² in the singular values at these places; 1 where there is nothing to lose."""
        return min(float(self.values[places].square().sum()) / self.energy, 1.0) if self.energy else 1.0

    def tensors(self, places: Tensor, rescale: float = 1.0) -> dict[str, Tensor]:
        """The module's tensors by suffix, on the CPU, with the singular values at these places alone."""
        if self.factored is not None:
            chosen = places.to(self.factored.values.device)
            made = stored_factors(*self.factored.halves(chosen, rescale), self.shape, self.scale)
        else:
            svd = self.cut(int(places.max()) + 1)
            chosen = places.to(svd.values.device)
            picked = Svd(svd.left[:, chosen], svd.values[chosen] * rescale, svd.right[chosen])
            made = factor_tensors(picked, self.shape, self.scale)
        return {name: tensor.cpu() for name, tensor in made.items()} | {
            name: tensor.float() * rescale if name == _BIAS else tensor for name, tensor in self.extra.items()
        }

    def outline(self, rank: int) -> dict[str, Tensor]:
        """The names and shapes of `tensors` for a rank, without values except alpha's."""
        return factor_outlines(self.shape, rank, self.scale) | self.extra


@dataclass(frozen=True)
class NetworkSpectrum:
    """A network's modules with their singular values; by key and suffix what has none; other tensors by name."""

    modules: list[ModuleSpectrum]
    kept: dict[str, dict[str, Tensor]]
    others: dict[str, Tensor]


def resizable(network: NetworkModules) -> dict[str, ModuleDelta]:
    """What the modules of a network do that have singular values, by key; of DoRA what is done before the lengths.

    Raises UserError, naming the module, where tensors are damaged, or where the change depends on the weight.
    """
    deltas = module_deltas({key: _without_lengths(module) for key, module in network.modules.items()})
    for key, delta in deltas.items():
        if delta.needs_weight:
            raise UserError(
                f"{key}: {delta.algorithm} changes a weight by what it is, so that it has no rank of its own; merge it "
                "into a checkpoint, and extract a network of the wanted rank from that"
            )
    return {
        key: delta
        for key, delta in deltas.items()
        if "weight" in delta.parameters and len(delta.shape_for(())) in (2, 4)
    }


def network_spectrum(
    network: NetworkModules,
    tensors: Mapping[str, Tensor],
    chosen: Mapping[str, ModuleDelta],
    device: torch.device,
    step: Callable[[int, int], None],
    rank_of: Callable[[Sequence[int]], int | None] | None = None,
    weights: Shapes | None = None,
    base: str = "",
    suffices: Callable[[Sequence[int], Tensor, Tensor], bool] | None = None,
) -> NetworkSpectrum:
    """The singular values of `chosen` modules of a file that is read as `network`; it stores `tensors` by name.

    `rank_of` tells the only rank that is wanted of a weight's shape, where there is one: that saves work on modules
    without factors. `weights` are the checkpoint's shapes where it is known, `base` says what kind it is of where not.
    `suffices` tells of a weight's shape, its singular values, and how far they may be off, whether they need not be
    more exact.
    """
    kept = {key: dict(module) for key, module in network.modules.items() if key not in chosen}
    factored = {key: delta.low_rank for key, delta in chosen.items() if delta.low_rank is not None}
    found: dict[str, ModuleSpectrum] = {}
    for key, spectrum in _factored(factored, device, suffices):
        found[key] = spectrum
        step(len(found), len(chosen))
    for key in (key for key in chosen if key not in factored):
        found[key] = _dense(key, chosen[key], device, rank_of, weights or {}, base)
        step(len(found), len(chosen))
    modules = [_with_extra(found[key], chosen[key], network.modules[key]) for key in chosen]
    return NetworkSpectrum(modules, kept, _others(network, tensors))


def multiplied(key: str, tensors: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The tensors of a module whose change is `factor` times theirs; UserError for DoRA, which has no such."""
    if factor == 1:
        return tensors
    if DORA in tensors:
        raise UserError(f"{key} is a DoRA, which cannot be multiplied; leave rescale out")
    return {name: tensor.float() * factor if name in _PROPORTIONAL else tensor for name, tensor in tensors.items()}


def _without_lengths(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {suffix: tensor for suffix, tensor in tensors.items() if suffix != DORA}


def _factored(
    factors: Mapping[str, LowRankFactors],
    device: torch.device,
    suffices: Callable[[Sequence[int], Tensor, Tensor], bool] | None,
) -> Iterable[tuple[str, ModuleSpectrum]]:
    keys = list(factors)
    pairs = [(factors[key].up, factors[key].down) for key in keys]
    by_place: Suffices | None = None
    if suffices is not None:

        def by_place(place: int, values: Tensor, off: Tensor) -> bool:
            return suffices(factors[keys[place]].shape, values, off)

    for place, svd in factored_svds(pairs, device, by_place):
        key, parts = keys[place], factors[keys[place]]
        values = svd.values.cpu()
        energy = float(values.square().sum())
        yield (
            key,
            ModuleSpectrum(key, "LoRA", values, energy, parts.scale, parts.shape, parts.up.shape[1], svd.cut, svd),
        )


def _dense(
    key: str,
    delta: ModuleDelta,
    device: torch.device,
    rank_of: Callable[[Sequence[int]], int | None] | None,
    weights: Shapes,
    base: str,
) -> ModuleSpectrum:
    """ΔW is made, and again for the vectors: they would fill the memory until all ranks are chosen."""
    flat = delta.shape_for(())
    shape = _shape(key, flat, weights.get(key), base)
    matrix = flat[0], prod(flat[1:])

    def made() -> Tensor:
        return delta.delta(torch.empty(1, device=device).expand(flat)).reshape(matrix)

    wanted = None if rank_of is None else rank_of(shape)
    if wanted is not None:
        svd = dense_svd(made(), wanted)
        values = svd.values.double().cpu()
        energy = float(values.square().sum()) + svd.lost**2
        return ModuleSpectrum(
            key, delta.algorithm, values, energy, 1.0, shape, delta.rank, lambda rank: _first(svd, rank)
        )
    values = torch.linalg.svdvals(made()).double().cpu()
    energy = float(values.square().sum())
    return ModuleSpectrum(
        key, delta.algorithm, values, energy, 1.0, shape, delta.rank, lambda rank: dense_svd(made(), rank)
    )


def _first(svd: Svd, rank: int) -> Svd:
    return Svd(svd.left[:, :rank], svd.values[:rank], svd.right[:rank])


def _shape(key: str, flat: tuple[int, ...], weight: Sequence[int] | None, base: str) -> tuple[int, ...]:
    """The weight's shape: the checkpoint's where it is there, or else by the layer's name."""
    if weight is not None and prod(weight) == prod(flat):
        return tuple(weight)
    return layer_shape(key, flat, base)


def _with_extra(spectrum: ModuleSpectrum, delta: ModuleDelta, tensors: Mapping[str, Tensor]) -> ModuleSpectrum:
    """With the tensors that stand beside factors. The scale stays, so that a LoRA's bias does too."""
    extra = {DORA: lengths_column(tensors[DORA], len(spectrum.shape))} if DORA in tensors else {}
    if delta.bias is not None:
        extra[_BIAS] = tensors.get(_BIAS, delta.bias)
    return replace(spectrum, extra=extra)


def _others(network: NetworkModules, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings and what nobody understands, by the names that they have."""
    embeddings = {
        f"{EMBEDDING}{name}.{part}": tensor
        for name, parts in network.embeddings.items()
        for part, tensor in parts.items()
    }
    return {name: tensors[name] for name in network.unknown} | embeddings
