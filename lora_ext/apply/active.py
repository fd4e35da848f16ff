"""The networks that a prompt names, in the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lora_ext.apply.loaded_files import LoadedFiles, LoadedNetwork
from lora_ext.apply.tags import LoraTag
from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.checkpoint.weight_views import WeightView
from lora_ext.networks.library import Identity, NetworkLibrary, identity
from lora_ext.networks.masked_forward import MaskedForwards
from lora_ext.networks.matching import match, unknown_message, unmatched_message
from lora_ext.networks.region_mask import RegionMask, is_spatial
from lora_ext.networks.weight_patch import Share, ShareError, patches_of
from lora_ext.protocols import UserError

OWNER = "the networks of the prompt"

Embeddings = dict[str, tuple[str, Mapping[str, Tensor]]]
"""Name in prompts → the network that brought it, and its tensors by their names in the file."""

_TEXT_PREFIX = "lora_te"
_HASH_DIGITS = 12


@dataclass(frozen=True)
class _Wanted:
    """One file with all tags that ask for it."""

    file: Identity
    dyn: int | None
    tags: tuple[LoraTag, ...]

    @property
    def name(self) -> str:
        """What the first tag calls it; an epoch goes by its file."""
        return self.tags[0].name if self.tags[0].epoch is None else self.file[0].stem

    def multipliers(self, key: str, architecture: Architecture) -> dict[RegionMask | None, float]:
        """Mask (None is everywhere) → the sum of what its tags ask for one module there, where that is not 0.

        Raises UserError where block weights are for other checkpoints.
        """
        is_text = key.startswith(_TEXT_PREFIX)
        found: dict[RegionMask | None, float] = {}
        for tag in self.tags:
            strength = tag.te if is_text else tag.unet_multiplier
            if strength:
                mask = tag.region if is_spatial(key) else None
                found[mask] = found.get(mask, 0.0) + strength * tag.block_multiplier(key, architecture)
        return {mask: multiplier for mask, multiplier in found.items() if multiplier}


@dataclass
class _Applied:
    """What is in the weights, and what was said when it was put there."""

    wanted: list[_Wanted]
    messages: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    embeddings: Embeddings = field(default_factory=dict)
    revision: int = -1
    is_complete: bool = True


class ActiveNetworks:
    """Puts the networks of a prompt's tags into the weights of one checkpoint, through the ledger."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        ledger: PatchLedger,
        library: NetworkLibrary,
        files: LoadedFiles | None = None,
    ) -> None:
        """`files` keeps what was read; several checkpoints may share it."""
        self._checkpoint = checkpoint
        self._ledger = ledger
        self._library = library
        self._weights: dict[str, WeightView] | None = None
        self._files = LoadedFiles() if files is None else files
        self._applied: _Applied | None = None

    def activate(self, tags: Sequence[LoraTag]) -> list[str]:
        """Make the weights W₀ + Σ multiplier·ΔW of exactly these tags; returns what a person should know.

        Unknown names, files that cannot be applied, and networks for another kind of checkpoint are left out and
        reported; the others are applied. A file that could not be read, or for whose change there was no memory, is
        tried anew each time. The tags' order does not matter. The same name twice adds up, a multiplier of 0 leaves a
        part out. Files, weights and multipliers that are in place already are not touched. After an exception the
        weights are as loaded.
        """
        wanted, messages = self._resolve(tags)
        applied = self._applied
        is_in_place = applied is not None and applied.wanted == wanted and applied.revision == self._ledger.revision
        if applied is None or not is_in_place or not applied.is_complete:
            applied = self._applied = self._apply(wanted)
        return [*messages, *applied.messages]

    def deactivate(self) -> None:
        """Restore the weights bit for bit; nothing here keeps a parameter in memory any more."""
        self._ledger.restore(OWNER)
        self._applied = None
        self._weights = None

    def hashes(self) -> dict[str, str]:
        """What "Lora hashes" in the infotext holds: the name in the tag → first 12 digits of the file's hash."""
        return dict(self._applied.hashes) if self._applied else {}

    @property
    def is_complete(self) -> bool:
        """Whether every file that was wanted could be read and made: at another moment it may be otherwise."""
        return self._applied is None or self._applied.is_complete

    def embeddings(self) -> Embeddings:
        """The embeddings that came with the networks in place; whoever encodes the prompt has to know them."""
        return dict(self._applied.embeddings) if self._applied else {}

    def _resolve(self, tags: Sequence[LoraTag]) -> tuple[list[_Wanted], list[str]]:
        """Files of the tags, without those that come to nothing."""
        messages: list[str] = []
        found: dict[tuple[Identity, int | None], _Wanted] = {}
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
            if tag.te or tag.unet_multiplier:
                before = found.get((file, tag.dyn), _Wanted(file, tag.dyn, ()))
                found[file, tag.dyn] = replace(before, tags=(*before.tags, tag))
        return list(found.values()), list(dict.fromkeys(messages))

    def _apply(self, wanted: list[_Wanted]) -> _Applied:
        applied = _Applied(wanted)
        shares: dict[Identity, list[Share]] = {}
        for network in sorted(wanted, key=lambda each: (each.file, each.dyn or 0)):  # sums depend on their order
            try:
                loaded = self._files.get(network.file, self._checkpoint.architecture)
            except UserError as error:
                applied.messages.append(f"{network.name} is left out: {error}")
                applied.is_complete = False
                continue
            try:
                shares.setdefault(network.file, []).extend(self._shares(network, loaded, applied))
            except UserError as error:
                applied.messages.append(f"{network.name} is left out: {error}")
        self._files.trim(shares)
        self._patch(shares, applied)
        applied.revision = self._ledger.revision
        return applied

    def _patch(self, shares: dict[Identity, list[Share]], applied: _Applied) -> None:
        """Put the files' parts into the weights, without a file of which one cannot be made."""
        everywhere = [share for parts in shares.values() for share in parts if share.mask is None]
        masked = [share for parts in shares.values() for share in parts if share.mask is not None]
        if not everywhere and not masked:
            self._ledger.restore(OWNER)
            return
        regions = MaskedForwards(self._checkpoint.unet, masked) if masked else None
        try:
            self._ledger.patch(OWNER, patches_of(everywhere), regions)
        except ShareError as error:
            file, key, _ = error.source
            name = next(network.name for network in applied.wanted if network.file == file)
            applied.messages.append(f"{name} is left out: {key}: {error}")
            applied.is_complete = False
            applied.hashes.pop(_infotext_name(name), None)
            applied.embeddings = {each: found for each, found in applied.embeddings.items() if found[0] != name}
            self._patch({other: parts for other, parts in shares.items() if other != file}, applied)

    def _shares(self, network: _Wanted, loaded: LoadedNetwork, applied: _Applied) -> list[Share]:
        """A network's parts in the weights; notes its hash and what it has that the checkpoint lacks."""
        matched = match(loaded.modules, self._all_weights(), self._checkpoint)
        shares = [
            Share((network.file, key, parameter), multiplier, network.dyn, view, loaded.modules[key], parameter, mask)
            for (key, parameter), view in matched.views.items()
            for mask, multiplier in network.multipliers(key, self._checkpoint.architecture).items()
        ]
        if loaded.unknown:
            applied.messages.append(unknown_message(network.name, loaded.unknown))
        if matched.unmatched:
            modules = len({key for key, _ in matched.views})
            applied.messages.append(unmatched_message(network.name, matched.unmatched, modules))
        if shares or loaded.embeddings:
            applied.hashes[_infotext_name(network.name)] = loaded.hash[:_HASH_DIGITS]
        applied.embeddings |= {name: (network.name, tensors) for name, tensors in loaded.embeddings.items()}
        return shares

    def _all_weights(self) -> dict[str, WeightView]:
        if self._weights is None:
            self._weights = checkpoint_weights(self._checkpoint)
        return self._weights


def _infotext_name(name: str) -> str:
    return name.replace(":", "").replace(",", "")
