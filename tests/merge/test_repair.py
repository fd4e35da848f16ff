"""Repairing takes out what is damaged or does nothing, and what is left does the same as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_ext.merge.check import check_file
from lora_ext.merge.dead_modules import changes_nothing, has_zero_factors
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import Work
from lora_ext.networks.adapters.make import make_adapter
from lora_ext.networks.file import read_network, write_network
from lora_ext.networks.forms import AdapterForm
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError

KEYS = [f"lora_unet_up_blocks_1_attentions_{a}_proj_{way}" for a in range(3) for way in ("in", "out")]
FORMS = [
    AdapterForm("lora"), AdapterForm("lora", tucker=True), AdapterForm("lora", scalar=True), AdapterForm("loha"),
    AdapterForm("loha", tucker=True), AdapterForm("lokr", factor=4), AdapterForm("lokr", factor=4, tucker=True),
    AdapterForm("lokr", factor=4, full_matrix=True), AdapterForm("dylora", unit=2), AdapterForm("ia3"),
    AdapterForm("full"), AdapterForm("diag-oft"), AdapterForm("diag-oft", rescaled=True), AdapterForm("boft"),
    AdapterForm("glora"),
]  # fmt: skip


def network() -> dict[str, Tensor]:
    """Six modules of rank 2."""
    generator = torch.Generator().manual_seed(3)
    return {
        f"{key}.{name}": torch.randn(shape, generator=generator) * 0.1
        for key in KEYS
        for name, shape in (("lora_up.weight", (8, 2)), ("lora_down.weight", (2, 8)))
    } | {f"{key}.alpha": torch.tensor(1.0) for key in KEYS}


def repair(folder: Path, tensors: dict[str, Tensor], preview: bool = False, **values: Any):  # type: ignore[no-untyped-def]
    metadata = {"ss_network_dim": "2", "ss_base_model_version": "sd_v1"}
    write_network(folder / "in.safetensors", tensors, metadata, "float")
    tool = tool_named("repair")
    paths = {"file": folder / "in.safetensors", "out": folder / "out.safetensors"}
    settings = make_settings(tool, {**{name: str(path) for name, path in paths.items()}, **values})
    assert tool.preview is not None
    return (tool.preview if preview else tool.run)(settings, Work())


def test_what_is_damaged_or_does_nothing_is_left_out(tmp_path: Path) -> None:
    tensors = network()
    tensors[f"{KEYS[0]}.lora_up.weight"][3, 1] = float("nan")
    del tensors[f"{KEYS[1]}.lora_down.weight"]
    tensors[f"{KEYS[2]}.lora_up.weight"].zero_()
    tensors["lora_unet_output_blocks_3_1_proj_in.alpha"] = torch.tensor(
        1.0
    )  # another name of the first, and before it in the file
    tensors["bundle_emb.cat.clip_l"] = torch.ones(1, 4)
    tensors["something.else"] = torch.ones(3)
    foreseen = repair(tmp_path, tensors, preview=True)
    assert not (tmp_path / "out.safetensors").exists()
    report = repair(tmp_path, tensors)
    assert report.facts == foreseen.facts == {
        "modules left": "3 of 6",
        "left out, damaged": f"2 ({KEYS[0]}, {KEYS[1]})",
        "left out, without effect": f"1 ({KEYS[2]})",
        "left out, there twice": f"1 tensors ({KEYS[0]}.alpha)",
    }  # fmt: skip
    assert "what 2 of 6 modules were to do is lost" in report.warnings[0]
    written = read_network(tmp_path / "out.safetensors")
    kept = {name for name in tensors if name.startswith(tuple(KEYS[3:]))} | {"bundle_emb.cat.clip_l", "something.else"}
    assert written.tensors.keys() == kept
    assert all(torch.equal(written.tensors[name], tensors[name]) for name in kept)
    assert written.metadata["ss_training_comment"] == "repaired: 3 modules left out"
    assert json.loads(written.metadata["lw_sources"])[0]["name"] == "in.safetensors"
    assert abs(report.files[0].size - foreseen.files[0].size) < 3000
    assert [each.kind for each in check_file(tmp_path / "out.safetensors", None).findings] == ["unknown names"]


def test_a_wrong_hash_is_put_right_and_the_precision_stays(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    write_network(path, network(), {}, "fp16")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert [each.kind for each in check_file(path, None).findings] == ["hash"]
    tool = tool_named("repair")
    out = tmp_path / "out.safetensors"
    tool.run(make_settings(tool, {"file": str(path), "out": str(out)}), Work())
    assert check_file(out, None).findings == ()
    before, after = read_network(path).tensors, read_network(out).tensors
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float16 for name in before)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    tensors = network()
    for key in KEYS:
        tensors[f"{key}.lora_up.weight"].zero_()
    with pytest.raises(
        UserError, match="nothing would be left: 0 modules cannot be applied, and 6 modules change nothing"
    ):
        repair(tmp_path, tensors)
    with pytest.raises(UserError, match="is read and would be written over"):
        repair(tmp_path, network(), out=str(tmp_path / "in.safetensors"))
    with pytest.raises(UserError, match="no output is given"):
        repair(tmp_path, network(), out="")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_a_module_at_its_start_changes_nothing_and_a_trained_one_does(form: AdapterForm) -> None:
    layer = nn.Conv2d(16, 32, 3) if form.tucker else nn.Linear(16, 32)
    rank = 8 if "oft" in form.algorithm else 2
    target = Target("lora_unet_x", layer.requires_grad_(False), rank, 2.0, "unet", None, form)
    adapter = make_adapter(target, torch.Generator().manual_seed(1))
    assert has_zero_factors(adapter.tensors_for_file()) and changes_nothing(adapter.tensors_for_file())
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.01)
    if "oft" not in form.algorithm:  # whose blocks count by how they differ from their transposed
        assert not has_zero_factors(adapter.tensors_for_file())


def test_what_nobody_here_understands_is_kept(tmp_path: Path) -> None:
    odd = {f"{KEYS[0]}.lora_down.weight": torch.tensor(1.0), f"{KEYS[0]}.new_kind": torch.ones(2)}
    tensors = {name: each for name, each in network().items() if not name.startswith(KEYS[0])} | odd
    assert repair(tmp_path, tensors).facts == {"modules left": "6 of 6"}
    assert read_network(tmp_path / "out.safetensors").tensors.keys() == tensors.keys()


def test_damaged_embeddings_and_modules_of_unknown_kinds_are_left_out(tmp_path: Path) -> None:
    tensors = network() | {
        "bundle_emb.cat.clip_l": torch.tensor([[1.0, float("nan")]]),
        "bundle_emb.dog.clip_l": torch.ones(1, 4),
        "lora_unet_mid_block_attentions_0_proj_out.new_kind": torch.tensor([float("inf")]),
    }
    assert repair(tmp_path, tensors).facts == {
        "modules left": "6 of 7",
        "left out, damaged": "1 (lora_unet_mid_block_attentions_0_proj_out)",
        "left out, damaged embeddings": "1 (cat)",
    }
    written = read_network(tmp_path / "out.safetensors").tensors.keys()
    assert written == network().keys() | {"bundle_emb.dog.clip_l"}
    assert check_file(tmp_path / "out.safetensors", None).verdict == "healthy"


@pytest.mark.parametrize("precision", ["as stored", "fp16"])
@pytest.mark.parametrize("alpha", [1e10, float("inf")])
def test_an_alpha_that_means_nothing_is_no_damage(tmp_path: Path, alpha: float, precision: str) -> None:
    tensors = {"lokr_w1": torch.rand(2, 2), "lokr_w2": torch.rand(4, 4), "alpha": torch.tensor(alpha)}
    named = network() | {f"lora_unet_mid_block_attentions_0_proj_out.{name}": each for name, each in tensors.items()}
    assert repair(tmp_path, named, precision=precision).facts == {"modules left": "7 of 7"}
    assert check_file(tmp_path / "in.safetensors", None).verdict == "healthy"
    written = read_network(tmp_path / "out.safetensors")
    assert float(written.tensors["lora_unet_mid_block_attentions_0_proj_out.alpha"]) == 1


def test_an_alpha_of_zero_switches_off_what_it_multiplies() -> None:
    factors = {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 4)}
    whole = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(2, 2)}
    for tensors, expected in ((factors, True), (whole, False), ({"oft_blocks": torch.rand(2, 2, 2)}, False)):
        assert changes_nothing({**tensors, "alpha": torch.tensor(0.0)}) == expected
    assert not changes_nothing({**factors, "alpha": torch.tensor(1.0)})


def test_lengths_of_dora_may_change_something_alone() -> None:
    tensors = {
        "lora_up.weight": torch.zeros(4, 2),
        "lora_down.weight": torch.ones(2, 4),
        "dora_scale": torch.ones(4, 1),
    }
    assert has_zero_factors(tensors) and not changes_nothing(tensors)
    assert not has_zero_factors({"oft_blocks": torch.zeros(2, 4, 4), "rescale": torch.full((8, 1), 1.1)})
    assert not has_zero_factors({"alpha": torch.tensor(1.0)})
