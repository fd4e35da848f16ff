"""Every tool once or more, with small inputs: what the tests of all tools are run over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.merge.tools import MODULES, Tool, make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import read_network, write_network

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONTEXT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
FEED = "lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_ff_net_2"
CONVOLUTION = "lora_unet_down_blocks_1_resnets_0_conv1"
POINTWISE = "lora_unet_down_blocks_0_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_1_mlp_fc1"
SIZES: dict[str, tuple[int, ...]] = {
    ATTENTION: (32, 32),
    CONTEXT: (32, 32),
    FEED: (32, 128),
    CONVOLUTION: (32, 32, 3, 3),
    POINTWISE: (32, 32, 1, 1),
    TEXT: (64, 32),
}
"""Modules of the tiny SD1 checkpoint, and the sizes of their weights."""

RANK = 4
METADATA = {"ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2.0"}

Deltas = Mapping[str, Tensor]
"""ΔW in fp64 by module key."""


@dataclass(frozen=True)
class Inputs:
    """Files in one folder, which the outputs go into as well: two networks, a checkpoint and a tuned one."""

    folder: Path
    network: Path
    other: Path
    checkpoint: Path
    tuned: Path

    @property
    def out(self) -> Path:
        """Where a tool writes."""
        return self.folder / "out.safetensors"


@dataclass(frozen=True)
class ToolCase:
    """A tool and settings for it; `reads` names the inputs that it reads, `several` says that it writes several files.

    `tolerance` is how far its result may be, relatively, from what `expected` makes of the ΔW of its inputs (the first
    two in `reads`, or a single one); None where nothing is so simple.
    """

    tool: str
    values: Callable[[Inputs], dict[str, Any]]
    reads: tuple[str, ...] = ("network",)
    writes: bool = True
    several: bool = False
    name: str = ""
    expected: Callable[..., Deltas] = dict
    tolerance: float | None = None

    def __str__(self) -> str:
        return self.name or self.tool

    @property
    def registered(self) -> Tool:
        """The tool itself."""
        return tool_named(self.tool)

    def run(self, inputs: Inputs, work: Work | None = None, **changed: Any) -> ToolReport:
        """Let the tool do its work, with some of the settings' values changed."""
        tool = self.registered
        return tool.run(make_settings(tool, {**self.values(inputs), **changed}), work or Work())

    def preview(self, inputs: Inputs, **changed: Any) -> ToolReport:
        """Let the tool tell what it would do."""
        tool = self.registered
        assert tool.preview is not None
        return tool.preview(make_settings(tool, {**self.values(inputs), **changed}), Work())


def _sum(network: Deltas, other: Deltas) -> Deltas:
    zero = torch.zeros(())
    return {key: 0.7 * network.get(key, zero) - 0.3 * other.get(key, zero) for key in {*network, *other}}


def _two(inputs: Inputs) -> str:
    return f"{inputs.network}:0.7\n{inputs.other}:-0.3"


CASES = [
    ToolCase(
        "merge-checkpoint",
        lambda f: {"checkpoint": str(f.checkpoint), "network": _two(f), "precision": "fp32", "out": str(f.out)},
        ("network", "other", "checkpoint"),
        expected=_sum,
        tolerance=1e-5,
    ),
    ToolCase(
        "merge-networks",
        lambda f: {"network": _two(f), "method": "concat", "precision": "fp32", "out": str(f.out)},
        ("network", "other"),
        name="merge-networks, concat",
        expected=_sum,
        tolerance=1e-5,
    ),
    ToolCase(
        "merge-networks",
        lambda f: {"network": _two(f), "method": "svd", "rank": 4, "conv_rank": 4, "out": str(f.out)},
        ("network", "other"),
        name="merge-networks, svd",
    ),
    ToolCase(
        "resize",
        lambda f: {"files": str(f.network), "rank": 32, "conv_rank": 32, "precision": "fp32", "out": str(f.out)},
        tolerance=1e-5,
    ),
    ToolCase(
        "resize",
        lambda f: {"files": str(f.network), "rank": 3, "dynamic": "sv_fro=0.9", "out": str(f.out)},
        name="resize, dynamic",
    ),
    ToolCase(
        "resize",
        lambda f: {
            "files": str(f.network),
            "recipe": "fro_ckpt=1,thr=-3.55",
            "checkpoint": str(f.checkpoint),
            "out": str(f.out),
        },
        ("network", "checkpoint"),
        name="resize, recipe",
    ),
    ToolCase(
        "extract",
        lambda f: {"base": str(f.checkpoint), "tuned": str(f.tuned), "rank": 4, "conv_rank": 4, "out": str(f.out)},
        ("checkpoint", "tuned"),
    ),
    ToolCase("convert", lambda f: {"file": str(f.network), "to": "diffusers", "out": str(f.out)}, tolerance=1e-5),
    ToolCase("repair", lambda f: {"file": str(f.network), "out": str(f.out)}, tolerance=1e-5),
    ToolCase(
        "dylora-split",
        lambda f: {"file": str(f.network), "ranks": "1,2", "out": str(f.folder / "ranks.safetensors")},
        several=True,
    ),
    ToolCase("check", lambda f: {"files": str(f.network)}, writes=False),
    ToolCase(
        "check",
        lambda f: {"files": str(f.network), "checkpoint": str(f.checkpoint)},
        ("network", "checkpoint"),
        writes=False,
        name="check, with a checkpoint",
    ),
    ToolCase("inspect", lambda f: {"file": str(f.network)}, writes=False),
    ToolCase("metadata", lambda f: {"file": str(f.network)}, writes=False),
]

