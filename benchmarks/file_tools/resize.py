"""Resizing: ours beside sd-scripts' resize_lora, and recipes beside elias-gaeros' tool of that name."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.file_tools.compare import largest_difference, ranks
from benchmarks.file_tools.context import Context
from benchmarks.file_tools.figures import Figure, beyond, too_slow
from benchmarks.file_tools.inputs import add_hashes, write_random_network
from lora_ext.checkpoint.file_weights import open_checkpoint_file

TOOL = "resize"
BEFORE, AFTER = 128, 32
RULES = ("sv_ratio=20", "sv_cumulative=0.9", "sv_fro=0.9")
RECIPES = ("fro_ckpt=1,thr=-3.55", "fro_ckpt=1,thr=-1.5", "spn_lora=1,thr=-0.7", "fro_ckpt=1,size=1")
LEAST_SPEED = 60.0
_DIFFERENCE = "ΔW, largest relative difference"
_RANKS = "modules with another rank"
_LIMITS = {_DIFFERENCE: 1e-4, _RANKS: 0.0}


def measure(context: Context) -> list[Figure]:
    """A LoRA and a LoCon of rank 128 to rank 32, fixed and by each rule; recipes on a small SDXL checkpoint."""
    figures = []
    for kind, rules in (("sd1_lora", ("", *RULES)), ("sd1_locon", ("",))):
        for rule in rules:
            case = f"{kind}, rank {BEFORE} to {rule or AFTER}"
            if context.wants(case):
                figures.append(_beside_sd_scripts(context, case, kind, rule))
    for recipe in RECIPES if context.resize_lora else ():
        case = f"SDXL, {recipe}"
        if context.wants(case):
            figures.append(_beside_resize_lora(context, case, recipe))
    return figures


def _beside_sd_scripts(context: Context, case: str, kind: str, rule: str) -> Figure:
    """Singular values fall by a hundred from the first to the last, as those of trained networks do."""
    network = write_random_network(
        context.folder / f"{kind}.safetensors", kind, BEFORE, alpha=BEFORE / 2, decay=100 ** (-1 / BEFORE),
        dtype=torch.float16, modules=context.modules,
    )  # fmt: skip
    add_hashes(network)
    ours_file, theirs_file = context.folder / "ours.safetensors", context.folder / "theirs.safetensors"
    most = BEFORE if rule else AFTER
    options = ["--model", network, "--save_to", theirs_file, "--save_precision", "float", "--new_rank", most]
    if rule:
        method, _, number = rule.partition("=")
        options += ["--dynamic_method", method, "--dynamic_param", number]
    theirs = context.sd_scripts_run(
        "networks/resize_lora.py", "resize", [*map(str, options), "--device", context.device]
    )
    settings = {"files": str(network), "out": str(ours_file), "rank": most, "dynamic": rule}
    ours = context.ours(TOOL, settings | {"precision": "fp32", "overwrite": True})
    facts = _apart(ours_file, theirs_file)
    return Figure(TOOL, case, ours, theirs, facts, [*beyond(facts, _LIMITS), *too_slow(ours, theirs, LEAST_SPEED)])


def _beside_resize_lora(context: Context, case: str, recipe: str) -> Figure:
    """On a checkpoint of SDXL's structure in a small size."""
    assert context.resize_lora is not None
    checkpoint = _checkpoint(context.folder / "tiny-sdxl.safetensors")
    network = _network(context.folder / "tiny-sdxl-network.safetensors", checkpoint)
    ours_file, folder = context.folder / "ours.safetensors", context.folder / "resized"
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    options = [checkpoint, network, "-o", folder, "-t", "32", "-d", context.device, "-r", recipe]
    theirs = context.theirs(context.resize_lora, "resize_lora.py", "main", [str(each) for each in options])
    settings = {"files": str(network), "out": str(ours_file), "recipe": recipe, "checkpoint": str(checkpoint)}
    ours = context.ours(TOOL, settings | {"precision": "fp32", "overwrite": True})
    facts = _apart(ours_file, next(folder.iterdir()))
    return Figure(TOOL, case, ours, theirs, facts, beyond(facts, _LIMITS))


def _apart(ours: Path, theirs: Path) -> dict[str, float]:
    left, right = ranks(ours), ranks(theirs)
    others = sum(left.get(key) != right.get(key) for key in left.keys() | right.keys())
    difference = largest_difference(ours, theirs) if left.keys() == right.keys() else math.inf
    return {_RANKS: float(others), _DIFFERENCE: difference}


def _checkpoint(path: Path) -> Path:
    from lora_ext.host.standalone.random_checkpoint import TINY_KINDS, write_random_kind

    write_random_kind(path, TINY_KINDS["sdxl"])
    return path


def _network(path: Path, checkpoint: Path, rank: int = 16) -> Path:
    """A LoCon of random factors for a checkpoint's layers, some ten times as strong as others.

    Without OpenCLIP's query and key, whose weights the other tool takes for each other's.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for key, view in open_checkpoint_file(checkpoint).weights.items():
        shape = tuple(view.shape)
        is_exchanged = key.startswith("lora_te2_") and key.endswith(("_q_proj", "_k_proj"))
        is_layer = key.startswith("lora_unet_") or "_layers_" in key
        if len(shape) not in (2, 4) or is_exchanged or not is_layer:
            continue
        strength = 0.1 * 10 ** float(torch.rand((), generator=generator))
        up = torch.randn(shape[0], rank, generator=generator) * strength * 0.8 ** torch.arange(rank)
        down = torch.randn(rank, *shape[1:], generator=generator) / math.sqrt(math.prod(shape[1:]))
        tensors[f"{key}.lora_up.weight"] = up.reshape(shape[0], rank, *[1] * (len(shape) - 2))
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path, {"ss_base_model_version": "sdxl_base_v1-0"})
    return path
