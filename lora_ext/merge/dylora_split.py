"""`dylora-split`: a DyLoRA (arXiv 2210.07558) cut down to some of the ranks that it was trained for, a file each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lora_ext.config.tools.dylora_split import DyloraSplitSettings
from lora_ext.merge.inputs import left_out_words
from lora_ext.merge.low_rank_out import Source, changed_metadata, kind_metadata, named_tensors, network_arguments
from lora_ext.merge.memory import check_memory
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import OutputFile, ToolReport, Work, all_or_none, check_output, precision_of, write_result
from lora_ext.networks.file import NetworkFile, Precision, network_size
from lora_ext.networks.weight_delta import module_deltas
from lora_ext.protocols import UserError

_SD_SCRIPTS = "networks.dylora"
_UNITS = ("unit", "block_size")  # sd-scripts' word, LyCORIS' word
_PLAIN = {"lora_up.weight", "lora_down.weight", "alpha"}

Modules = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class _Plan:
    """Which ranks of which network go where, all of it checked."""

    settings: DyloraSplitSettings
    file: NetworkFile
    full_rank: int
    outputs: Mapping[int, Path]
    precision: Precision

    @property
    def as_trained(self) -> bool:
        """Whether alpha becomes smaller with the rank."""
        is_sd_scripts = self.file.metadata.get("ss_network_module") == _SD_SCRIPTS
        return self.settings.strength == "trained" and is_sd_scripts

    def modules(self, rank: int) -> dict[str, dict[str, Tensor]]:
        """The network of a rank."""
        return first_ranks(self.file.modules, rank, self.as_trained)

    def size(self, rank: int) -> int:
        """How many bytes its file takes."""
        modules = self.modules(rank)
        return network_size(named_tensors(modules), _metadata(self, modules, rank, self.outputs[rank]), self.precision)


def first_ranks(modules: Modules, rank: int, as_trained: bool = False) -> dict[str, dict[str, Tensor]]:
    """The first `rank` ranks of each module, or all that it has; alpha stays, so that the scale is alpha / rank.

    LyCORIS' DyLoRA, and ours, train every rank with that scale. sd-scripts' trains rank r of R with alpha / √(r R):
    `as_trained` makes that alpha · √(r / R).
    """
    return {key: _first_ranks(tensors, rank, as_trained) for key, tensors in modules.items()}


def _first_ranks(tensors: Mapping[str, Tensor], rank: int, as_trained: bool) -> dict[str, Tensor]:
    down, up = tensors["lora_down.weight"], tensors["lora_up.weight"]
    cut = {"lora_down.weight": down[:rank].contiguous(), "lora_up.weight": up[:, :rank].contiguous()}
    if "alpha" in tensors:
        share = math.sqrt(min(rank, len(down)) / len(down)) if as_trained else 1.0
        cut["alpha"] = tensors["alpha"] * share
    return cut


def run(settings: DyloraSplitSettings, work: Work) -> ToolReport:
    """Write all files; those that were written are taken away again where the work is stopped or one cannot be."""
    plan = _plan(settings, work)
    written: list[OutputFile] = []
    with all_or_none(plan.outputs.values()):
        for done, (rank, path) in enumerate(plan.outputs.items()):
            work.step(done, len(plan.outputs))
            modules = plan.modules(rank)
            written.append(
                write_result(path, named_tensors(modules), _metadata(plan, modules, rank, path), plan.precision, work)
            )
    work.step(len(plan.outputs), len(plan.outputs))
    return _report(plan, written)


def preview(settings: DyloraSplitSettings, work: Work) -> ToolReport:
    """Which files there would be."""
    plan = _plan(settings, work)
    return _report(plan, [OutputFile(path, plan.size(rank)) for rank, path in plan.outputs.items()])


TOOL = Tool(
    "dylora-split",
    "Split a DyLoRA",
    "A network trained for many ranks at once becomes a LoRA of each rank that you want.",
    DyloraSplitSettings,
    run,
    preview,
)


def _plan(settings: DyloraSplitSettings, work: Work) -> _Plan:
    if not settings.file.strip():
        raise UserError("no network is given: name the DyLoRA's file")
    if not settings.out.strip():
        raise UserError("no output is given: name a folder, or a file to put the ranks behind (--out FOLDER)")
    path = work.network(settings.file)
    check_memory(3 * path.stat().st_size, f"splitting {path.name}")
    file = work.read_network(path)
    _check_kind(file)
    full = max(len(tensors["lora_down.weight"]) for tensors in file.modules.values())
    ranks = _ranks(settings, file, full)
    outputs = {rank: _output(settings.out, path, rank) for rank in ranks}
    precision = precision_of(settings.precision, file.tensors)
    plan = _Plan(settings, file, full, outputs, precision)
    total = sum(plan.size(rank) for rank in ranks)
    for each in outputs.values():
        check_output(each, [path], settings.overwrite, total)
    return plan


def _check_kind(file: NetworkFile) -> None:
    """UserError where it is no LoRA of two factors a module."""
    if not file.modules:
        raise UserError(f"{file.path} holds no network: none of its {len(file.tensors)} tensors is one of a network")
    try:
        module_deltas(file.modules)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error
    for key, tensors in file.modules.items():
        if "lora_down.weight" not in tensors or set(tensors) - _PLAIN:
            raise UserError(
                f"{file.path} is no DyLoRA: {key} has {', '.join(sorted(set(tensors) - _PLAIN))}; resize brings "
                "networks of every kind to a lower rank"
            )


def _ranks(settings: DyloraSplitSettings, file: NetworkFile, full: int) -> list[int]:
    """The wanted ranks from the smallest on, all below the network's own where they follow from a unit."""
    if settings.ranks.strip():
        if settings.unit is not None:
            raise UserError("unit and ranks both say which ranks are wanted: give either")
        return _listed(settings.ranks, full)
    unit = settings.unit or _trained_unit(file.metadata)
    if unit is None:
        raise UserError(
            f"{file.path} does not say what unit it was trained with: give it (--unit), or the ranks (--ranks)"
        )
    if unit >= full:
        raise UserError(
            f"unit = {unit}: there is no rank to split off; the network has rank {full}, give less than that"
        )
    return list(range(unit, full, unit))


