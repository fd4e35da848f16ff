"""Networks in a checkpoint's file: the weights are those of the loaded checkpoint with the networks' tags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from algorithm_files import ALGORITHMS
from safetensors.torch import load_file
from torch import Tensor

from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.tags import parse_tags
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.networks.library import NetworkLibrary
from tests.merge.checkpoint_merging import KindPath, different, run, write

Loaded = Callable[[str], Checkpoint]


@pytest.fixture(scope="session")
def loaded(tiny_kind_path: KindPath) -> Callable[[str], Checkpoint]:
    """Tiny checkpoints in memory, fp32; whoever patches one restores it."""
    found: dict[str, Checkpoint] = {}

    def checkpoint_of(kind: str) -> Checkpoint:
        if kind not in found:
            found[kind] = load_checkpoint(tiny_kind_path(kind), torch.device("cpu"), torch.float32).checkpoint
        return found[kind]

    return checkpoint_of


def stored(path: Path) -> dict[str, Tensor]:
    """Weights and biases by their modules' keys, as the file has them."""
    file = open_checkpoint_file(path)
    tensors = load_file(path)
    found = {}
    for key, view in file.weights.items():
        found[key] = view.of(tensors[file.tensor_of(key)])
        if view.bias is not None:
            found[f"{key}.bias"] = view.bias.of(tensors[file.tensor_names[view.bias.parameter]])
    return found


def with_tags(checkpoint: Checkpoint, folder: Path, prompt: str) -> dict[str, Tensor]:
    """The loaded checkpoint's weights and biases by their modules' keys, with a prompt's tags."""
    active = ActiveNetworks(checkpoint, PatchLedger(), NetworkLibrary([folder]))
    assert active.activate(parse_tags(prompt).tags) == []
    found = {}
    for key, view in checkpoint_weights(checkpoint).items():
        found[key] = view.detach().clone()
        if view.bias is not None:
            found[f"{key}.bias"] = view.bias.detach().clone()
    active.deactivate()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_merged_as_it_is_applied(
    tmp_path: Path, tiny_kind_path: KindPath, loaded: Loaded, algorithm: str
) -> None:
    base, out = tiny_kind_path("sd1"), tmp_path / "merged.safetensors"
    net = write(tmp_path, base, algorithm)
    run(checkpoint=str(base), network=f"{net}:0.7", out=str(out))
    assert different(stored(out), with_tags(loaded("sd1"), tmp_path, "<lora:net:0.7>")) == set()
    assert len(different(stored(out), stored(base))) > 20


SEVERAL = ("LoCon, Tucker", "LoHa", "(IA)³", "diag-OFT", "DoRA, out")
LBW = {"sd1": "1,0,0.5,1,1,1,1,1,1,1,1,1,1,1,1,1,0.2", "sdxl": "MIDD"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd1-inpainting", "sd2", "sdxl"])
def test_several_networks_with_all_their_weights(
    tmp_path: Path, tiny_kind_path: KindPath, loaded: Loaded, kind: str
) -> None:
    base, out = tiny_kind_path(kind), tmp_path / "merged.safetensors"
    weights = [0.7, -0.3, 0.0, 0.5, 0.4]
    for number, algorithm in enumerate(SEVERAL):
        write(tmp_path, base, algorithm, f"net{number}", seed=number)
    lbw = LBW.get(kind, "OUTALL")
    report = run(
        checkpoint=str(base), out=str(out), lbw=lbw, te_weight="\n".join(["0.5", *["same"] * 4]),
        network="\n".join(f"{tmp_path / f'net{n}.safetensors'}:{weight}" for n, weight in enumerate(weights)),
    )  # fmt: skip
    tags = [f"<lora:net{n}:{weight}:{weight}:lbw={lbw}>" for n, weight in enumerate(weights)]
    prompt = " ".join(["<lora:net0:0.5:0.7:lbw=" + lbw + ">", *tags[1:]])
    expected = with_tags(loaded(kind), tmp_path, prompt)
    assert different(stored(out), expected) == set()
    assert len(different(stored(out), stored(base))) > 100
    assert report.facts["Network 1"].startswith(f"net0 × 0.7, text encoders × 0.5, lbw={lbw}: ")


def test_a_file_that_is_named_twice_has_both_weights(tmp_path: Path, tiny_kind_path: KindPath, loaded: Loaded) -> None:
    """Which for DoRA is not the sum of two changes."""
    base, out = tiny_kind_path("sd1"), tmp_path / "merged.safetensors"
    net = write(tmp_path, base, "DoRA, out")
    run(checkpoint=str(base), network=f"{net}:0.25\n{net}:0.5", out=str(out))
    assert different(stored(out), with_tags(loaded("sd1"), tmp_path, "<lora:net:0.75>")) == set()
