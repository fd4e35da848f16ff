"""The networks that a prompt names, in the checkpoint's weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lora_ext.apply.block_weights import BlockWeights
from lora_ext.apply.tags import LoraTag
from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.networks.file import model_hash, read_network
from lora_ext.networks.library import Identity, NetworkLibrary, identity
from lora_ext.networks.weight_delta import (
    LowRankFactors,
    UnsupportedNetworkError,
    exact_matmul,
    low_rank_factors,
)
from lora_ext.protocols import UserError

OWNER = "the networks of the prompt"
FILES_IN_MEMORY = 8

_TEXT_PREFIX = "lora_te"
_HASH_DIGITS = 12
_BLOCK = 2**19  # weights: 2 MB
_THIN = 32  # ranks up to which memory takes longer than arithmetic


@dataclass(frozen=True)
class _Wanted:
    """One file with the sum of what its tags ask for."""

    name: str
    file: Identity
    te: float
    unet: float
    dyn: int | None
    lbw: BlockWeights | None

    def multiplier(self, key: str, architecture: Architecture) -> float:
        """What one module's ΔW is multiplied by. Raises UserError where the block weights are for other checkpoints."""
        whole = self.te if key.startswith(_TEXT_PREFIX) else self.unet
        return whole if self.lbw is None else whole * self.lbw.multiplier(key, architecture)


@dataclass
class _Loaded:
    """A file's factors by module key, and its hash."""

    factors: dict[str, LowRankFactors]
    hash: str


@dataclass
class _Applied:
    """What is in the weights, and what was said when it was put there."""

    wanted: list[_Wanted]
    revision: int
    messages: list[str]
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Share:
    """One network's part in one weight."""

    factors: LowRankFactors
    multiplier: float
    dyn: int | None


class ActiveNetworks:
    """Puts the networks of a prompt's tags into the weights of one checkpoint, through the ledger."""

    def __init__(self, checkpoint: Checkpoint, ledger: PatchLedger, library: NetworkLibrary) -> None:
        self._checkpoint = checkpoint
        self._ledger = ledger
        self._library = library
        self._parameters: dict[str, nn.Parameter] | None = None
        self._files: OrderedDict[Identity, _Loaded] = OrderedDict()
        self._applied: _Applied | None = None

    def activate(self, tags: Sequence[LoraTag]) -> list[str]:
        """Make the weights W₀ + Σ multiplier·ΔW of exactly these tags; returns what a person should know.

        Unknown names, files that cannot be applied, and networks for another kind of checkpoint are left out and
        reported; the others are applied. The same name twice adds up, a multiplier of 0 leaves a part out. Files,
        weights and multipliers that are in place already are not touched.
        """
        wanted, messages = self._resolve(tags)
        applied = self._applied
        if applied is None or applied.wanted != wanted or applied.revision != self._ledger.revision:
            applied = self._applied = self._apply(wanted)
        return [*messages, *applied.messages]

    def deactivate(self) -> None:
        """Restore the weights bit for bit."""
        self._ledger.restore(OWNER)
        self._applied = None

    def hashes(self) -> dict[str, str]:
        """What "Lora hashes" in the infotext holds: the name in the tag → first 12 digits of the file's hash."""
        return dict(self._applied.hashes) if self._applied else {}

    def _resolve(self, tags: Sequence[LoraTag]) -> tuple[list[_Wanted], list[str]]:
        """Files of the tags with their multipliers summed up, without those that come to nothing."""
        messages: list[str] = []
        found: dict[Hashable, _Wanted] = {}
        for tag in tags:
            try:
                path = self._library.find(tag.name, tag.epoch)
            except UserError as error:
                messages.append(f"{tag.text()}: {error}")
                continue
            file = identity(path) if path else None
            if file is None:
                folders = ", ".join(str(folder) for folder in self._library.folders)
                messages.append(f"{tag.text()}: there is no network of this name in {folders}")
                continue
            key = (file, tag.dyn, tag.lbw)
            name = tag.name if tag.epoch is None else file[0].stem
            before = found.get(key, _Wanted(name, file, 0.0, 0.0, tag.dyn, tag.lbw))
            te, unet = before.te + tag.te, before.unet + tag.unet_multiplier
            found[key] = replace(before, te=te, unet=unet)
        return [each for each in found.values() if each.te or each.unet], list(dict.fromkeys(messages))

    def _apply(self, wanted: Sequence[_Wanted]) -> _Applied:
        messages: list[str] = []
        hashes: dict[str, str] = {}
        shares: dict[nn.Parameter, list[_Share]] = {}
        for network in wanted:
            try:
                loaded = self._load(network.file)
                matched, unmatched = self._match(loaded.factors)
                multipliers = {key: network.multiplier(key, self._checkpoint.architecture) for key in matched}
            except UserError as error:
                messages.append(f"{network.name} is left out: {error}")
                continue
            if unmatched:
                messages.append(_unmatched_message(network.name, unmatched, len(matched)))
            if matched:
                hashes[_infotext_name(network.name)] = loaded.hash[:_HASH_DIGITS]
            for key, parameter in matched.items():
                if multipliers[key]:
                    share = _Share(loaded.factors[key], multipliers[key], network.dyn)
                    shares.setdefault(parameter, []).append(share)
        if shares:
            self._ledger.patch(
                OWNER, {parameter: _LowRankDelta(parameter, parts) for parameter, parts in shares.items()}
            )
        else:
            self._ledger.restore(OWNER)
        return _Applied(list(wanted), self._ledger.revision, messages, hashes)

    def _load(self, file: Identity) -> _Loaded:
        """A file's factors, kept for the next time. Raises UserError where it cannot be read or applied."""
        if file not in self._files:
            content = read_network(file[0])
            if not content.modules:
                raise UserError(f"{file[0]} holds no tensors")
            self._files[file] = _Loaded(_factors_of(content.modules), model_hash(file[0]))
            while len(self._files) > FILES_IN_MEMORY:
                self._files.popitem(last=False)
        self._files.move_to_end(file)
        return self._files[file]

    def _match(self, factors: Mapping[str, LowRankFactors]) -> tuple[dict[str, nn.Parameter], list[str]]:
        """(weights by key, keys that the checkpoint does not have); UserError where a weight has another shape."""
        parameters = self._weights()
        matched = {key: parameters[key] for key in factors if key in parameters}
        misfits = [key for key, weight in matched.items() if not _fits(factors[key], weight)]
        if misfits:
            key = misfits[0]
            raise UserError(
                f"it was made for another kind of checkpoint than {self._checkpoint.name} "
                f"({self._checkpoint.architecture}): {len(misfits)} of {len(factors)} modules have other sizes, {key} "
                f"{factors[key].shape} instead of {tuple(matched[key].shape)}"
            )
        return matched, [key for key in factors if key not in parameters]

    def _weights(self) -> dict[str, nn.Parameter]:
        if self._parameters is None:
            self._parameters = checkpoint_weights(self._checkpoint)
        return self._parameters


