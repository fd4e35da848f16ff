"""`merge-networks`: several networks become one whose ΔW is the weighted sum of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from pathlib import Path

import torch

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.config.tools.merge_networks import MergeNetworksSettings
from lora_ext.merge.inputs import BASE_VERSIONS, EITHER_SD, WeightedNetwork, common_base, weighted_networks
from lora_ext.merge.low_rank_out import (
    Source,
    bias_words,
    changed_metadata,
    kind_metadata,
    named_tensors,
    with_stored_alpha,
)
from lora_ext.merge.memory import check_memory
from lora_ext.merge.merged_modules import MergedModule, approximated, concatenated, has_rank, rank_of, rounding
from lora_ext.merge.module_sums import ModuleSum, module_sums
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import ModuleReport, OutputFile, ToolReport, Work, check_output, precision_of, write_result
from lora_ext.networks.file import PRECISION_DTYPES, Precision, network_size
from lora_ext.protocols import UserError

_SHARED = (
    "ss_v2", "ss_base_model_version", "ss_clip_skip", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash",
    "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.prediction_type",
    "modelspec.resolution", "modelspec.encoder_layer",
)  # fmt: skip
"""What the first network says of itself that holds for the sum too: not what it was trained on, and how."""

_WORK_BYTES = 2**29  # what a batch of decompositions takes
_MUCH = 0.01  # share of ΔW that rounding may take before it is a warning


@dataclass(frozen=True)
class _Plan:
    """What is merged, how and where to, all of it checked."""

    settings: MergeNetworksSettings
    networks: Sequence[WeightedNetwork]
    base: str
    sums: Sequence[ModuleSum]
    precision: Precision
    out: Path

    @cached_property
    def numbers(self) -> int:
        """How many numbers are written at most."""
        return sum(map(self._numbers_of, self.sums))

    @property
    def size(self) -> int:
        """How many bytes are written at most, but for names and metadata."""
        return self.numbers * PRECISION_DTYPES[self.precision].itemsize

    def _numbers_of(self, module: ModuleSum) -> int:
        rows, columns = module.shape[0], prod(module.shape[1:])
        if self.settings.method == "svd" and has_rank(module):
            return (rows + columns) * min(rank_of(module, self.settings.rank, self.settings.conv_rank), rows, columns)
        return (rows + columns) * module.rank if module.rank else rows * columns


def run(settings: MergeNetworksSettings, work: Work) -> ToolReport:
    """Merge and write; the report says what was lost, where something was."""
    plan = _plan(settings, work)
    merged = _merged(plan, work)
    tensors, metadata = _content(plan, merged)
    return _report(plan, merged, write_result(plan.out, tensors, metadata, plan.precision, work))


def preview(settings: MergeNetworksSettings, work: Work) -> ToolReport:
    """The same without writing."""
    plan = _plan(settings, work)
    merged = _merged(plan, work)
    return _report(plan, merged, OutputFile(plan.out, network_size(*_content(plan, merged), plan.precision)))


TOOL = Tool(
    "merge-networks",
    "Merge networks",
    "Several networks become one: the weighted sum of what they change, exactly or the nearest of a rank.",
    MergeNetworksSettings,
    run,
    preview,
)


def _plan(settings: MergeNetworksSettings, work: Work) -> _Plan:
    """All checks; raises UserError for what is wrong with the settings or the files."""
    if settings.method == "concat" and (settings.rank is not None or settings.conv_rank is not None):
        raise UserError(
            "rank and conv_rank are svd's: choose it (--method svd), or leave them out; concat loses nothing"
        )
    networks = weighted_networks(work, settings.network, settings.te_weight, settings.lbw)
    if not settings.out.strip():
        raise UserError("no output is given: name the file to write (--out FILE.safetensors)")
    base = common_base(networks)
    sums = module_sums(networks, base, _architecture(networks, base))
    if not sums:
        raise UserError("nothing would be left: every part of every network is multiplied by 0")
    precision = precision_of(settings.precision, networks[0].file.tensors)
    plan = _Plan(settings, networks, base, sums, precision, Path(settings.out.strip()))
    check_output(plan.out, [each.file.path for each in networks], settings.overwrite, plan.size)
    check_memory(plan.numbers * 4 + plan.size + _WORK_BYTES, f"merging {len(networks)} networks")
    return plan


def _architecture(networks: Sequence[WeightedNetwork], base: str) -> Architecture:
    """How weights by block count; without them it does not matter."""
    if base == "SDXL":
        return "SDXL"
    named = next((each for each in networks if each.blocks is not None), None)
    if named is not None and base not in ("SD1", "SD2", EITHER_SD):
        said = f"is for {base} checkpoints" if base else "does not say what checkpoints it is for"
        raise UserError(
            f"lbw: {named.name} {said}, so that its blocks are not known: leave lbw out, or give the text encoders "
            "another weight (te_weight)"
        )
    return "SD2" if base == "SD2" else "SD1"


def _merged(plan: _Plan, work: Work) -> list[MergedModule]:
    settings = plan.settings
    if settings.method == "concat":
        return list(concatenated(plan.sums, work.device, work.step))
    return list(approximated(plan.sums, settings.rank, settings.conv_rank, work.device, work.step))


def _content(plan: _Plan, merged: Sequence[MergedModule]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors by name, and the metadata."""
    modules = {
        each.key: each.tensors if each.rank is None else with_stored_alpha(each.tensors, plan.precision)
        for each in merged
    }
    return named_tensors(modules), _metadata(plan, modules)


