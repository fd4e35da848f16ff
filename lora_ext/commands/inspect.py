"""`inspect`: what a network or checkpoint file holds, from its header alone."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NETWORK_MARKS = (
    ".lora_down.weight",
    ".lora_up.weight",
    ".alpha",
    ".hada_w1_a",
    ".lokr_w1",
    ".lora_A.weight",
    ".oft_blocks",
)
CHECKPOINT_PARTS = {
    "U-Net": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.",),
    "text encoder": ("cond_stage_model.", "conditioner."),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a network or a checkpoint (.safetensors)")
    parser.add_argument("--json", action="store_true", help="print it as JSON, with all metadata")


def run(options: argparse.Namespace) -> int:
    """Tell what the file is."""
    from lora_ext.host.standalone.tensor_files import open_tensor_file

    tensors = open_tensor_file(options.file)
    is_network = any(key.endswith(NETWORK_MARKS) for key in tensors.shapes)
    facts: dict[str, Any] = {
        "file": str(options.file),
        "bytes": options.file.stat().st_size,
        "tensors": len(tensors.shapes),
        "parameters": sum(math.prod(shape) for shape in tensors.shapes.values()),
        "dtypes": dict(Counter(str(dtype).removeprefix("torch.") for dtype in tensors.dtypes.values())),
    }
    metadata = read_metadata(options.file)
    facts |= network_facts(tensors.shapes, metadata) if is_network else checkpoint_facts(tensors.shapes)
    if options.json:
        print(json.dumps({**facts, "metadata": metadata}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(f"{name.replace('_', ' '):<22}{_shown(value)}" for name, value in facts.items()))
    return 0


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; other formats have none."""
    if path.suffix.lower() != ".safetensors":
        return {}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(header.get("__metadata__", {}))


def network_facts(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Modules, ranks and the most telling metadata of a network."""
    modules = {key.split(".", 1)[0] for key in shapes}
    ranks = Counter(shape[0] for key, shape in shapes.items() if key.endswith(".lora_down.weight"))
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
        "unet_modules": sum(module.startswith("lora_unet_") for module in modules),
        "text_encoder_modules": sum(module.startswith("lora_te") for module in modules),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        **{name: metadata[key] for name, key in told.items() if metadata.get(key, "None") != "None"},
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
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {count}" for name, count in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
