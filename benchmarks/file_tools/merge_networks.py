"""Two networks merged into one: ours beside sd-scripts' svd_merge_lora without its clamp, and merge_lora --concat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.file_tools.compare import largest_difference
from benchmarks.file_tools.context import Context
from benchmarks.file_tools.figures import Figure, beyond, too_slow
from benchmarks.file_tools.inputs import add_hashes, write_random_network
from lora_ext.networks.file import read_network
from lora_ext.networks.weight_delta import weight_delta

TOOL = "merge-networks"
RANKS = (64, 128)
WEIGHTS = (0.7, -0.3)
RANK = 32
_DIFFERENCE = "ΔW, largest relative difference"
_FROM_SUM = "ΔW of ours from Σ wᵢ ΔWᵢ, largest relative difference"
_CLAMPS = (("U = U.clamp(low_val, hi_val)", "pass"), ("Vh = Vh.clamp(low_val, hi_val)", "pass"))


def measure(context: Context) -> list[Figure]:
    """Ranks 64 and 128 with the weights 0.7 and -0.3: to rank 32 by svd, plain and with convolutions; side by side."""
    figures = []
    for kind in ("sd1_lora", "sd1_locon"):
        case = f"{kind}, ranks 64 and 128 to {RANK} by svd"
        if context.wants(case):
            figures.append(_by_svd(context, case, _networks(context, kind)))
    case = "sd1_lora, ranks 64 and 128 side by side"
    if context.wants(case):
        figures.append(_by_concat(context, case, _networks(context, "sd1_lora")))
    return figures


def _networks(context: Context, kind: str) -> list[Path]:
    """Two networks of random factors whose singular values fall off as those of trained ones do, with their hashes."""
    paths = [context.folder / f"{kind}-{rank}.safetensors" for rank in RANKS]
    for path, rank in zip(paths, RANKS, strict=True):
        write_random_network(path, kind, rank, decay=0.9, seed=rank, modules=context.modules)
        add_hashes(path)
    return paths


def _by_svd(context: Context, case: str, networks: Sequence[Path]) -> Figure:
    ours_file, theirs_file = context.folder / "ours.safetensors", context.folder / "theirs.safetensors"
    script = _without_clamp(context)
    theirs = context.theirs(
        context.sd_scripts,
        str(script),
        "merge",
        [*_their_arguments(networks, theirs_file), "--new_rank", str(RANK), "--save_precision", "float"],
    )
    ours = context.ours(TOOL, _settings(networks, ours_file) | {"method": "svd", "rank": RANK})
    facts = {_DIFFERENCE: largest_difference(ours_file, theirs_file)}
    missed = [*beyond(facts, {_DIFFERENCE: 1e-3}), *too_slow(ours, theirs, 50)]
    return Figure(TOOL, case, ours, theirs, facts, missed)


def _by_concat(context: Context, case: str, networks: Sequence[Path]) -> Figure:
    ours_file, theirs_file = context.folder / "ours.safetensors", context.folder / "theirs.safetensors"
    theirs = context.sd_scripts_run(
        "networks/merge_lora.py",
        "merge",
        [*_their_arguments(networks, theirs_file), "--concat", "--save_precision", "float"],
    )
    ours = context.ours(TOOL, _settings(networks, ours_file))
    apart = max(float((found - wanted).norm() / wanted.norm()) for found, wanted in _with_sum(ours_file, networks))
    facts = {_FROM_SUM: apart, _DIFFERENCE: largest_difference(ours_file, theirs_file)}
    return Figure(TOOL, case, ours, theirs, facts, beyond(facts, {_FROM_SUM: 1e-5}))


def _settings(networks: Sequence[Path], out: Path) -> dict[str, str | bool]:
    lines = [f"{path}:{weight}" for path, weight in zip(networks, WEIGHTS, strict=True)]
    return {"network": "\n".join(lines), "out": str(out), "overwrite": True, "precision": "fp32"}


def _their_arguments(networks: Sequence[Path], out: Path) -> list[str]:
    return ["--models", *map(str, networks), "--ratios", *map(str, WEIGHTS), "--save_to", str(out)]


def _without_clamp(context: Context) -> Path:
    """A copy of their script that keeps what the singular value decomposition gives; it finds its neighbours."""
    folder = (context.sd_scripts / "networks").resolve()
    text = (folder / "svd_merge_lora.py").read_text(encoding="utf-8")
    for clamp, nothing in _CLAMPS:
        if clamp not in text:
            raise LookupError(f"svd_merge_lora.py has no {clamp!r}")
        text = text.replace(clamp, nothing)
    path = context.folder / "svd_merge_lora.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(folder)!r})\n{text}", encoding="utf-8")
    return path


def _with_sum(merged: Path, networks: Sequence[Path]) -> Iterator[tuple[Tensor, Tensor]]:
    """(ΔW of the merged file, Σ wᵢ ΔWᵢ), module by module."""
    first, second = (read_network(path).modules for path in networks)
    for key, tensors in read_network(merged).modules.items():
        wanted = WEIGHTS[0] * weight_delta(first[key]) + WEIGHTS[1] * weight_delta(second[key])
        yield weight_delta(tensors), wanted
