"""Networks merged into a checkpoint of SD1's full size: ours beside sd-scripts' merge_lora."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.file_tools.context import Context
from benchmarks.file_tools.figures import Figure, Side, beyond
from benchmarks.file_tools.inputs import write_random_network
from lora_ext.checkpoint.tensor_files import TensorFile, open_tensor_file

TOOL = "merge-checkpoint"
WEIGHTS = (0.7, -0.3)
_STEPS = "largest difference, in steps of fp16"
_SHARE = "share of the numbers that differ"
_LEAST_STEP = 2.0**-24
_MEMORY_MB = 1000


def measure(context: Context) -> list[Figure]:
    """A LoRA of rank 128, then a LoRA and a LoCon of rank 64 together, into a checkpoint that is saved in fp16."""
    figures = []
    for kinds, rank in ((("sd1_lora",), 128), (("sd1_lora", "sd1_locon"), 64)):
        case = f"{' and '.join(kinds)}, rank {rank}, fp16"
        if context.wants(case):
            networks = [
                write_random_network(context.folder / f"{kind}-{rank}.safetensors", kind, rank, modules=context.modules)
                for kind in kinds
            ]
            figures.append(_figure(context, case, networks))
    return figures


def _figure(context: Context, case: str, networks: Sequence[Path]) -> Figure:
    ours_file, theirs_file = context.folder / "ours.safetensors", context.folder / "theirs.safetensors"
    weights = WEIGHTS[: len(networks)]
    theirs = context.sd_scripts_run(
        "networks/merge_lora.py",
        "merge",
        ["--sd_model", str(context.checkpoint), "--save_to", str(theirs_file), "--save_precision", "fp16"]
        + ["--models", *map(str, networks), "--ratios", *map(str, weights)],
    )
    ours = context.ours(
        TOOL,
        {
            "checkpoint": str(context.checkpoint),
            "network": "\n".join(f"{path}:{weight}" for path, weight in zip(networks, weights, strict=True)),
            "precision": "fp16",
            "out": str(ours_file),
            "overwrite": True,
        },
    )
    facts = compare(ours_file, theirs_file)
    return Figure(TOOL, case, ours, theirs, facts, [*beyond(facts, {_STEPS: 1}), *_too_much(context, ours)])


def compare(left: Path, right: Path) -> dict[str, float]:
    """How far the tensors that both checkpoints have are apart, in steps of fp16 at that place."""
    ours, theirs = open_tensor_file(left), open_tensor_file(right)
    steps, differing, numbers = 0.0, 0, 0
    for name in sorted(set(ours.shapes) & set(theirs.shapes)):
        one, other = _values(ours, name), _values(theirs, name)
        apart = _steps(one, other)
        steps = max(steps, apart.max().item())
        differing += int((apart > 0).sum())
        numbers += apart.numel()
    return {_STEPS: steps, _SHARE: differing / numbers, "numbers compared": float(numbers)}


def _values(file: TensorFile, name: str) -> Tensor:
    ((_, tensor),) = file.read({name})
    return tensor.float()


def _steps(one: Tensor, other: Tensor) -> Tensor:
    """|one − other| by the distance of neighbouring fp16 numbers there."""
    exponents = torch.frexp(torch.maximum(one.abs(), other.abs()))[1]
    return (one - other).abs() / torch.exp2(exponents.float() - 11).clamp_min(_LEAST_STEP)


def _too_much(context: Context, ours: Side) -> list[str]:
    """In words, where memory is more than 1 GB and the largest tensor."""
    file = open_tensor_file(context.checkpoint)
    largest = max(math.prod(shape) * file.dtypes[name].itemsize for name, shape in file.shapes.items()) / 1e6
    most = _MEMORY_MB + largest
    return [] if ours.anonymous_mb <= most else [f"{ours.anonymous_mb:,.0f} MB, at most {most:,.0f}"]
