"""Networks with weights, as the tools that add them up are given them; and what kind of checkpoint each is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.config.arguments import finite_number
from lora_ext.merge.memory import check_memory
from lora_ext.merge.work import Work
from lora_ext.networks.block_weights import BlockWeights, parse_block_weights
from lora_ext.networks.file import NetworkFile
from lora_ext.networks.formats import NetworkModules, canonical_modules
from lora_ext.networks.formats.blocks import family_by_names
from lora_ext.networks.matching import unknown_message
from lora_ext.networks.weight_delta import ModuleDelta, module_deltas
from lora_ext.protocols import UserError

_UNET = "lora_unet_"
_CONTEXTS = {768: "SD1", 1024: "SD2", 2048: "SDXL"}
"""What the U-Net's cross-attention takes in."""

EITHER_SD = "SD1 or SD2"
"""Their networks have the same names, and often nothing else that tells them apart."""

BASE_VERSIONS = {"SD1": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0"}
"""What files say of what they are for (`ss_base_model_version`)."""

_BASES = (
    ("sdxl", "SDXL"), ("stable-diffusion-xl", "SDXL"), ("sd_v2", "SD2"), ("stable-diffusion-v2", "SD2"),
    ("sd_v1", "SD1"), ("stable-diffusion-v1", "SD1"), ("sd_1", "SD1"), ("sd_2", "SD2"),
)  # fmt: skip
"""How a file's own words for its base begin."""

_SAME = "same"

Value = TypeVar("Value")


@dataclass(frozen=True)
class WeightedNetwork:
    """A network's file in memory and what it is multiplied by: the U-Net's part, the text encoders', and by block."""

    file: NetworkFile
    network: NetworkModules
    weight: float = 1.0
    te_weight: float = 1.0
    blocks: BlockWeights | None = None

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.file.path.stem

    @cached_property
    def deltas(self) -> dict[str, ModuleDelta]:
        """What it does to each module; raises UserError where its tensors are damaged or of an unknown kind."""
        return module_deltas(self.network.modules)

    @cached_property
    def base(self) -> str:
        """The kind of checkpoint that it is for; see `base_of`."""
        return base_of(self.deltas, self.file.metadata)

    def multiplier(self, key: str, architecture: Architecture) -> float:
        """What a module's ΔW is multiplied by; UserError where the block weights are for another kind of checkpoint."""
        weight = self.te_weight if key.startswith("lora_te") else self.weight
        return weight if self.blocks is None else weight * self.blocks.multiplier(key, architecture)

    def left_out(self) -> list[str]:
        """What of the file is not in its modules; see `left_out_words`."""
        return left_out_words(self.name, self.network)


def left_out_words(name: str, network: NetworkModules) -> list[str]:
    """What of a file is not in its modules, in words: embeddings, and tensors of no known network."""
    words = []
    if network.embeddings:
        names = ", ".join(sorted(network.embeddings))
        words.append(f"{name}: the embeddings in it ({names}) are left out; they work with the file itself")
    if network.unknown:
        words.append(unknown_message(name, network.unknown))
    return words


def weighted_networks(
    work: Work, network: str, te_weight: str = "", lbw: str = "", architecture: Architecture | None = None
) -> list[WeightedNetwork]:
    """Read the networks of the settings `network`, `te_weight` and `lbw`.

    `architecture` is the checkpoint's that they are for, where one is given; it tells what names mean that fit several.
    Raises UserError for whatever is wrong with the texts or the files, naming it.
    """
    given = [_name_and_weight(line, work) for line in _lines(network)]
    if not given:
        raise UserError("no network is given: name at least one with its weight (--network NAME_OR_FILE:0.7)")
    count = len(given)
    te_weights = _one_for_each("te_weight", te_weight, count, _te_weight)
    blocks = _one_for_each("lbw", lbw, count, parse_block_weights)
    return [
        _read(work, path, weight, weight if te is None else te, block, architecture)
        for (path, weight), te, block in zip(given, te_weights, blocks, strict=True)
    ]


def base_of(deltas: Mapping[str, ModuleDelta], metadata: Mapping[str, str]) -> str:
    """The kind of checkpoint it is for: "SD1", "SD2", "SDXL", "SD1 or SD2", or another in the file's own words.

    By its modules' names and sizes, where they tell, before what the metadata says; "" where nothing does.
    """
    names = {key.removeprefix(_UNET) for key in deltas if key.startswith(_UNET)}
    family = family_by_names(names)
    if family == "SDXL" or any(key.startswith(("lora_te1_", "lora_te2_")) for key in deltas):
        return "SDXL"
    for key, delta in deltas.items():
        if key.endswith("_attn2_to_k") and not delta.needs_weight and "weight" in delta.parameters:
            width = delta.shape_for(())[1]
            if width in _CONTEXTS:
                return _CONTEXTS[width]
    return _said_base(metadata) or (EITHER_SD if family == "SD" else "")


def common_base(networks: Sequence[WeightedNetwork]) -> str:
    """The kind of checkpoint that all of them are for, "" where none says it; UserError where they differ, by name."""
    found = ""
    said_by = networks[0]
    for each in networks:
        if found and each.base and not _may_be_one(found, each.base):
            raise UserError(
                f"{said_by.name} is for {found} checkpoints, and {each.name} for {each.base}: only networks for "
                "the same kind can be merged"
            )
        if each.base and found in ("", EITHER_SD):
            found, said_by = each.base, each
    return found


def _may_be_one(left: str, right: str) -> bool:
    return left == right or (EITHER_SD in (left, right) and {left, right} <= {EITHER_SD, "SD1", "SD2"})


def _said_base(metadata: Mapping[str, str]) -> str:
    """What the metadata says, in our words where they are known."""
    for key in ("ss_base_model_version", "modelspec.architecture"):
        text = metadata.get(key, "")
        if text and text != "None":
            return next((base for start, base in _BASES if text.startswith(start)), text.partition("/")[0])
    return "SD2" if metadata.get("ss_v2") == "True" else ""


def _read(
    work: Work,
    path: Path,
    weight: float,
    te_weight: float,
    blocks: BlockWeights | None,
    architecture: Architecture | None,
) -> WeightedNetwork:
    check_memory(path.stat().st_size, f"reading {path.name}")
    file = work.read_network(path)
    network = canonical_modules(file.tensors, file.metadata, architecture)
    if not network.modules:
        raise UserError(f"{path} holds no network: none of its {len(file.tensors)} tensors is one of a network")
    read = WeightedNetwork(file, network, weight, te_weight, blocks)
    try:
        read.deltas  # noqa: B018 - what is wrong with the tensors is told now
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return read


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _name_and_weight(line: str, work: Work) -> tuple[Path, float]:
    """The file and the weight of `NAME_OR_FILE:WEIGHT`; a colon that no number follows is part of the path."""
    name, colon, number = line.rpartition(":")
    weight = finite_number(number) if colon and name.strip() else None
    if weight is not None:
        return work.network(name), weight
    path = work.find_network(line)
    if path is None and colon and name.strip() and not any(sign in number for sign in "/\\"):
        raise UserError(f"{line!r}: {number!r} is no weight; write a number after the colon, like {name}:0.7")
    return work.network(line), 1.0


def _te_weight(text: str) -> float | None:
    """The number of a line, None where it is to be the network's own weight."""
    if text.lower() == _SAME:
        return None
    number = finite_number(text)
    if number is None:
        raise UserError(f"te_weight = {text!r} is no number; write one like 0.5, or {_SAME} for the network's weight")
    return number


def _one_for_each(name: str, text: str, count: int, parse: Callable[[str], Value | None]) -> Iterable[Value | None]:
    """The lines' values, one for each network; a single one is for all, and none is None."""
    values = [parse(line) for line in _lines(text)]
    if not values:
        return [None] * count
    if len(values) not in (1, count):
        raise UserError(
            f"{name} has {len(values)} lines for {count} networks: give one for all, or one for each in their order"
        )
    return values * count if len(values) == 1 else values