def _metadata(plan: _Plan, modules: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, str]:
    """Of one network all that it said; of several what holds for all of them, and which they were."""
    first = plan.networks[0].file.metadata
    names = ", ".join(each.name for each in plan.networks)
    shared = dict(first) if len(plan.networks) == 1 else {key: first[key] for key in _SHARED if key in first}
    if plan.base in BASE_VERSIONS:
        shared.setdefault("ss_base_model_version", BASE_VERSIONS[plan.base])
        shared.setdefault("ss_v2", str(plan.base == "SD2"))
    shared = kind_metadata(shared, modules)
    if len(plan.networks) > 1 and "modelspec.architecture" in shared:
        shared |= {"modelspec.title": plan.out.stem, "modelspec.merged_from": names}
    weighted = ", ".join(_weighted(each) for each in plan.networks)
    sources = [Source.of(each.file, each.weight) for each in plan.networks]
    return changed_metadata(shared, modules, f"merged by {plan.settings.method}: {weighted}", sources, plan.out)


def _report(plan: _Plan, merged: Sequence[MergedModule], written: OutputFile) -> ToolReport:
    before = {module.key: module.rank for module in plan.sums}
    reports = [
        ModuleReport(
            each.key, before[each.key], each.rank, each.kept / each.energy if each.energy else 1.0, each.values
        )
        for each in merged
    ]
    energy = sum(each.energy for each in merged)
    kept = sum(each.kept for each in merged) / energy if energy else 1.0
    share = sqrt(sum(rounding(each, PRECISION_DTYPES[plan.precision]) for each in merged) / energy) if energy else 0.0
    ranks = sorted({each.rank for each in merged if each.rank is not None})
    facts = {
        "Networks": ", ".join(_weighted(each) for each in plan.networks),
        "For": plan.base or "not said in the files",
        "Method": "ranks side by side, nothing is lost" if plan.settings.method == "concat" else "nearest of the rank",
        "Modules": str(len(merged)),
        "Ranks": f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else str(ranks[0]) if ranks else "none",
        "Kept of ‖ΔW‖²": f"{kept:.2%}",
        "Rounding": f"{plan.precision}: ΔW changes by about {share:.1g} of itself" if share else "none",
    }
    return ToolReport(
        "Merge networks",
        facts,
        reports,
        _warnings(plan, merged, share),
        (written,),
        details={"kept": kept, "rounding": share, "base": plan.base},
    )


def _warnings(plan: _Plan, merged: Sequence[MergedModule], share: float) -> list[str]:
    warnings = [words for network in plan.networks for words in network.left_out()]
    warnings += bias_words([each.tensors for each in merged])
    whole = [each for each in merged if each.is_whole]
    if whole:
        size = sum(tensor.numel() for each in whole for tensor in each.tensors.values())
        size *= PRECISION_DTYPES[plan.precision].itemsize
        warnings.append(
            f"{len(whole)} modules are no product of two factors and are written whole ({size / 1e6:,.0f} MB, LyCORIS' "
            f"full): {whole[0].key} …; --method svd makes a LoRA of all of them"
        )
    if share > _MUCH:
        warnings.append(
            f"saving in {plan.precision} changes the sum by {share:.0%} of itself: much of the networks cancels out, "
            "or is too small for it; choose the precision fp32"
        )
    versions = {each.file.metadata.get("ss_base_model_version", "") for each in plan.networks} - {"", "None"}
    if len(versions) > 1:
        warnings.append(
            f"the networks were trained on checkpoints of different versions: {', '.join(sorted(versions))}"
        )
    return warnings


def _weighted(network: WeightedNetwork) -> str:
    te = f" (text encoder {network.te_weight:g})" if network.te_weight != network.weight else ""
    blocks = f" by block {network.blocks.text}" if network.blocks else ""
    return f"{network.name} × {network.weight:g}{te}{blocks}"
