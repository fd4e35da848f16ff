"""Resizing: the best approximation of each module, whatever it is stored as, and files that tell what was done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.merge.resize import TOOL
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import NetworkFile, model_hash, precalculate_hashes, read_network, write_network
from lora_ext.networks.weight_delta import weight_delta
from lora_ext.protocols import Cancelled, Control, UserError

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
POINTWISE = "lora_unet_down_blocks_0_attentions_0_proj_in"
KERNEL = "lora_unet_down_blocks_0_resnets_0_conv1"
NORM = "lora_unet_down_blocks_0_resnets_0_norm1"
SHAPES: dict[str, tuple[int, ...]] = {
    ATTENTION: (32, 32), TEXT: (64, 32), POINTWISE: (32, 32, 1, 1), KERNEL: (32, 32, 3, 3)
}  # fmt: skip
"""As in the tiny SD1 checkpoint."""

Modules = Mapping[str, Mapping[str, Tensor]]


def normal(*shape: int, seed: int = 0, size: float = 0.1) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(shape: tuple[int, ...], rank: int = 8, alpha: float = 4.0, seed: int = 0) -> dict[str, Tensor]:
    ones = (1,) * (len(shape) - 2)
    return {
        "lora_up.weight": (normal(shape[0], rank, seed=seed) * 0.7 ** torch.arange(rank)).reshape(
            shape[0], rank, *ones
        ),
        "lora_down.weight": normal(rank, *shape[1:], seed=seed + 1),
        "alpha": torch.tensor(alpha),
    }


def network(rank: int = 8) -> dict[str, dict[str, Tensor]]:
    return {key: low_rank(shape, rank, seed=10 * n) for n, (key, shape) in enumerate(SHAPES.items())}


def write(path: Path, modules: Modules, metadata: Mapping[str, str] | None = None, **more: Tensor) -> Path:
    tensors = {f"{key}.{suffix}": tensor for key, module in modules.items() for suffix, tensor in module.items()}
    write_network(path, tensors | more, metadata or {}, "float")
    return path


def resize(path: Path | str, out: Path, work: Work | None = None, **values: Any) -> ToolReport:
    return TOOL.run(make_settings(TOOL, {"files": str(path), "out": str(out), **values}), work or Work())


def rank_of(module: Mapping[str, Tensor]) -> int:
    return int(module["lora_down.weight"].shape[0])


def best(matrix: Tensor, rank: int) -> Tensor:
    """By torch's dense decomposition."""
    left, values, right = torch.linalg.svd(matrix.flatten(1).double(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(matrix.shape)


def assert_near(found: Tensor, wanted: Tensor, relative: float = 1e-5) -> None:
    assert float((found.double() - wanted.double()).norm()) <= relative * float(wanted.double().norm())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "style.safetensors", network(), {"ss_output_name": "style", "ss_training_comment": "mine"})


def test_every_module_is_the_best_approximation_of_its_rank(file: Path, tmp_path: Path) -> None:
    report = resize(file, tmp_path / "out.safetensors", rank=3, conv_rank=2)
    before, after = read_network(file).modules, read_network(tmp_path / "out.safetensors").modules
    assert {key: rank_of(module) for key, module in after.items()} == {ATTENTION: 3, TEXT: 3, POINTWISE: 2, KERNEL: 2}
    for key, module in after.items():
        whole, found = weight_delta(before[key]), weight_delta(module)
        assert found.shape == SHAPES[key]
        assert_near(found, best(whole, rank_of(module)))
        assert float(module["alpha"]) == 0.5 * rank_of(module)  # alpha / rank stays, as in sd-scripts
        told = next(each for each in report.modules if each.key == key)
        assert (told.rank_before, told.rank_after) == (8, rank_of(module))
        lost = float((whole - found).norm() / whole.norm())
        assert told.kept == pytest.approx(1 - lost**2, abs=1e-5)


@pytest.mark.parametrize("rule", ["sv_ratio=5", "sv_cumulative=0.8", "sv_fro=0.9"])
def test_rules_keep_one_more_unless_told_otherwise(file: Path, tmp_path: Path, rule: str) -> None:
    resize(file, tmp_path / "more.safetensors", dynamic=rule)
    resize(file, tmp_path / "stated.safetensors", dynamic=rule, kohya_rank=False)
    resize(file, tmp_path / "limited.safetensors", dynamic=rule, rank=2)
    before = read_network(file).modules
    more, stated, limited = (read_network(tmp_path / f"{name}.safetensors") for name in ("more", "stated", "limited"))
    name, number = rule.split("=")
    for key, module in before.items():
        values = torch.linalg.svdvals(weight_delta(module).flatten(1).double())
        shares = values if name == "sv_cumulative" else values**2
        wanted = float(number) ** (2 if name == "sv_fro" else 1)
        counted = (
            int((values > values[0] / 5).sum())
            if name == "sv_ratio"
            else 1 + int((shares.cumsum(0) / shares.sum() < wanted).sum())
        )
        assert rank_of(stated.modules[key]) == counted
        assert rank_of(more.modules[key]) == counted + 1
        assert rank_of(limited.modules[key]) == 2
    assert stated.metadata["ss_training_comment"] == f"Dynamic resize with {name}: {number} from 8; mine"


def test_a_rank_above_what_there_is_changes_nothing(file: Path, tmp_path: Path) -> None:
    resize(file, tmp_path / "out.safetensors", rank=64)
    before, after = read_network(file).modules, read_network(tmp_path / "out.safetensors").modules
    for key, module in after.items():
        assert rank_of(module) == 8
        assert_near(weight_delta(module), weight_delta(before[key]))


def test_metadata_lineage_and_hashes(file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    resize(file, first, rank=4)
    resize(first, second, rank=3, conv_rank=2)
    found = read_network(second)
    assert found.metadata["ss_network_dim"] == found.metadata["ss_network_alpha"] == "Dynamic"  # 3, and 2 of 1×1 ones
    assert json.loads(found.metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "1.0"}
    assert found.metadata["ss_training_comment"] == (
        "dimension is resized from 4 to 3 (conv: 2); dimension is resized from 8 to 4; mine"
    )
    assert found.metadata["ss_output_name"] == "second"
    assert json.loads(found.metadata["lw_sources"]) == [
        {
            "name": "first.safetensors",
            "hash": model_hash(first),
            "sources": [{"name": "style.safetensors", "hash": model_hash(file)}],
        }
    ]
    hashes = (found.metadata["sshs_model_hash"], found.metadata["sshs_legacy_hash"])
    assert hashes == precalculate_hashes(found.tensors, found.metadata)
    assert read_network(first).metadata["ss_network_dim"] == "4"
    assert read_network(first).metadata["ss_network_alpha"] == "2.0"


@pytest.mark.parametrize("precision", ["as stored", "fp16", "bf16", "fp32"])
def test_a_preview_tells_what_a_run_writes_and_writes_nothing(file: Path, tmp_path: Path, precision: str) -> None:
    values = {"files": str(file), "out": str(tmp_path / "out.safetensors"), "rank": 3, "precision": precision}
    assert TOOL.preview is not None
    seen = TOOL.preview(make_settings(TOOL, values), Work())
    assert sorted(tmp_path.iterdir()) == [file]
    done = TOOL.run(make_settings(TOOL, values), Work())
    assert seen.files == done.files
    assert done.files[0].size == (tmp_path / "out.safetensors").stat().st_size
    assert seen.facts == done.facts
    for module in seen.modules:
        wanted = torch.linalg.svdvals(weight_delta(read_network(file).modules[module.key]).flatten(1))
        assert module.singular_values is not None
        torch.testing.assert_close(module.singular_values, wanted[:8], rtol=1e-4, atol=1e-6)


def loha(shape: tuple[int, ...]) -> dict[str, Tensor]:
    columns = shape[1:].numel() if isinstance(shape, torch.Size) else int(torch.tensor(shape[1:]).prod())
    parts = {
        "hada_w1_a": (shape[0], 2),
        "hada_w1_b": (2, columns),
        "hada_w2_a": (shape[0], 2),
        "hada_w2_b": (2, columns),
    }
    return {name: normal(*each, seed=n, size=0.5) for n, (name, each) in enumerate(parts.items())} | {
        "alpha": torch.tensor(1.0)
    }


def lokr(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        "lokr_w1": normal(4, 4),
        "lokr_w2_a": normal(shape[0] // 4, 2, seed=1),
        "lokr_w2_b": normal(2, shape[1] // 4, *shape[2:], seed=2),
        "alpha": torch.tensor(1.0),
    }


def full(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"diff": normal(*shape), "diff_b": normal(shape[0], seed=1)}


def tucker(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        "lora_up.weight": normal(shape[0], 4, 1, 1),
        "lora_mid.weight": normal(4, 4, *shape[2:], seed=1),
        "lora_down.weight": normal(4, shape[1], 1, 1, seed=2),
        "alpha": torch.tensor(2.0),
    }


def sparse(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return low_rank(shape, 4) | {
        "bias_indices": torch.tensor([[0, 5], [3, 7]]),
        "bias_values": torch.tensor([0.5, -0.5]),
        "bias_size": torch.tensor(shape),
    }


def dora(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return low_rank(shape) | {"dora_scale": 1 + normal(shape[0], *[1] * (len(shape) - 1), seed=3)}


def dora_by_input(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return lokr(shape) | {"dora_scale": 1 + normal(1, shape[1], *[1] * (len(shape) - 2), seed=3)}


ALGORITHMS: list[tuple[Callable[[tuple[int, ...]], dict[str, Tensor]], str]] = [
    (loha, ATTENTION), (loha, KERNEL), (lokr, ATTENTION), (lokr, KERNEL), (full, ATTENTION), (full, KERNEL),
    (tucker, KERNEL), (sparse, ATTENTION), (dora, ATTENTION), (dora, KERNEL), (dora_by_input, KERNEL),
]  # fmt: skip


@pytest.mark.parametrize(("make", "key"), ALGORITHMS)
def test_every_algorithm_becomes_a_lora_of_the_same_change(
    make: Callable[[tuple[int, ...]], dict[str, Tensor]], key: str, tmp_path: Path
) -> None:
    """At the full rank nothing is lost; DoRA's lengths and biases stay."""
    path = write(tmp_path / "a.safetensors", {key: make(SHAPES[key])})
    resize(path, tmp_path / "out.safetensors", rank=1000)
    before, after = read_network(path).modules[key], read_network(tmp_path / "out.safetensors").modules[key]
    assert set(after) <= {"lora_up.weight", "lora_down.weight", "alpha", "lora_up.bias", "dora_scale"}
    assert after["lora_down.weight"].shape[1:] == SHAPES[key][1:]
    base = normal(*SHAPES[key], seed=5)
    assert_near(weight_delta(after, base), weight_delta(before, base))
    if "diff_b" in before:
        assert_near(after["lora_up.bias"], before["diff_b"])


@pytest.mark.parametrize("make", [loha, lokr, full])
def test_what_has_no_factors_is_cut_to_the_best_approximation(
    make: Callable[[tuple[int, ...]], dict[str, Tensor]], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", {TEXT: make(SHAPES[TEXT])})
    for name, options in {"fixed": {"rank": 2}, "rule": {"rank": 2, "dynamic": "sv_ratio=1000"}}.items():
        report = resize(path, tmp_path / f"{name}.safetensors", **options)
        after = read_network(tmp_path / f"{name}.safetensors").modules[TEXT]
        assert_near(weight_delta(after), best(weight_delta(read_network(path).modules[TEXT]), 2))
        assert report.modules[0].kept is not None
    assert any("become LoRA" in warning for warning in report.warnings)


def test_what_has_no_rank_stays_as_it_is(tmp_path: Path) -> None:
    modules = network() | {NORM: {"w_norm": normal(32), "b_norm": normal(32, seed=1)}}
    modules[ATTENTION]["lora_up.bias"] = normal(32, seed=2)
    more = {"bundle_emb.token.string_to_param.*": normal(2, 8), "something.else": normal(3)}
    path = write(tmp_path / "a.safetensors", modules, {}, **more)
    report = resize(path, tmp_path / "out.safetensors", rank=2)
    found = read_network(tmp_path / "out.safetensors")
    for name in (f"{NORM}.w_norm", f"{NORM}.b_norm", f"{ATTENTION}.lora_up.bias", *more):
        torch.testing.assert_close(found.tensors[name], read_network(path).tensors[name], rtol=0, atol=0)
    assert any("something.else" in warning for warning in report.warnings)


def test_zeros_get_rank_1_and_stay_zero(tmp_path: Path) -> None:
    modules = network()
    modules[TEXT]["lora_up.weight"].zero_()
    path = write(tmp_path / "a.safetensors", modules)
    resize(path, tmp_path / "out.safetensors", rank=4)
    after = read_network(tmp_path / "out.safetensors").modules[TEXT]
    assert rank_of(after) == 1
    assert not weight_delta(after).any()
    assert after["lora_down.weight"].any()  # what is zero in both can never be trained again


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"oft_blocks": normal(4, 8, 8)}, "changes a weight by what it is"),
        ({"weight": normal(32), "on_input": torch.tensor(0)}, "changes a weight by what it is"),
        (low_rank((32, 32)) | {"lora_up.weight": torch.full((32, 8), torch.nan)}, "not numbers"),
        (low_rank((32, 32)) | {"lora_up.weight": normal(32, 7)}, "do not fit each other"),
        ({"w_norm": normal(32)}, "nothing to resize"),
        ({"strange": normal(32)}, "cannot be applied"),
    ],
)
def test_what_cannot_be_resized_is_refused_with_its_name(
    tensors: dict[str, Tensor], words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", {ATTENTION: tensors})
    with pytest.raises(UserError, match=words) as refused:
        resize(path, tmp_path / "out.safetensors", rank=4)
    assert "a.safetensors" in str(refused.value)
    assert words == "nothing to resize" or ATTENTION in str(refused.value)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "nothing says how far"),
        ({"conv_rank": 4}, "nothing says how far"),
        ({"rank": 4, "recipe": "spn_lora,thr=-1"}, "leave out rank"),
        ({"recipe": "fro_ckpt,thr=-1"}, "name the one that the network was trained on"),
        ({"dynamic": "sv_fro=3"}, "allowed is one of"),
        ({"rank": 4, "checkpoint": "nowhere"}, "no such checkpoint"),
        ({"rank": 4, "files": ""}, "no network is given"),
        ({"rank": 4, "files": "nowhere"}, "no such network"),
        ({"rank": 4, "out": ""}, "no output is given"),
        ({"rank": 4, "out": "x.ckpt"}, "written as .safetensors"),
        ({"recipe": "spn_lora,thr=-1:spn_lora,thr=-2"}, "give a folder"),
        ({"recipe": "spn_lora,thr=-1:spn_lora,thr=-1", "out": "folder"}, "written twice"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(
    file: Path, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        resize(values.pop("files", file), values.pop("out", tmp_path / "out.safetensors"), **values)
    assert sorted(tmp_path.iterdir()) == [file]


def test_several_networks_and_recipes_go_into_a_folder(file: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.safetensors", {TEXT: low_rank(SHAPES[TEXT])})
    report = resize(f"{file}\n{other}\n", tmp_path / "small", rank=2)
    assert [each.path.name for each in report.files] == ["style.safetensors", "other.safetensors"]
    report = resize(file, tmp_path / "small", recipe="spn_lora,thr=-0.5:spn_lora,thr=-1")
    names = ["style_spn_lora_thr-0.5.safetensors", "style_spn_lora_thr-1.safetensors"]
    assert [each.path.name for each in report.files] == names
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == sorted(
        ["style.safetensors", "other.safetensors", *names]
    )


def test_stopping_leaves_nothing_behind(file: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    resize(file, tmp_path / "out.safetensors", Work(progress=lambda *at: seen.append(at)), rank=2)
    (tmp_path / "out.safetensors").unlink()
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    for stop_at in range(len(seen) - 1):
        control, left = Control(), [stop_at]

        def stop(done: int, total: int, control: Control = control, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                control.cancel()

        with pytest.raises(Cancelled):
            resize(file, tmp_path / "out.safetensors", Work(control=control, progress=stop), rank=2)
        assert sorted(tmp_path.iterdir()) == [file]


def test_stopping_at_the_second_of_two_takes_the_first_away(file: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.safetensors", {TEXT: low_rank(SHAPES[TEXT])})
    control, out = Control(), tmp_path / "small"
    written: list[str] = []

    def stop(done: int, total: int) -> None:
        written.extend(path.name for path in out.glob("*.safetensors"))
        if written:
            control.cancel()

    with pytest.raises(Cancelled):
        resize(f"{file}\n{other}\n", out, Work(control=control, progress=stop), rank=2)
    assert written == ["style.safetensors"] and list(out.iterdir()) == []


def test_the_tool_is_registered() -> None:
    assert tool_named("resize") is TOOL


# Recipes, against dense decompositions.


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
    with_lengths = write(tmp_path / "dora.safetensors", {ATTENTION: dora(SHAPES[ATTENTION])})
    with pytest.raises(UserError, match="DoRA, which cannot be multiplied"):
        by_recipe(with_lengths, tiny_checkpoint_path, "spn_lora=1,thr=-9,rescale=0.5")


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
