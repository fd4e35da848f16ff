"""`inspect`: what a network or checkpoint file holds, the latter from its header alone."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ext.networks.file import NetworkFile

CHECKPOINT_PARTS = {
    "U-Net": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.",),
    "text encoder": ("cond_stage_model.", "conditioner."),
}

_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a network or a checkpoint")
    parser.add_argument("--json", action="store_true", help="print it as JSON, with all metadata")


def run(options: argparse.Namespace) -> int:
    """Tell what the file is."""
    from lora_ext.networks.file import read_network, scan_network

    header = scan_network(options.file)
    facts: dict[str, Any] = {
        "file": str(options.file),
        "bytes": options.file.stat().st_size,
        "tensors": len(header.shapes),
        "parameters": sum(math.prod(shape) for shape in header.shapes.values()),
        "dtypes": dict(Counter(str(dtype).removeprefix("torch.") for dtype in header.dtypes.values())),
    }
    if header.holds_network:
        facts |= network_facts(read_network(options.file))
    else:
        facts |= checkpoint_facts(header.shapes)
    if options.json:
        print(json.dumps({**facts, "metadata": header.metadata}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(f"{name.replace('_', ' '):<22}{_shown(value)}" for name, value in facts.items()))
    return 0


def network_facts(file: NetworkFile) -> dict[str, Any]:
    """Modules, kinds, ranks and the most telling metadata of a network, and what of it cannot be applied."""
    from lora_ext.networks.description import describe_network

    described = describe_network(file)
    metadata = file.metadata
    told = {
        "name": "ss_output_name",
        "base_checkpoint": "ss_sd_model_name",
        "alpha": "ss_network_alpha",
        "epoch": "ss_epoch",
        "steps": "ss_steps",
        "hash": "sshs_model_hash",
        "comment": "ss_training_comment",
    }
    return {
        "kind": "network",
        "written_in_names_of": described.dialect,
        "unet_modules": described.unet_modules,
        "text_encoder_modules": described.text_encoder_modules,
        "algorithms": described.algorithms,
        "ranks": {str(rank): count for rank, count in described.ranks.items()},
        **{name: metadata[key] for name, key in told.items() if metadata.get(key, "None") != "None"},
        **({"embeddings": described.embeddings} if described.embeddings else {}),
        **({"not_understood": described.unknown} if described.unknown else {}),
        **({"damaged": described.problems} if described.problems else {}),
    }


def checkpoint_facts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """How many tensors each part of a checkpoint has; an unknown file says so."""
    parts = {name: sum(key.startswith(prefixes) for key in shapes) for name, prefixes in CHECKPOINT_PARTS.items()}
    if not any(parts.values()):
        return {"kind": "neither a network nor a checkpoint that is known here"}
    if "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight" in shapes:
        kind = "SDXL"
    elif any(key.startswith("cond_stage_model.model.") for key in shapes):
        kind = "SD2"
    else:
        kind = "SD1"
    width = shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0,))[0]
    return {"kind": "checkpoint", "architecture": kind, "unet_channels": width, "tensors_of_parts": parts}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        parts = [f"{name}: {count}" for name, count in value.items()] if isinstance(value, Mapping) else value
        more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        return ", ".join(parts[:_SHOWN]) + more or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
