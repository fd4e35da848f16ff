"""Resizing: the best approximation of each module, whatever it is stored as, and files that tell what was done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_ext.merge.resize import TOOL
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import Work
from lora_ext.networks.file import model_hash, precalculate_hashes, read_network, write_network
from lora_ext.networks.weight_delta import module_delta, weight_delta
from lora_ext.protocols import Cancelled, Control, UserError
from tests.merge.resizing import (
    ATTENTION,
    KERNEL,
    NORM,
    POINTWISE,
    SHAPES,
    TEXT,
    assert_near,
    best,
    dora,
    dora_by_input,
    full,
    loha,
    lokr,
    low_rank,
    network,
    normal,
    rank_of,
    resize,
    sparse,
    tucker,
    write,
)


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


@pytest.mark.parametrize(("precision", "rounding"), [("fp16", 1e-4), ("bf16", 8e-4)])
def test_an_alpha_that_is_rounded_makes_nothing_stronger(precision: str, rounding: float, tmp_path: Path) -> None:
    """50 / 128 · 101 is 39.45, which is 39.5 in bf16."""
    before = low_rank((320, 320), rank=128, alpha=50.0)
    before["lora_up.bias"] = normal(320, seed=3)
    path = write(tmp_path / "a.safetensors", {ATTENTION: before})
    resize(path, tmp_path / "out.safetensors", rank=101, precision=precision)
    after = read_network(tmp_path / "out.safetensors").modules[ATTENTION]
    for found, wanted in (
        (weight_delta(after), weight_delta(before)),
        (module_delta(after).bias, module_delta(before).bias),
    ):
        assert found is not None and wanted is not None
        assert float((found * wanted).sum() / wanted.square().sum()) == pytest.approx(1, abs=rounding)


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


@pytest.mark.parametrize(
    ("make", "said", "module", "arguments"),
    [
        (loha, {"algo": "loha", "dropout": "0.1"}, "networks.lora", {"dropout": "0.1"}),
        (dora, {"algo": "locon", "factor": "4"}, "lycoris.kohya", {"algo": "locon"}),
        (low_rank, {"unit": "4"}, "networks.lora", {}),
    ],
)
def test_the_file_says_what_kind_it_has_become(
    make: Callable[[tuple[int, ...]], dict[str, Tensor]],
    said: dict[str, str],
    module: str,
    arguments: dict[str, str],
    tmp_path: Path,
) -> None:
    metadata = {"ss_network_module": "other.module", "ss_network_args": json.dumps(said)}
    path = write(tmp_path / "a.safetensors", {TEXT: make(SHAPES[TEXT])}, metadata)
    resize(path, tmp_path / "out.safetensors", rank=2)
    found = read_network(tmp_path / "out.safetensors").metadata
    assert found["ss_network_module"] == module
    assert json.loads(found["ss_network_args"]) == arguments


def test_pefts_dora_gets_lycoris_lengths_and_leaves_pefts_metadata_behind(tmp_path: Path) -> None:
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{module}.lora_A.weight": normal(8, 32),
        f"{module}.lora_B.weight": normal(32, 8, seed=1),
        f"{module}.lora_magnitude_vector": 1 + normal(32, seed=2),
    }
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 8, "unet.lora_alpha": 4})}
    write_network(tmp_path / "a.safetensors", tensors, metadata, "float")
    resize(tmp_path / "a.safetensors", tmp_path / "out.safetensors", rank=8)
    before, after = (read_network(tmp_path / name) for name in ("a.safetensors", "out.safetensors"))
    assert after.tensors[f"{ATTENTION}.dora_scale"].shape == (32, 1)
    assert "lora_adapter_metadata" not in after.metadata
    base = normal(32, 32, seed=5)
    assert_near(weight_delta(after.modules[ATTENTION], base), weight_delta(before.modules[ATTENTION], base))


@pytest.mark.parametrize(("width", "axes"), [(768, 4), (1024, 2)])
def test_projections_become_what_they_are_in_their_base(width: int, axes: int, tmp_path: Path) -> None:
    """LyCORIS stores a LoHa of a 1×1 convolution, as SD1 has them, and of a linear layer, SD2's, alike."""
    context = ATTENTION.replace("attn1_to_q", "attn2_to_k")
    path = write(tmp_path / "a.safetensors", {POINTWISE: loha((32, 32)), context: low_rank((32, width))})
    resize(path, tmp_path / "out.safetensors", rank=4)
    after = read_network(tmp_path / "out.safetensors").modules[POINTWISE]
    assert after["lora_down.weight"].ndim == after["lora_up.weight"].ndim == axes


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
    named = [f"style.safetensors: {key}" for key in SHAPES] + [f"other.safetensors: {TEXT}"]
    assert sorted(each.key for each in report.modules) == sorted(named)
    assert {each.rank_after for each in report.modules} == {2}
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
    assert written == ["style.safetensors"] and not out.exists()


def test_the_tool_is_registered() -> None:
    assert tool_named("resize") is TOOL
