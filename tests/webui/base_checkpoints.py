"""Small checkpoints of random weights, of every kind of base, in the form in which the WebUI loads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lora_ext.demo.webui_export import write_text_encoder_folder
from lora_ext.host.standalone.random_checkpoint import TINY_KINDS, RandomKind, write_random_kind

OPENCLIP = "lora-workshop-tiny"
"""Name of a small OpenCLIP in open_clip's registry, where the probe extension puts it."""
_SIZES = json.loads((Path(__file__).parent / "probe_extension" / "open_clip" / f"{OPENCLIP}.json").read_text())
_CLIP = {"vocab_size": 49408, "projection_dim": 32, "max_position_embeddings": 77}


def _as_the_webui_builds_it(kind: RandomKind) -> RandomKind:
    """The same with OpenCLIP's sizes as in its registry, where some cannot be chosen."""
    if kind.openclip is None:
        return kind
    text = _SIZES["text_cfg"]
    sizes = {"width": text["width"], "layers": text["layers"], "heads": text["heads"], "mlp_width": None}
    return replace(kind, openclip=replace(kind.openclip, **sizes, projection=_SIZES["embed_dim"]))


BASES = {name: _as_the_webui_builds_it(kind) for name, kind in TINY_KINDS.items() if name != "sd1"}
"""SD1's is the demo checkpoint."""


def write_base(folder: Path, name: str) -> list[Path]:
    """Write `lw-base-<name>` into the WebUI's folder of checkpoints; returns the files."""
    kind = BASES[name]
    path = folder / f"lw-base-{name}.safetensors"
    write_random_kind(path, kind, seed=20 + list(BASES).index(name))
    description = path.with_suffix(".yaml")
    tree = yaml.safe_load(description.read_text(encoding="utf-8"))
    if kind.clip is not None:
        write_text_encoder_folder(folder / "lw-base-text-encoder", {**_CLIP, **kind.clip})
    params = tree["model"]["params"]
    embedders = [params["cond_stage_config"]] if "cond_stage_config" in params else _text_embedders(params)
    for embedder in embedders:
        if "OpenCLIP" in embedder["target"]:
            embedder["params"]["arch"] = OPENCLIP
        else:
            embedder["params"]["version"] = (folder / "lw-base-text-encoder").as_posix()
    description.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return [path, description]


def _text_embedders(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Of SDXL."""
    embedders = params["conditioner_config"]["params"]["emb_models"]
    return [embedder for embedder in embedders if embedder["input_key"] == "txt"]