def _factors_of(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, LowRankFactors]:
    """Factors of every module; one module of an unsupported kind makes the whole file unsupported."""
    factors: dict[str, LowRankFactors] = {}
    for key, tensors in modules.items():
        try:
            factors[key] = low_rank_factors(tensors)
        except UnsupportedNetworkError as error:
            raise UnsupportedNetworkError(f"{key}: {error}") from error
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    return factors


def _fits(factors: LowRankFactors, weight: nn.Parameter) -> bool:
    """Whether ΔW has the weight's shape, 1×1 convolutions and linear layers being the same."""
    columns = weight[0].numel()
    return (factors.up.shape[0], factors.down.shape[1]) == (weight.shape[0], columns)


class _LowRankDelta:
    """Σ multiplier·scale·up @ down of all networks in one product: [s₁·up₁ | s₂·up₂] @ [down₁; down₂]."""

    def __init__(self, parameter: nn.Parameter, shares: Sequence[_Share]) -> None:
        self._parameter, self._shares = parameter, shares

    def __call__(self) -> Tensor:
        up, down = self._factors()
        with exact_matmul():
            return up @ down  # (out, Σ rank) @ (Σ rank, in·kh·kw)

    def add_to(self, base: Tensor, out: Tensor) -> None:
        """Write base + ΔW to `out` in one pass over the weight.

        On a processor, `addmm` copies base first and adds to the copy: block by block, its cache still holds that.
        """
        up, down = self._factors()
        rows, columns = up.shape[0], down.shape[1]
        base, out = base.view(rows, columns), out.view(rows, columns)
        in_blocks = base.device.type == "cpu" and up.shape[1] <= _THIN
        step = max(1, _BLOCK // columns) if in_blocks else rows
        with exact_matmul():
            for first in range(0, rows, step):
                block = slice(first, first + step)
                torch.addmm(base[block], up[block], down, out=out[block])

    def _factors(self) -> tuple[Tensor, Tensor]:
        device = self._parameter.device
        ups, downs = [], []
        for share in self._shares:
            strength = share.factors.scale * share.multiplier
            ups.append(share.factors.up[:, : share.dyn].to(device, torch.float32) * strength)
            downs.append(share.factors.down[: share.dyn].to(device, torch.float32))
        return _joined(ups, 1), _joined(downs, 0)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _unmatched_message(name: str, unmatched: Sequence[str], matched: int) -> str:
    first = ", ".join(unmatched[:3]) + (", …" if len(unmatched) > 3 else "")
    if not matched:
        return f"{name} is left out: the checkpoint has none of its {len(unmatched)} modules ({first})"
    return f"{name}: the checkpoint does not have {len(unmatched)} of its {matched + len(unmatched)} modules ({first})"


def _infotext_name(name: str) -> str:
    return name.replace(":", "").replace(",", "")