def _listed(text: str, full: int) -> list[int]:
    words = [word.strip() for word in text.replace("\n", ",").split(",") if word.strip()]
    wrong = [word for word in words if not (word.isdecimal() and 1 <= int(word) <= full)]
    if wrong or not words:
        raise UserError(f"ranks = {text!r}: write whole numbers from 1 to {full} with commas between them, like 4,8")
    return sorted({int(word) for word in words})


def _trained_unit(metadata: Mapping[str, str]) -> int | None:
    """What the network's arguments say, None where they say nothing that is a unit."""
    arguments = network_arguments(metadata)
    for name in _UNITS:
        value = str(arguments.get(name, ""))
        if value.isdecimal() and int(value) > 0:
            return int(value)
    return None


def _output(out: str, source: Path, rank: int) -> Path:
    """`folder/name-0004.safetensors`, the name being that of the output, or the network's in an output folder."""
    given = Path(out.strip())
    is_file = given.suffix.lower() == ".safetensors" and not given.is_dir()
    folder, stem = (given.parent, given.stem) if is_file else (given, source.stem)
    return folder / f"{stem}-{rank:04d}.safetensors"


def _metadata(plan: _Plan, modules: Modules, rank: int, path: Path) -> dict[str, str]:
    """As it was, but for a plain LoRA of this rank."""
    what = f"split from DyLoRA, rank {plan.full_rank} to {rank}"
    return changed_metadata(kind_metadata(plan.file.metadata, modules), modules, what, [Source.of(plan.file)], path)


def _report(plan: _Plan, files: Sequence[OutputFile]) -> ToolReport:
    strength = "alpha of each rank as it was trained" if plan.as_trained else "alpha as it is"
    facts = {
        "Rank": str(plan.full_rank),
        "Ranks of the files": ", ".join(map(str, plan.outputs)),
        "Modules": str(len(plan.file.modules)),
        "Strength": strength,
    }
    warnings = left_out_words(plan.file.path.stem, plan.file.network)
    if plan.file.metadata.get("ss_network_module") == _SD_SCRIPTS and not plan.as_trained:
        warnings.append(
            "sd-scripts trained the lower ranks with less strength than these files have, as sd-scripts' own have: try "
            "lower weights, or choose the strength trained"
        )
    return ToolReport("Split a DyLoRA", facts, (), warnings, files)
