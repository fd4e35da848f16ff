"""Networks merged with each other, against dense sums and dense singular value decompositions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lora_ext.merge.module_sums import balanced
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import precalculate_hashes, read_network, write_network
from lora_ext.networks.weight_delta import module_delta, weight_delta
from lora_ext.protocols import Cancelled, UserError

QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PROJECTION = "lora_unet_down_blocks_0_attentions_0_proj_in"
KERNEL = "lora_unet_down_blocks_0_resnets_0_conv1"
NORM = "lora_unet_down_blocks_0_resnets_0_norm1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SHAPES = {QUERY: (24, 20), PROJECTION: (20, 24, 1, 1), KERNEL: (16, 12, 3, 3), TEXT: (32, 12)}

Modules = Mapping[str, Mapping[str, Tensor]]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(shape: tuple[int, ...], rank: int, alpha: float, seed: int, tucker: bool = False) -> dict[str, Tensor]:
    kernel = shape[2:]
    ones = (1,) * len(kernel)
    tensors = {"lora_up.weight": random(shape[0], rank, *ones, seed=seed), "alpha": torch.tensor(alpha)}
    if tucker:
        tensors["lora_mid.weight"] = random(rank, rank, *kernel, seed=seed + 1)
        return tensors | {"lora_down.weight": random(rank, shape[1], *ones, seed=seed + 2)}
    return tensors | {"lora_down.weight": random(rank, *shape[1:], seed=seed + 1)}


def loha(shape: tuple[int, ...], rank: int, seed: int) -> dict[str, Tensor]:
    columns = int(torch.Size(shape[1:]).numel())
    parts = {}
    for number in (1, 2):
        parts[f"hada_w{number}_a"] = random(shape[0], rank, seed=seed + number)
        parts[f"hada_w{number}_b"] = random(rank, columns, seed=seed + 2 + number)
    return parts | {"alpha": torch.tensor(rank / 2)}


def lokr(shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    return {
        "lokr_w1": random(4, 4, seed=seed),
        "lokr_w2": random(shape[0] // 4, shape[1] // 4, *shape[2:], seed=seed + 1),
    }


FIRST: Modules = {
    QUERY: lora(SHAPES[QUERY], 4, 2.0, 1),
    PROJECTION: lora(SHAPES[PROJECTION], 3, 3.0, 5),
    KERNEL: lora(SHAPES[KERNEL], 4, 1.0, 10, tucker=True),
    TEXT: lora(SHAPES[TEXT], 2, 2.0, 15),
}
SECOND: Modules = {
    QUERY: lora(SHAPES[QUERY], 6, 1.5, 20),
    PROJECTION: lora(SHAPES[PROJECTION][:2], 2, 2.0, 25),  # linear, as SD2's
    KERNEL: lora(SHAPES[KERNEL], 2, 8.0, 30),
}
WHOLE: Modules = {
    QUERY: loha(SHAPES[QUERY], 2, 40),
    KERNEL: loha(SHAPES[KERNEL], 2, 50),
    PROJECTION: lokr(SHAPES[PROJECTION], 60),
    TEXT: {"diff": random(*SHAPES[TEXT], seed=70), "diff_b": random(32, seed=71)},
    NORM: {"w_norm": random(12, seed=72), "b_norm": random(12, seed=73)},
}


def written(folder: Path, name: str, modules: Modules, metadata: dict[str, str] | None = None) -> Path:
    tensors = {f"{key}.{suffix}": tensor for key, parts in modules.items() for suffix, tensor in parts.items()}
    path = folder / f"{name}.safetensors"
    write_network(path, tensors, metadata or {}, "float")
    return path


def merge(folder: Path, *networks: str, work: Work | None = None, preview: bool = False, **more: object) -> ToolReport:
    """Merge files of a folder: `a:0.5`."""
    tool = tool_named("merge-networks")
    lines = "\n".join(
        f"{folder / name}.safetensors:{weight}" for name, _, weight in (n.partition(":") for n in networks)
    )
    settings = make_settings(tool, {"network": lines, "out": str(folder / "out.safetensors"), **more})
    assert tool.preview is not None
    return (tool.preview if preview else tool.run)(settings, work or Work())


def delta(modules: Modules, key: str) -> Tensor:
    """ΔW of a module in the weight's shape, zeros where it is not there."""
    return weight_delta(modules[key], torch.zeros(SHAPES[key])) if key in modules else torch.zeros(SHAPES[key])


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("first", "second"), [(0.7, -0.3), (1.0, 1.0), (-2.5, 0.0), (0.0, 1e-3)])
def test_concat_is_the_weighted_sum(tmp_path: Path, first: float, second: float) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", SECOND)
    report = merge(tmp_path, f"a:{first}", f"b:{second}")
    found = read_network(tmp_path / "out.safetensors")
    for key in SHAPES:
        wanted = first * delta(FIRST, key) + second * delta(SECOND, key)
        if wanted.any():
            assert relative(delta(found.modules, key), wanted) < 1e-6
            assert set(found.modules[key]) == {"lora_up.weight", "lora_down.weight", "alpha"}
        else:
            assert key not in found.modules
    assert report.facts["Method"] == "ranks side by side, nothing is lost"
    assert report.warnings == []
    assert [each.kept for each in report.modules] == [1.0] * len(report.modules)


