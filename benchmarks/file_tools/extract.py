"""Extraction beside sd-scripts' own: a full-size checkpoint and the same with a known network merged into it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.file_tools.compare import largest_difference
from benchmarks.file_tools.context import Context
from benchmarks.file_tools.figures import Figure, beyond, too_large, too_slow
from benchmarks.file_tools.inputs import write_random_network
from lora_ext.checkpoint.file_weights import CheckpointFile, open_checkpoint_file
from lora_ext.checkpoint.safetensors_file import DTYPES
from lora_ext.networks.atomic_write import replace_file
from lora_ext.networks.file import header_bytes, read_network
from lora_ext.networks.weight_delta import module_delta, module_deltas
from lora_ext.networks.weight_patch import Share, patches_of

RANK = 8
SCRIPT = "networks/extract_lora_from_models.py"
LEAST_SPEED, MOST_MEMORY = 5.0, 0.5
_SLACK = 1 + 1e-4  # of an error, against that of a whole decomposition


def measure(context: Context) -> list[Figure]:
    """The network that was merged into an SD1 checkpoint, taken out again by both programs."""
    case = f"SD1, rank {RANK}, fp16 checkpoints"
    if not context.wants(case):
        return []
    known, tuned, ours, theirs = (
        context.folder / f"{name}.safetensors" for name in ("known", "tuned", "extracted-ours", "extracted-theirs")
    )
    write_random_network(known, "sd1_lora", RANK, modules=context.modules)
    write_merged(context.checkpoint, known, tuned)
    settings = {"base": context.checkpoint, "tuned": tuned, "rank": RANK, "min_diff": 0, "precision": "fp32"}
    our_side = context.ours("extract", {name: str(value) for name, value in settings.items()} | {"out": str(ours)})
    options = ["--model_org", context.checkpoint, "--model_tuned", tuned, "--save_to", theirs, "--dim", RANK]
    options += ["--min_diff", 0, "--clamp_quantile", 1, "--save_precision", "float"]
    their_side = context.sd_scripts_run(SCRIPT, "svd", [str(each) for each in options])
    errors = [dict(extraction_errors(context.checkpoint, tuned, path)) for path in (ours, theirs)]
    worse = max(errors[0][key] / errors[1][key] for key in errors[0])
    facts = {
        "our error, largest of a module": max(errors[0].values()),
        "their error, largest of a module": max(errors[1].values()),
        "our error by theirs, largest": worse,
        "from the known ΔW, ours": largest_difference(ours, known) if context.modules is None else math.nan,
        "from the known ΔW, theirs": largest_difference(theirs, known) if context.modules is None else math.nan,
    }
    missed = beyond(facts, {"our error by theirs, largest": _SLACK})
    missed += too_slow(our_side, their_side, LEAST_SPEED) + too_large(our_side, their_side, MOST_MEMORY)
    return [Figure("extract", case, our_side, their_side, facts, missed)]


def write_merged(base: Path, network: Path, out: Path) -> None:
    """The checkpoint with the network in its weights, in the dtypes that it has, tensor by tensor."""
    checkpoint = open_checkpoint_file(base)
    shares = [
        Share(key, 1.0, None, checkpoint.weights[key], delta)
        for key, delta in module_deltas(read_network(network).modules).items()
    ]
    patches = {checkpoint.tensor_names[parameter]: patch for parameter, patch in patches_of(shares).items()}
    names = {dtype: name for name, dtype in DTYPES.items()}
    file, entries, end = checkpoint.file, {}, 0
    for name, shape in file.shapes.items():
        begin, end = end, end + math.prod(shape) * file.dtypes[name].itemsize
        entries[name] = {"dtype": names[file.dtypes[name]], "shape": list(shape), "data_offsets": [begin, end]}

    def contents() -> Iterator[bytes]:
        yield header_bytes(entries, {})
        for name in entries:
            ((_, tensor),) = file.read({name})
            if name in patches:
                patches[name].write(tensor.clone(), tensor)
            yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()

    replace_file(out, contents())


def extraction_errors(base: Path, tuned: Path, network: Path) -> Iterator[tuple[str, float]]:
    """(module key, ‖W′ - W - ΔW‖ / ‖W′ - W‖) of an extracted network, in fp64, where anything differs."""
    before, after = open_checkpoint_file(base), open_checkpoint_file(tuned)
    modules = read_network(network).modules
    for key, tensors in modules.items():
        change = _value(after, key) - _value(before, key)
        factors = module_delta(tensors).low_rank
        assert factors is not None
        found = factors.scale * (factors.up.double() @ factors.down.double())
        if change.any():
            yield key, float((change - found).norm() / change.norm())


def _value(checkpoint: CheckpointFile, key: str) -> torch.Tensor:
    ((_, value),) = checkpoint.values({key})
    return value.flatten(1).double()
