"""Damaged network files of every kind, by the hundred: a message, nothing raised, and the checkpoint as it was."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.tags import LoraTag
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.networks.file import write_network
from lora_ext.networks.library import NetworkLibrary

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
OUT = IN = 64
RANK = 4

Tensors = dict[str, Tensor]
Damage = Callable[[Tensors, random.Random], None]


def kinds() -> dict[str, Tensors]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    lora = {"lora_up.weight": randn(OUT, RANK), "lora_down.weight": randn(RANK, IN), "alpha": torch.tensor(2.0)}
    return {
        "LoRA": lora,
        "DoRA": {**lora, "dora_scale": randn(OUT, 1) + 1},
        "LoHa": {f"hada_w{n}_{x}": randn(*((OUT, RANK) if x == "a" else (RANK, IN))) for n in (1, 2) for x in "ab"},
        "LoKr": {"lokr_w1": randn(8, 8), "lokr_w2_a": randn(8, RANK), "lokr_w2_b": randn(RANK, 8)},
        "diag-OFT": {"oft_blocks": randn(8, 8, 8), "rescale": randn(OUT, 1) + 1},
        "BOFT": {"oft_blocks": randn(2, 8, 8, 8)},
        "full": {"diff": randn(OUT, IN), "diff_b": randn(OUT)},
        "(IA)³": {"weight": randn(OUT), "on_input": torch.tensor(False)},
        "GLoRA": {
            f"{n}.weight": randn(*((OUT, RANK) if n[1] == "1" else (RANK, IN))) for n in ("a1", "a2", "b1", "b2")
        },
    }


def _some(tensors: Tensors, random: random.Random) -> str:
    return random.choice(sorted(tensors))


def other_shape(tensors: Tensors, random: random.Random) -> None:
    shape = random.choice([(0,), (1,), (RANK,), (OUT, IN + 1), (3, 3, 3), (1, 1, 1, 1), (OUT, RANK, 3, 3), (2000, 1)])
    tensors[_some(tensors, random)] = torch.full(shape, 0.1)


def other_values(tensors: Tensors, random: random.Random) -> None:
    name = _some(tensors, random)
    tensors[name] = torch.full_like(tensors[name].float(), random.choice([float("nan"), float("inf"), 3e38, -1.0, 0.0]))


def other_dtype(tensors: Tensors, random: random.Random) -> None:
    name = _some(tensors, random)
    tensors[name] = tensors[name].to(
        random.choice([torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.uint8])
    )


def missing(tensors: Tensors, random: random.Random) -> None:
    del tensors[_some(tensors, random)]


def other_name(tensors: Tensors, random: random.Random) -> None:
    name = _some(tensors, random)
    tensors[random.choice(["mystery", "alpha", "lora_mid.weight", "dora_scale", "hada_t1", "bm.weight", "w_norm"])] = (
        tensors.pop(name)
    )


def transposed(tensors: Tensors, random: random.Random) -> None:
    name = _some(tensors, random)
    tensors[name] = tensors[name].t().contiguous() if tensors[name].ndim == 2 else tensors[name][None]


DAMAGES: tuple[Damage, ...] = (other_shape, other_values, other_dtype, missing, other_name, transposed)


def damage_bytes(path: Path, random: random.Random) -> None:
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    how = random.randrange(4 if len(data) > 8 + length else 3)  # an empty file has no tensor to say wrong things of
    if how == 0:
        del data[random.randrange(len(data)) :]
    elif how == 1:
        data[random.randrange(8 + length)] = random.randrange(256)
    elif how == 2:
        data[random.randrange(8)] = random.randrange(256)
    else:
        header = json.loads(data[8 : 8 + length])
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        entry[random.choice(sorted(entry))] = random.choice([None, -1, [], [-1, 5], [2**40, 2**41], "F99", {"a": 1}])
        text = json.dumps(header).encode()
        data[: 8 + length] = len(text).to_bytes(8, "little") + text
    path.write_bytes(data)


def check(checkpoint: Checkpoint, folder: Path, count: int, seed: int) -> None:
    draw, bases = random.Random(seed), kinds()
    weights = {key: view.detach() for key, view in checkpoint_weights(checkpoint).items()}
    before = {key: weight.clone() for key, weight in weights.items()}
    active = ActiveNetworks(checkpoint, checkpoint.ledger, NetworkLibrary([folder]))
    path, left_out = folder / "cat.safetensors", 0
    for number in range(count):
        tensors = dict(bases[draw.choice(sorted(bases))])
        for _ in range(draw.randint(0, 2)):
            if tensors:
                draw.choice(DAMAGES)(tensors, draw)
        write_network(path, {f"{KEY}.{suffix}": tensor for suffix, tensor in tensors.items()}, {}, "float")
        if draw.random() < 0.5:
            damage_bytes(path, draw)
        messages = active.activate([LoraTag("cat", 0.5 + number / 1000)])
        if any(" is left out: " in message for message in messages):
            left_out += 1
            assert all(torch.equal(weight, before[key]) for key, weight in weights.items()), messages
        active.deactivate()
        assert all(torch.equal(weight, before[key]) for key, weight in weights.items()), messages
    assert count / 4 < left_out < count


def test_some_damaged_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    check(checkpoint, tmp_path, 60, seed=1)


@pytest.mark.slow
def test_many_damaged_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    check(checkpoint, tmp_path, 1000, seed=2)