def test_concat_has_the_ranks_of_all_and_convolutions_of_sd_scripts_shape(tmp_path: Path) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", SECOND)
    merge(tmp_path, "a:1", "b:1")
    modules = read_network(tmp_path / "out.safetensors").modules
    assert modules[KERNEL]["lora_up.weight"].shape == (16, 6, 1, 1)
    assert modules[KERNEL]["lora_down.weight"].shape == (6, 12, 3, 3)
    assert modules[PROJECTION]["lora_down.weight"].shape == (5, 24, 1, 1)
    assert modules[QUERY]["lora_up.weight"].shape == (24, 10)
    assert float(modules[QUERY]["alpha"]) == 10.0


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_kinds_without_factors_are_added_too(tmp_path: Path, method: str) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", WHOLE)
    report = merge(tmp_path, "a:0.5", "b:-2", method=method, rank=None if method == "concat" else 64)
    found = read_network(tmp_path / "out.safetensors").modules
    for key in SHAPES:
        assert relative(delta(found, key), 0.5 * delta(FIRST, key) - 2 * delta(WHOLE, key)) < 3e-6
    torch.testing.assert_close(found[NORM], {name: -2 * tensor for name, tensor in WHOLE[NORM].items()})
    bias = module_delta(found[TEXT]).bias
    torch.testing.assert_close(bias, -2 * WHOLE[TEXT]["diff_b"])
    if method == "concat":
        assert found[KERNEL]["diff"].shape == SHAPES[KERNEL]
        assert [line.partition(" are written")[0] for line in report.warnings] == [
            "4 modules are no product of two factors and"
        ]
    else:
        assert set(found[KERNEL]) == {"lora_up.weight", "lora_down.weight", "alpha"}
        assert found[KERNEL]["lora_down.weight"].shape[1:] == (12, 3, 3)
        assert [line.partition(",")[0] for line in report.warnings] == ["1 modules change a bias too"]


@pytest.mark.parametrize(("rank", "conv_rank"), [(3, None), (5, 2), (1, 1)])
@pytest.mark.parametrize("other", ["low rank", "whole"])
def test_svd_is_the_best_of_its_rank(tmp_path: Path, rank: int, conv_rank: int | None, other: str) -> None:
    added = SECOND if other == "low rank" else WHOLE
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", added)
    report = merge(tmp_path, "a:0.7", "b:-0.3", method="svd", rank=rank, conv_rank=conv_rank)
    found = read_network(tmp_path / "out.safetensors").modules
    reports = {each.key: each for each in report.modules}
    for key, shape in SHAPES.items():
        wanted = (0.7 * delta(FIRST, key) - 0.3 * delta(added, key)).flatten(1)
        left, values, right = torch.linalg.svd(wanted, full_matrices=False)
        kept = (conv_rank or rank) if key == KERNEL else rank
        best = (left[:, :kept] * values[:kept]) @ right[:kept]
        assert relative(delta(found, key).flatten(1), best) < 1e-4
        assert relative(delta(found, key).flatten(1), wanted) <= relative(best, wanted) + 1e-6
        assert len(found[key]["lora_down.weight"]) <= kept
        share = float(values[:kept].square().sum() / values.square().sum())
        assert reports[key].kept == pytest.approx(share, abs=1e-5)
        assert shape[2:] == () or found[key]["lora_down.weight"].shape[2:] == shape[2:]


def test_svd_without_a_rank_takes_the_largest_of_each_module(tmp_path: Path) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", SECOND)
    merge(tmp_path, "a:1", "b:1", method="svd")
    found = read_network(tmp_path / "out.safetensors").modules
    assert {key: len(found[key]["lora_down.weight"]) for key in SHAPES} == {QUERY: 6, PROJECTION: 3, KERNEL: 4, TEXT: 2}


