"""What people are told of resized networks: ranks, what is kept of ΔW, sizes, and what is not as they may think."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lora_ext.merge.low_rank_out import bias_words
from lora_ext.merge.module_spectra import ModuleSpectrum, NetworkSpectrum
from lora_ext.merge.resized_ranks import Selection
from lora_ext.merge.work import ModuleReport, OutputFile, ToolReport
from lora_ext.networks.file import NetworkFile
from lora_ext.networks.matching import first_names, unknown_message
from lora_ext.networks.weight_delta.decomposed import SUFFIX as DORA


@dataclass(frozen=True)
class Resized:
    """One result: the file that was read, its spectrum, what of it is kept, and the file that was or would be written.

    `missing` are the modules that the checkpoint does not have.
    """

    source: NetworkFile
    spectrum: NetworkSpectrum
    selection: Selection
    missing: Sequence[str]
    written: OutputFile

    def modules(self, with_values: bool) -> list[ModuleReport]:
        """What becomes of each module."""
        return [self._module(module, with_values) for module in self.spectrum.modules]

    def _module(self, module: ModuleSpectrum, with_values: bool) -> ModuleReport:
        places = self.selection.places.get(module.key, torch.arange(0))
        values = module.scaled_values.float() if with_values else None
        return ModuleReport(module.key, module.rank, len(places), module.kept(places), values)

    @property
    def kept(self) -> float:
        """The share of ‖ΔW‖² of all modules together that is kept."""
        total = sum(module.energy * module.scale**2 for module in self.spectrum.modules)
        kept = sum(
            module.kept(self.selection.places[module.key]) * module.energy * module.scale**2
            for module in self.spectrum.modules
            if module.key in self.selection.places
        )
        return kept / total if total else 1.0


def report_of(results: Sequence[Resized], with_values: bool) -> ToolReport:
    """The report of one result with all its modules, or of several, each in a line, with modules named by file."""
    files = [result.written for result in results]
    warnings = [warning for result in results for warning in _warnings(result)]
    details: dict[str, Any] = {"outputs": [_details(result) for result in results]}
    if len(results) == 1:
        [result] = results
        return ToolReport(
            f"Resize {result.source.path.name}", _facts(result), result.modules(with_values), warnings, files,
            details=details,
        )  # fmt: skip
    facts = {result.written.path.name: _line(result) for result in results}
    modules = [
        replace(report, key=f"{result.written.path.name}: {report.key}")
        for result in results
        for report in result.modules(with_values=False)
    ]
    return ToolReport(f"Resize to {len(results)} files", facts, modules, warnings, files, details=details)


def _facts(result: Resized) -> dict[str, str]:
    reports = result.modules(with_values=False)
    kept = [report for report in reports if report.rank_after]
    facts = {
        "Ranks before": _range([report.rank_before for report in reports if report.rank_before is not None]),
        "Ranks after": _range([report.rank_after for report in kept if report.rank_after]),
        "Kept": f"{result.kept:.2%} of ‖ΔW‖² of all modules together",
    }
    least = min(kept, key=lambda report: report.kept or 0.0, default=None)
    if least is not None:
        facts["Least kept"] = f"{least.kept:.2%} in {least.key}"
    if result.selection.threshold is not None:
        facts["Threshold"] = f"{result.selection.threshold:.4g}"
    dropped = len(reports) - len(kept)
    if dropped:
        facts["Modules left out"] = f"{dropped} of {len(reports)}: nothing in them reaches the threshold"
    if result.spectrum.kept:
        facts["Kept as they are"] = f"{len(result.spectrum.kept)} modules"
    facts["File"] = _size(result)
    return facts


def _line(result: Resized) -> str:
    ranks = _range([len(places) for places in result.selection.places.values()])
    return f"ranks {ranks}; {result.kept:.2%} of ‖ΔW‖² kept; {_size(result)}"


def _size(result: Resized) -> str:
    before = result.source.path.stat().st_size
    return (
        f"{result.written.size / 1e6:,.1f} MB, {result.written.size / before:.0%} of the {before / 1e6:,.1f} MB before"
    )


def _range(ranks: Sequence[int]) -> str:
    if not ranks:
        return "none"
    low, high = min(ranks), max(ranks)
    return f"{low}" if low == high else f"{low} to {high}, {sum(ranks) / len(ranks):.1f} on average"


def _details(result: Resized) -> dict[str, Any]:
    return {
        "source": str(result.source.path),
        "path": str(result.written.path),
        "bytes": result.written.size,
        "kept": result.kept,
        "threshold": result.selection.threshold,
        "ranks": {key: len(places) for key, places in result.selection.places.items()},
    }


def _warnings(result: Resized) -> list[str]:
    name, modules = result.source.path.name, result.spectrum.modules
    found = []
    if any(DORA in module.extra for module in modules):
        found.append(
            f"{name} is a DoRA: its lengths stay exactly as they were trained, and the directions are cut; what is "
            "kept is counted before the lengths"
        )
    others = Counter(module.algorithm for module in modules if module.algorithm != "LoRA")
    for algorithm, count in others.items():
        found.append(f"{name}: {count} modules of {algorithm} become LoRA modules")
    found += [f"{name}: {words}" for words in bias_words([module.extra for module in modules])]
    if result.missing:
        names = first_names(result.missing)
        found.append(f"{name}: the checkpoint does not have {len(result.missing)} of its modules, which stay: {names}")
    if result.source.network.unknown:
        found.append(unknown_message(name, result.source.network.unknown).replace("are left out", "stay as they are"))
    return found
