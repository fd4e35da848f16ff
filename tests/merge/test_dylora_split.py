"""A DyLoRA cut into the ranks that it was trained for, against lycoris' own module and sd-scripts' rules."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import precalculate_hashes, read_network, write_network
from lora_ext.networks.weight_delta import weight_delta
from lora_ext.protocols import Cancelled, UserError

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KERNEL = "lora_unet_down_blocks_0_resnets_0_conv1"
RANK, ALPHA = 8, 4.0


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network() -> dict[str, Tensor]:
    return {
        f"{KEY}.lora_up.weight": random(6, RANK, seed=1),
        f"{KEY}.lora_down.weight": random(RANK, 5, seed=2),
        f"{KEY}.alpha": torch.tensor(ALPHA),
        f"{KERNEL}.lora_up.weight": random(6, 4, 1, 1, seed=3),
        f"{KERNEL}.lora_down.weight": random(4, 5, 3, 3, seed=4),
        f"{KERNEL}.alpha": torch.tensor(2.0),
    }


def written(folder: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> Path:
    path = folder / "dy.safetensors"
    write_network(path, tensors or network(), metadata, "float")
    return path


def split(path: Path, work: Work | None = None, preview: bool = False, **more: object) -> ToolReport:
    tool = tool_named("dylora-split")
    settings = make_settings(tool, {"file": str(path), "out": str(path.parent / "split"), **more})
    assert tool.preview is not None
    return (tool.preview if preview else tool.run)(settings, work or Work())


def test_a_file_for_every_multiple_of_the_unit_below_the_rank(tmp_path: Path) -> None:
    source = written(tmp_path)
    report = split(source, unit=2)
    assert [each.path.name for each in report.files] == [f"dy-000{rank}.safetensors" for rank in (2, 4, 6)]
    whole = network()
    for rank in (2, 4, 6):
        found = read_network(tmp_path / "split" / f"dy-000{rank}.safetensors").tensors
        assert torch.equal(found[f"{KEY}.lora_up.weight"], whole[f"{KEY}.lora_up.weight"][:, :rank])
        assert torch.equal(found[f"{KEY}.lora_down.weight"], whole[f"{KEY}.lora_down.weight"][:rank])
        assert torch.equal(found[f"{KERNEL}.lora_down.weight"], whole[f"{KERNEL}.lora_down.weight"][:rank])
        assert (float(found[f"{KEY}.alpha"]), float(found[f"{KERNEL}.alpha"])) == (ALPHA, 2.0)


def test_each_is_what_lycoris_trained(tmp_path: Path) -> None:
    from lycoris.modules.dylora import DyLoraModule

    unit, alpha = 2, 1.5
    layer = nn.Linear(5, 6, bias=False)
    module = DyLoraModule("x", layer, lora_dim=RANK, alpha=alpha, block_size=unit)
    for place, part in enumerate([*module.up_list, *module.down_list]):
        part.data = random(*part.shape, seed=place)
    stored = {f"{KEY}.{name}": tensor.detach() for name, tensor in module.custom_state_dict().items()}
    stored[f"{KEY}.alpha"] = torch.tensor(alpha * unit)  # as our DyLoRA writes it: the whole file is the whole network
    source = written(tmp_path, stored, ss_network_args=json.dumps({"algo": "dylora", "block_size": str(unit)}))
    split(source)
    for block, rank in enumerate((2, 4, 6)):
        found = read_network(tmp_path / "split" / f"dy-000{rank}.safetensors")
        wanted = module.get_diff_weight(rank=block * unit)[0]
        torch.testing.assert_close(weight_delta(found.modules[KEY]), wanted)


def test_sd_scripts_own_is_cut_as_sd_scripts_does_or_with_the_strength_of_its_training(tmp_path: Path) -> None:
    source = written(tmp_path, ss_network_module="networks.dylora", ss_network_args=json.dumps({"unit": "4", "x": "1"}))
    kept = split(source)
    assert "less strength" in kept.warnings[0]
    before = weight_delta(read_network(tmp_path / "split" / "dy-0004.safetensors").modules[KEY])
    trained = split(source, strength="trained", overwrite=True)
    assert trained.warnings == []
    file = read_network(tmp_path / "split" / "dy-0004.safetensors")
    up, down = network()[f"{KEY}.lora_up.weight"][:, :4], network()[f"{KEY}.lora_down.weight"][:4]
    torch.testing.assert_close(before, up @ down * ALPHA / 4)
    forward = ALPHA / RANK * math.sqrt(RANK / 4)  # of sd-scripts' DyLoRAModule at rank 4
    torch.testing.assert_close(weight_delta(file.modules[KEY]), up @ down * forward)
    assert float(file.modules[KERNEL]["alpha"]) == 2.0
    assert file.metadata["ss_network_module"] == "networks.lora"
    assert json.loads(file.metadata["ss_network_args"]) == {"x": "1", "conv_dim": "4", "conv_alpha": "2.0"}


def test_what_the_files_say_of_themselves(tmp_path: Path) -> None:
    source = written(tmp_path, ss_training_comment="mine")
    split(source, ranks="3", out=str(tmp_path / "other.safetensors"), precision="fp16")
    found = read_network(tmp_path / "other-0003.safetensors")
    metadata = dict(found.metadata)
    assert metadata["ss_training_comment"] == "split from DyLoRA, rank 8 to 3; mine"
    assert metadata["ss_network_dim"] == "3"
    assert json.loads(metadata["lw_sources"])[0]["name"] == "dy.safetensors"
    stated = (metadata.pop("sshs_model_hash"), metadata.pop("sshs_legacy_hash"))
    assert stated == precalculate_hashes(found.tensors, metadata)
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float16}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "does not say what unit"),
        ({"unit": 8}, "unit = 8: there is no rank to split off"),
        ({"unit": 2, "ranks": "4"}, "give either"),
        ({"ranks": "4,x"}, "write whole numbers from 1 to 8"),
        ({"ranks": "9"}, "write whole numbers from 1 to 8"),
        ({"ranks": "0"}, "write whole numbers from 1 to 8"),
        ({"ranks": ","}, "write whole numbers from 1 to 8"),
        ({"unit": 2, "out": " "}, "no output is given"),
    ],
)
def test_what_is_wrong_with_the_ranks_is_told(tmp_path: Path, more: dict[str, object], said: str) -> None:
    source = written(tmp_path)
    with pytest.raises(UserError, match=said):
        split(source, **more)
    assert list(tmp_path.iterdir()) == [source]


def test_other_kinds_and_files_that_are_there_are_refused(tmp_path: Path) -> None:
    parts = {f"{KEY}.hada_w{number}": torch.ones(4, 4) for number in ("1_a", "1_b", "2_a", "2_b")}
    source = written(tmp_path, parts)
    with pytest.raises(UserError, match="is no DyLoRA: .* has hada_w1_a"):
        split(source, unit=1)
    source = written(tmp_path)
    split(source, ranks="4")
    with pytest.raises(UserError, match=r"dy-0004\.safetensors is there already"):
        split(source, ranks="2,4")
    assert not (tmp_path / "split" / "dy-0002.safetensors").exists()


def test_a_preview_writes_nothing_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    source = written(tmp_path)
    seen = split(source, unit=2, preview=True)
    assert [each.path.name for each in seen.files] == [f"dy-000{rank}.safetensors" for rank in (2, 4, 6)]
    assert list(tmp_path.iterdir()) == [source]
    work = Work()
    stopping = Work(control=work.control, progress=lambda done, total: work.control.stop() if done == 2 else None)
    with pytest.raises(Cancelled):
        split(source, unit=2, work=stopping)
    assert list(tmp_path.rglob("*.safetensors")) == [source]