def test_weights_by_block_and_for_the_text_encoders(tmp_path: Path) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", SECOND)
    merge(tmp_path, "a:0.5", "b:2", te_weight="4\nsame", lbw="1," + ",".join(["-1"] * 16) + "\nALL0.5")
    found = read_network(tmp_path / "out.safetensors").modules
    assert relative(delta(found, QUERY), -0.5 * delta(FIRST, QUERY) + delta(SECOND, QUERY)) < 1e-6
    assert relative(delta(found, TEXT), 4 * delta(FIRST, TEXT)) < 1e-6


def test_one_network_is_scaled_and_keeps_what_it_says(tmp_path: Path) -> None:
    written(tmp_path, "a", FIRST, {"ss_tag_frequency": '{"x": {"cat": 1}}', "ss_network_dim": "4"})
    merge(tmp_path, "a:-0.5")
    found = read_network(tmp_path / "out.safetensors")
    assert relative(delta(found.modules, KERNEL), -0.5 * delta(FIRST, KERNEL)) < 1e-6
    assert found.metadata["ss_tag_frequency"] == '{"x": {"cat": 1}}'
    assert found.metadata["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize(
    ("method", "module", "arguments"),
    [("svd", "networks.lora", {"dropout": "0.1"}), ("concat", "lycoris.kohya", {"dropout": "0.1", "algo": "full"})],
)
def test_one_network_of_another_kind_says_what_kind_it_has_become(
    tmp_path: Path, method: str, module: str, arguments: dict[str, str]
) -> None:
    said = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "loha", "dropout": "0.1"}'}
    written(tmp_path, "a", {QUERY: loha(SHAPES[QUERY], 2, 40)}, said)
    merge(tmp_path, "a:0.5", method=method)
    metadata = read_network(tmp_path / "out.safetensors").metadata
    assert metadata["ss_network_module"] == module
    assert json.loads(metadata["ss_network_args"]) == arguments


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    said = {"ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_tag_frequency": "{}", "ss_network_args": '{"a": 1}'}
    hashes = [read_network(written(tmp_path, name, FIRST, said)).metadata["sshs_model_hash"] for name in "ab"]
    merge(tmp_path, "a:0.7", "b:0.3", method="svd", rank=2, precision="fp16")
    found = read_network(tmp_path / "out.safetensors")
    metadata = found.metadata
    assert json.loads(metadata["lw_sources"]) == [
        {"name": "a.safetensors", "hash": hashes[0], "weight": 0.7},
        {"name": "b.safetensors", "hash": hashes[1], "weight": 0.3},
    ]
    assert metadata["ss_training_comment"] == "merged by svd: a × 0.7, b × 0.3"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_output_name"]) == ("2", "2.0", "out")
    assert "ss_tag_frequency" not in metadata
    stated = (metadata.pop("sshs_model_hash"), metadata.pop("sshs_legacy_hash"))
    assert stated == precalculate_hashes(found.tensors, metadata)
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float16}


def test_rounding_is_told_and_is_about_what_it_says(tmp_path: Path) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", SECOND)
    report = merge(tmp_path, "a:0.7", "b:-0.3", precision="bf16")
    found = read_network(tmp_path / "out.safetensors").modules
    exact = {key: 0.7 * delta(FIRST, key) - 0.3 * delta(SECOND, key) for key in SHAPES}
    lost = sum(float((delta(found, key) - exact[key]).square().sum()) for key in SHAPES)
    share = (lost / sum(float(each.square().sum()) for each in exact.values())) ** 0.5
    assert report.details["rounding"] == pytest.approx(share, rel=0.3)
    assert merge(tmp_path, "a:0.7", "b:-0.3", overwrite=True).facts["Rounding"] == "none"
    up = FIRST[QUERY]["lora_up.weight"]
    written(tmp_path, "one", {QUERY: FIRST[QUERY]})
    written(tmp_path, "almost", {QUERY: {**FIRST[QUERY], "lora_up.weight": up * 1.001}})
    report = merge(tmp_path, "one:1", "almost:-1", precision="bf16", overwrite=True)
    assert "saving in bf16 changes the sum by" in report.warnings[0]


