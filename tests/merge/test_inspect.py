"""What a file holds, in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import write_network
from lora_ext.protocols import UserError

DOWN = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def run(text: str | Path, work: Work | None = None) -> ToolReport:
    tool = tool_named("inspect")
    report = tool.run(make_settings(tool, {"file": str(text)}), work or Work())
    assert isinstance(report, ToolReport)
    return report


def test_a_network_with_blocks_tags_triggers_and_sources(tmp_path: Path) -> None:
    tensors = {
        f"{DOWN}.lora_up.weight": torch.tensor([[3.0], [4.0]]),
        f"{DOWN}.lora_down.weight": torch.eye(1, 768),
        f"{DOWN}.alpha": torch.tensor(2.0),
        f"{TEXT}.diff": torch.ones(2, 2),
    }
    metadata = {
        "ss_tag_frequency": json.dumps({"1_cat": {"cat": 3, "tree": 1}, "2_sks": {"cat": 2}}),
        "ss_dataset_dirs": json.dumps({"3_sks": {"n_repeats": 3, "img_count": 5}}),
        "lw_sources": json.dumps([{"name": "a.safetensors", "hash": "0123456789abcdef", "weight": 0.5}]),
        "ss_output_name": "None",
    }
    write_network(tmp_path / "net.safetensors", tensors, metadata, "float")
    report = run(tmp_path / "net.safetensors")
    told = report.as_json()
    assert told["kind"] == "network" and told["for"] == "SD1"
    assert told["tags"] == {"cat": 5, "tree": 1}
    assert told["triggers"] == "sks"
    assert told["made_from"] == ["a.safetensors × 0.5 (0123456789ab)"]
    assert told["blocks"] == {"BASE": "1 module", "IN01": "1 module, rank 1, length 10"}
    assert told["metadata"]["lw_sources"] == metadata["lw_sources"]
    assert "name" not in told and len(told["hash"]) == 64
    assert report.facts["blocks"] == "BASE: 1 module\nIN01: 1 module, rank 1, length 10"
    assert report.facts["tags"] == "cat: 5, tree: 1"
    assert {each.key: each.rank_before for each in report.modules} == {DOWN: 1, TEXT: None}


def test_metadata_of_any_shape_are_no_obstacle(tmp_path: Path) -> None:
    for number, text in enumerate(("[", "3", '{"a": 3}', '{"a": {"b": "c"}}', '[{"name": 4}]')):
        path = tmp_path / f"{number}.safetensors"
        keys = ("ss_tag_frequency", "ss_dataset_dirs", "lw_sources", "ss_network_args")
        write_network(path, {f"{TEXT}.diff": torch.ones(2, 2)}, dict.fromkeys(keys, text), "float")
        assert run(path).as_json()["text_encoder_modules"] == 1


def test_a_checkpoint_and_what_is_none(tiny_kind_path: Callable[[str], Path], tmp_path: Path) -> None:
    told = run(tiny_kind_path("sdxl")).as_json()
    assert (told["kind"], told["architecture"], told["unet_channels"]) == ("checkpoint", "SDXL", 32)
    by_name = Work(find_network=lambda text: None, find_checkpoint=lambda text: tiny_kind_path("sd2"))
    assert run("loaded", by_name).as_json()["architecture"] == "SD2"
    with pytest.raises(UserError, match="no such network"):
        run(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("control_model.x.weight", "seems to be a ControlNet"),
        ("emb_params", "seems to be a textual-inversion embedding"),
        ("first_stage_model.encoder.conv_in.weight", "seems to be a VAE alone"),
    ],
)
def test_other_files_are_told_for_what_they_seem_to_be(tmp_path: Path, name: str, words: str) -> None:
    save_file({name: torch.ones(2, 3)}, tmp_path / "file.safetensors")
    report = run(tmp_path / "file.safetensors")
    assert len(report.warnings) == 1 and words in report.warnings[0]