PRESENT = [case for case in CASES if case.tool in MODULES]
WRITING = [case for case in PRESENT if case.writes]
TO_ONE_FILE = [case for case in WRITING if not case.several]
ELSEWHERE = {"interrogate": "needs a text encoder from its host: tests/merge/test_interrogate.py"}


def low_rank_module(size: tuple[int, ...], generator: torch.Generator, rank: int = RANK) -> dict[str, Tensor]:
    """Up, down and alpha of a module whose weight has this size."""
    ones = [1] * (len(size) - 2)
    return {
        "lora_up.weight": torch.randn(size[0], rank, *ones, generator=generator) * 0.1,
        "lora_down.weight": torch.randn(rank, *size[1:], generator=generator) / math.sqrt(math.prod(size[1:])),
        "alpha": torch.tensor(rank / 2),
    }


def low_rank_tensors(seed: int, rank: int = RANK, keys: tuple[str, ...] = tuple(SIZES)) -> dict[str, Tensor]:
    """A LoRA of these modules of the tiny checkpoint, in fp32."""
    generator = torch.Generator().manual_seed(seed)
    modules = {key: low_rank_module(SIZES[key], generator, rank) for key in keys}
    return {f"{key}.{suffix}": tensor for key, tensors in modules.items() for suffix, tensor in tensors.items()}


def write_low_rank(path: Path, seed: int, rank: int = RANK, keys: tuple[str, ...] = tuple(SIZES)) -> Path:
    """`low_rank_tensors` in a file."""
    write_network(path, low_rank_tensors(seed, rank, keys), METADATA, "float")
    return path


def deltas(path: Path) -> dict[str, Tensor]:
    """ΔW of every module of a file of LoRA and LoCon, in fp64, by their definition; without those that have none."""
    found = {}
    for key, tensors in read_network(path).modules.items():
        up, down = (tensors.get(f"lora_{name}.weight", torch.zeros(0, 0)).double() for name in ("up", "down"))
        alpha = tensors.get("alpha", torch.tensor(float(len(down))))
        if up.ndim < 2 or down.ndim < 2 or up.flatten(1).shape[1] != len(down) or not len(down) or alpha.numel() != 1:
            continue
        change = float(alpha) / len(down) * (up.flatten(1) @ down.flatten(1))
        if torch.isfinite(change).all():
            found[key] = change
    return found


def changes(before: Path, after: Path) -> dict[str, Tensor]:
    """W′ − W of the modules in `SIZES`, in fp64."""
    one, other = (dict(open_checkpoint_file(path).values(set(SIZES))) for path in (before, after))
    return {key: (other[key].double() - one[key].double()).flatten(1) for key in SIZES}


def expected_deltas(case: ToolCase, inputs: Inputs) -> Deltas:
    """What the result's ΔW has to be."""
    return case.expected(*(deltas(getattr(inputs, name)) for name in case.reads if name in ("network", "other")))


def result_deltas(case: ToolCase, inputs: Inputs) -> Deltas:
    """ΔW of what was written."""
    return changes(inputs.checkpoint, inputs.out) if case.tool == "merge-checkpoint" else deltas(inputs.out)


def difference(found: Deltas, expected: Deltas) -> float:
    """The largest ‖ΔW − ΔW′‖ / ‖ΔW′‖, where ΔW′ is not zero; infinite where they are of other modules."""
    changed = {key for key, each in expected.items() if each.any()}
    if {key for key, each in found.items() if each.any()} - set(expected) or changed - set(found):
        return math.inf
    return max((float((found[key] - expected[key]).norm() / expected[key].norm()) for key in changed), default=0.0)