DORA: Modules = {QUERY: {**FIRST[QUERY], "dora_scale": torch.ones(24, 1)}}
IA3: Modules = {QUERY: {"weight": torch.ones(24), "on_input": torch.tensor(False)}}
OFT: Modules = {QUERY: {"oft_blocks": torch.zeros(4, 6, 6), "alpha": torch.tensor(0.0)}}


@pytest.mark.parametrize(
    ("modules", "said"), [(DORA, "LoRA with DoRA"), (IA3, r"\(IA\)³"), (OFT, "OFT")], ids=["dora", "ia3", "oft"]
)
def test_what_depends_on_the_checkpoint_is_refused_unless_it_is_multiplied_by_0(
    tmp_path: Path, modules: Modules, said: str
) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", modules)
    with pytest.raises(UserError, match=rf"b changes {QUERY} by .*{said}.*depends on the checkpoint's weight"):
        merge(tmp_path, "a:1", "b:1")
    merge(tmp_path, "a:1", "b:0")
    assert relative(delta(read_network(tmp_path / "out.safetensors").modules, QUERY), delta(FIRST, QUERY)) < 1e-6


def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "wide", {QUERY: lora((24, 28), 2, 1.0, 80)})
    written(tmp_path, "large", {"lora_te2_text_model_encoder_layers_0_mlp_fc1": lora((32, 12), 2, 1.0, 90)})
    before = sorted(tmp_path.iterdir())
    for networks, more, said in [
        (["a:0"], {}, "nothing would be left"),
        (["a:1", "wide:1"], {}, "a and wide are for different kinds of checkpoint"),
        (["a:1", "large:1"], {}, "a is for SD1 or SD2 checkpoints, and large for SDXL"),
        (["large:1"], {"lbw": ",".join(["1"] * 17)}, "is not for SDXL checkpoints"),
        (["a:1"], {"rank": 3}, "rank and conv_rank are svd's"),
        (["a:1"], {"out": ""}, "no output is given"),
        (["a:1"], {"out": str(tmp_path / "a.safetensors"), "overwrite": True}, "is read and would be written over"),
    ]:
        with pytest.raises(UserError, match=said):
            merge(tmp_path, *networks, **more)
    assert sorted(tmp_path.iterdir()) == before


def test_preview_writes_nothing_and_tells_the_same(tmp_path: Path) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", SECOND)
    seen = merge(tmp_path, "a:1", "b:1", method="svd", rank=2, preview=True)
    assert not (tmp_path / "out.safetensors").exists()
    done = merge(tmp_path, "a:1", "b:1", method="svd", rank=2)
    assert seen.facts == done.facts
    assert seen.files == done.files
    assert done.files[0].size == (tmp_path / "out.safetensors").stat().st_size
    ranks = {each.key: (each.rank_before, each.rank_after) for each in done.modules}
    assert ranks == {QUERY: (10, 2), PROJECTION: (5, 2), KERNEL: (6, 2), TEXT: (2, 2)}
    values = next(each.singular_values for each in done.modules if each.key == QUERY)
    assert values is not None
    exact = torch.linalg.svdvals(delta(FIRST, QUERY) + delta(SECOND, QUERY))[:10]
    torch.testing.assert_close(values, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_progress_goes_to_the_end_and_a_stop_leaves_nothing(tmp_path: Path, method: str) -> None:
    written(tmp_path, "a", FIRST)
    written(tmp_path, "b", WHOLE)
    work = Work()
    seen: list[tuple[int, int]] = []
    merge(tmp_path, "a:1", "b:1", method=method, work=Work(progress=lambda done, total: seen.append((done, total))))
    assert seen == [(done, 5) for done in range(6)]
    (tmp_path / "out.safetensors").unlink()
    stopping = Work(control=work.control, progress=lambda done, total: work.control.stop() if done == 2 else None)
    with pytest.raises(Cancelled):
        merge(tmp_path, "a:1", "b:1", method=method, work=stopping)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@given(st.floats(-30, 30), st.floats(-30, 30), st.integers(0, 1000))
def test_balanced_factors_have_the_same_product_to_the_last_bit(left: float, right: float, seed: int) -> None:
    up, down = random(5, 3, seed=seed) * 2**left, random(3, 4, seed=seed + 1) * 2**right
    even_up, even_down = balanced(up, down)
    for rank in range(3):
        assert torch.equal(torch.outer(up[:, rank], down[rank]), torch.outer(even_up[:, rank], even_down[rank]))
        assert 0.49 < float(even_up[:, rank].norm() / even_down[rank].norm()) < 2.05
