"""Networks of full size for the file tools to work on, with random factors, in sd-scripts' words."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_ext.networks.file import read_network, write_network

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
"""Keys and sizes of sd-scripts' networks: sd1_lora, sd1_locon, sd2_lora, sd2_locon, sdxl_lora, sdxl_locon."""


def module_sizes(kind: str, modules: int | None = None) -> dict[str, tuple[tuple[int, ...], int]]:
    """Module key → (what its down factor has after the rank: in, or in, kh, kw; out), evenly chosen where not all."""
    with gzip.open(DATA / f"{kind}.json.gz", "rt", encoding="utf-8") as file:
        stored = json.load(file)
    keys = sorted(stored)
    if modules is not None and modules < len(keys):
        keys = [keys[number * len(keys) // modules] for number in range(modules)]
    return {key: (tuple(stored[key]["in"]), stored[key]["out"][0]) for key in keys}


def write_random_network(
    path: Path,
    kind: str,
    rank: int,
    *,
    alpha: float | None = None,
    decay: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    modules: int | None = None,
    norm: float = 0.5,
) -> Path:
    """A LoRA or LoCon of random factors at `path`; the same seed gives the same file.

    `alpha` None is the rank. Its i-th pair of vectors is scaled by decayⁱ; ‖ΔW‖ of each module is about `norm`.
    """
    generator = torch.Generator().manual_seed(seed)
    alpha = float(rank) if alpha is None else alpha
    lengths = decay ** torch.arange(rank, dtype=torch.float64)
    scale = (norm / (alpha / rank) / lengths.norm().item()) ** 0.5
    tensors: dict[str, Tensor] = {}
    for key, (inside, out) in module_sizes(kind, modules).items():
        columns = (lengths.sqrt() * scale).float()
        shape = (1, 1) if len(inside) > 1 else ()
        up = torch.randn(out, rank, generator=generator) / math.sqrt(out) * columns
        down = torch.randn(rank, math.prod(inside), generator=generator) / math.sqrt(math.prod(inside))
        tensors[f"{key}.lora_up.weight"] = up.reshape(out, rank, *shape).to(dtype)
        tensors[f"{key}.lora_down.weight"] = (down * columns[:, None]).reshape(rank, *inside).to(dtype)
        tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=dtype)
    base = "sdxl_base_v1-0" if kind.startswith("sdxl") else "sd_v2" if kind.startswith("sd2") else "sd_v1"
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": base,
        "ss_v2": str(kind.startswith("sd2")),
    }
    if kind.endswith("locon"):
        metadata["ss_network_args"] = json.dumps({"conv_dim": str(rank), "conv_alpha": str(alpha)})
    save_file(tensors, path, metadata)
    return path


def add_hashes(path: Path) -> None:
    """Write a network's hashes into its metadata, as trainers do."""
    file = read_network(path)
    precision = "fp16" if next(iter(file.tensors.values())).dtype == torch.float16 else "float"
    write_network(path, file.tensors, file.metadata, precision)
