"""What a network or checkpoint file holds, the latter from its header alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.checkpoint.file_kinds import architecture_of, refuse_other_kinds
from lora_ext.config.tools.inspect import InspectSettings
from lora_ext.merge.base_check import block_order, factors_norm
from lora_ext.merge.check import module_changes
from lora_ext.merge.findings import modules_words
from lora_ext.merge.inputs import base_of
from lora_ext.merge.low_rank_out import SOURCES
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import ModuleReport, ToolReport, Work
from lora_ext.networks.block_weights import block_name
from lora_ext.networks.description import describe_network
from lora_ext.networks.file import NetworkFile, model_hash, read_network, scan_network
from lora_ext.networks.sidecar import activation_text
from lora_ext.networks.weight_delta import ModuleDelta
from lora_ext.protocols import UserError

CHECKPOINT_PARTS = {
    "U-Net": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.",),
    "text encoder": ("cond_stage_model.", "conditioner."),
}
_TOLD = {
    "name": "ss_output_name",
    "base_checkpoint": "ss_sd_model_name",
    "alpha": "ss_network_alpha",
    "epoch": "ss_epoch",
    "steps": "ss_steps",
    "hash": "sshs_model_hash",
    "comment": "ss_training_comment",
}
_SHOWN = 12
_TAGS = 10
_OTHERS = "others"


def run(settings: InspectSettings, work: Work) -> ToolReport:
    """Tell what the file is."""
    path = work.find_network(settings.file.strip()) or work.find_checkpoint(settings.file.strip())
    path = work.network(settings.file) if path is None else path
    work.step(0, 1)
    header = scan_network(path)
    facts: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "tensors": len(header.shapes),
        "parameters": sum(math.prod(shape) for shape in header.shapes.values()),
        "dtypes": dict(Counter(str(dtype).removeprefix("torch.") for dtype in header.dtypes.values())),
    }
    modules: list[ModuleReport] = []
    warnings: list[str] = []
    if header.holds_network:
        file = read_network(path)
        deltas, _ = module_changes(file.modules)
        facts |= network_facts(file, deltas)
        modules = [ModuleReport(key, delta.rank, delta.rank) for key, delta in deltas.items()]
    else:
        facts |= checkpoint_facts(header.shapes)
        try:
            refuse_other_kinds(path, header.shapes)
        except UserError as error:
            warnings.append(str(error))
    work.step(1, 1)
    shown = {name.replace("_", " "): _shown(value) for name, value in facts.items()}
    details = {**facts, "metadata": header.metadata}
    return ToolReport(f"{path.name}: {facts['kind']}", shown, modules, warnings, (), "", details)


def network_facts(file: NetworkFile, deltas: Mapping[str, ModuleDelta]) -> dict[str, Any]:
    """Modules, kinds, ranks, blocks and the most telling metadata of a network, and what of it cannot be applied."""
    described = describe_network(file)
    metadata = file.metadata
    base = base_of(deltas, metadata)
    optional = {
        "for": base,
        **{name: value for name, key in _TOLD.items() if (value := metadata.get(key, "None")) != "None"},
        "hash": model_hash(file.path),
        "triggers": _triggers(metadata),
        "tags": _tags(metadata),
        "made_from": _sources(metadata),
        "blocks": _blocks(deltas, "SDXL" if base == "SDXL" else "SD1"),
        "embeddings": described.embeddings,
        "not_understood": described.unknown,
        "damaged": described.problems,
    }
    return {
        "kind": "network",
        "written_in_names_of": described.dialect,
        "unet_modules": described.unet_modules,
        "text_encoder_modules": described.text_encoder_modules,
        "algorithms": described.algorithms,
        "ranks": {str(rank): count for rank, count in described.ranks.items()},
        **{name: value for name, value in optional.items() if value},
    }


def checkpoint_facts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """How many tensors each part of a checkpoint has; an unknown file says so."""
    parts = {name: sum(key.startswith(prefixes) for key in shapes) for name, prefixes in CHECKPOINT_PARTS.items()}
    if not any(parts.values()):
        return {"kind": "neither a network nor a checkpoint that is known here"}
    width = shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0,))[0]
    return {
        "kind": "checkpoint",
        "architecture": architecture_of(shapes),
        "unet_channels": width,
        "tensors_of_parts": parts,
    }


def _triggers(metadata: Mapping[str, str]) -> str:
    """The words that call it, as the card of a network has them."""
    try:
        return activation_text(metadata)
    except (ValueError, AttributeError, TypeError):  # another program's metadata may be of any shape
        return ""


def _tags(metadata: Mapping[str, str]) -> dict[str, int]:
    """The most frequent tags of the captions that it was trained on, with their counts."""
    counts: Counter[str] = Counter()
    folders = _parsed(metadata.get("ss_tag_frequency"))
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            counts[tag.strip()] += count if isinstance(count, int) else 0
    return dict(counts.most_common(_TAGS))


def _sources(metadata: Mapping[str, str]) -> list[str]:
    """The files that it was made from: names, weights, the first digits of their hashes."""
    sources = _parsed(metadata.get(SOURCES))
    return [_source(each) for each in sources if isinstance(each, dict)] if isinstance(sources, list) else []


def _source(source: Mapping[str, Any]) -> str:
    weight = f" × {source['weight']:g}" if isinstance(source.get("weight"), int | float) else ""
    return f"{source.get('name', '?')}{weight} ({str(source.get('hash', ''))[:12]})"


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _blocks(deltas: Mapping[str, ModuleDelta], architecture: Architecture) -> dict[str, str]:
    """Modules, ranks and ‖ΔW‖ by block; the length is that of the modules that tell it without a checkpoint."""
    by_block: dict[str, list[ModuleDelta]] = {}
    for key, delta in deltas.items():
        by_block.setdefault(block_name(key, architecture) or _OTHERS, []).append(delta)
    return {block: _block_words(by_block[block]) for block in sorted(by_block, key=block_order)}


def _block_words(deltas: list[ModuleDelta]) -> str:
    ranks = sorted({delta.rank for delta in deltas if delta.rank is not None})
    span = f", rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""
    factors = [each for delta in deltas if (each := delta.low_rank) is not None]
    norm = math.sqrt(sum(factors_norm(each) ** 2 for each in factors))
    return f"{modules_words(len(deltas))}{span}" + (f", length {norm:.3g}" if factors else "")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        parts = [f"{name}: {count}" for name, count in value.items()] if isinstance(value, Mapping) else value
        if len(parts) > 1 and isinstance(value, Mapping) and any(isinstance(each, str) for each in value.values()):
            return "\n".join(parts)
        more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        return ", ".join(parts[:_SHOWN]) + more or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


TOOL = Tool(
    "inspect",
    "Inspect",
    "Tell what a network or checkpoint file holds.",
    InspectSettings,
    run,
)
