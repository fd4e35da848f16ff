"""Resizing by recipe, against dense decompositions and the weights of tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.merge.work import ToolReport
from lora_ext.networks.file import NetworkFile, read_network
from lora_ext.networks.weight_delta import weight_delta
from lora_ext.protocols import UserError
from tests.merge.resizing import (
    ATTENTION,
    NORM,
    SHAPES,
    assert_near,
    dora,
    full,
    loha,
    lokr,
    low_rank,
    network,
    normal,
    rank_of,
    resize,
    sparse,
    write,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "style.safetensors", network(), {"ss_output_name": "style", "ss_training_comment": "mine"})


@pytest.fixture
def weights(tiny_checkpoint_path: Path) -> dict[str, Tensor]:
    return {key: value.float() for key, value in open_checkpoint_file(tiny_checkpoint_path).values(set(SHAPES))}


def by_recipe(file: Path, checkpoint: Path, recipe: str) -> tuple[NetworkFile, ToolReport]:
    out = file.with_name("out.safetensors")
    report = resize(file, out, recipe=recipe, checkpoint=str(checkpoint), overwrite=True)
    return read_network(out), report


@pytest.mark.parametrize("name", ["fro_ckpt", "spn_ckpt", "fro_lora", "spn_lora", "subspace"])
def test_a_threshold_keeps_what_is_large_beside_the_reference(
    name: str, file: Path, tiny_checkpoint_path: Path, weights: dict[str, Tensor]
) -> None:
    threshold = {"fro_ckpt": -1.6, "spn_ckpt": -0.6, "fro_lora": -0.5, "spn_lora": -0.5, "subspace": 0.0}[name]
    found, report = by_recipe(file, tiny_checkpoint_path, f"{name}=1,thr={threshold}")
    for key, module in read_network(file).modules.items():
        whole, weight = weight_delta(module).flatten(1).double(), weights[key].flatten(1).double()
        left, values, right = (part.double() for part in torch.linalg.svd(whole, full_matrices=False))
        left, values, right = left[:, :8], values[:8], right[:8]
        reference = {
            "fro_ckpt": weight.norm(),
            "spn_ckpt": torch.linalg.matrix_norm(weight, 2),
            "fro_lora": whole.norm(),
            "spn_lora": values[0],
            "subspace": (left.T @ weight @ right.T).diagonal().abs(),
        }[name]
        kept = values / reference >= 10**threshold
        told = next(each for each in report.modules if each.key == key)
        assert told.rank_after == int(kept.sum())
        wanted = (left[:, kept] * values[kept]) @ right[kept]
        if kept.any():
            assert_near(weight_delta(found.modules[key]).flatten(1), wanted, 1e-4)
        else:
            assert key not in found.modules
    assert {0} < {each.rank_after for each in report.modules} or name.endswith("lora") or name == "subspace"


def test_a_size_is_reached_by_the_last_value(tmp_path: Path, tiny_checkpoint_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", network(rank=24))
    size = 20 * 1024
    found, report = by_recipe(path, tiny_checkpoint_path, f"fro_ckpt=1,size={size / 2**20}")
    ranks = {key: rank_of(module) for key, module in found.modules.items()}
    cost = {key: 4 * (shape[0] + int(torch.tensor(shape[1:]).prod())) for key, shape in SHAPES.items()}
    used = sum(rank * cost[key] for key, rank in ranks.items())
    assert size <= used < size + max(cost.values())
    assert len(set(ranks.values())) > 1
    assert "Threshold" in report.facts


def test_rescale_multiplies_the_network(tmp_path: Path, tiny_checkpoint_path: Path) -> None:
    modules = network()
    modules[ATTENTION]["lora_up.bias"] = normal(32, seed=2)
    path = write(tmp_path / "a.safetensors", modules)
    found, _ = by_recipe(path, tiny_checkpoint_path, "spn_lora=1,thr=-9,rescale=0.5")
    for key, module in read_network(path).modules.items():
        assert_near(weight_delta(found.modules[key]), 0.5 * weight_delta(module))
    assert_near(found.modules[ATTENTION]["lora_up.bias"], 0.5 * modules[ATTENTION]["lora_up.bias"])
    missing = ATTENTION.replace("down_blocks_0", "down_blocks_7")
    for stays in (low_rank((32, 32)), loha((32, 32)), lokr((32, 32)), full((32, 32)), sparse((32, 32))):
        staying = {missing: stays, NORM: {"w_norm": normal(32), "b_norm": normal(32, seed=1)}}
        found, _ = by_recipe(write(path, modules | staying), tiny_checkpoint_path, "fro_ckpt=1,thr=-9,rescale=0.5")
        assert_near(weight_delta(found.modules[missing]), 0.5 * weight_delta(stays))
        assert_near(found.modules[NORM]["b_norm"], 0.5 * staying[NORM]["b_norm"])
    with_lengths = write(tmp_path / "dora.safetensors", {ATTENTION: dora(SHAPES[ATTENTION])})
    with pytest.raises(UserError, match="DoRA, which cannot be multiplied"):
        by_recipe(with_lengths, tiny_checkpoint_path, "spn_lora=1,thr=-9,rescale=0.5")


def test_a_threshold_above_everything_is_refused(file: Path, tiny_checkpoint_path: Path) -> None:
    with pytest.raises(UserError, match="the file would be empty: give a lower thr"):
        by_recipe(file, tiny_checkpoint_path, "fro_ckpt=1,thr=3")


@pytest.mark.parametrize("score", ["fro_ckpt", "spn_ckpt", "subspace"])
def test_inpainting_is_compared_with_in_the_channels_that_others_have(
    score: str, tmp_path: Path, tiny_kind_path: Callable[[str], Path]
) -> None:
    first = "lora_unet_conv_in"
    path = write(tmp_path / "a.safetensors", {first: low_rank((32, 4, 3, 3))})
    found, _ = by_recipe(path, tiny_kind_path("sd1-inpainting"), f"{score}=1,thr=-9")
    assert rank_of(found.modules[first]) == 8


def test_modules_that_the_checkpoint_lacks_stay(tmp_path: Path, tiny_checkpoint_path: Path) -> None:
    other = ATTENTION.replace("down_blocks_0", "down_blocks_7")
    path = write(tmp_path / "a.safetensors", network() | {other: low_rank((32, 32))})
    found, report = by_recipe(path, tiny_checkpoint_path, "fro_ckpt=1,thr=-1")
    assert rank_of(found.modules[other]) == 8
    assert any("down_blocks_7" in warning for warning in report.warnings)


def test_another_base_is_refused(tmp_path: Path, tiny_kind_path: Callable[[str], Path]) -> None:
    path = write(tmp_path / "a.safetensors", network())
    with pytest.raises(UserError, match=r"a.safetensors: .*none of its modules"):
        by_recipe(path, tiny_kind_path("sdxl"), "fro_ckpt=1,thr=-1")
    wide = write(tmp_path / "b.safetensors", {ATTENTION: low_rank((40, 40))})
    with pytest.raises(UserError, match=r"b.safetensors: it was made for another kind of checkpoint"):
        by_recipe(wide, tiny_kind_path("sd1"), "fro_ckpt=1,thr=-1")
