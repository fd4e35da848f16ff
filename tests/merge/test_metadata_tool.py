"""Metadata shown and changed from lines, and what is wrong with the lines told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.merge.check import check_file
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import read_network, scan_network, write_network
from lora_ext.protocols import UserError


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "cat.safetensors"
    tensors = {
        f"lora_unet_mid_block_attentions_0_proj_in.lora_{way}.weight": torch.ones(4, 4) for way in ("up", "down")
    }
    write_network(path, tensors, {"ss_output_name": "cat", "ss_tag_frequency": "x" * 500}, "float")
    return path


def run(path: Path, **values: Any) -> ToolReport:
    tool = tool_named("metadata")
    report = tool.run(make_settings(tool, {"file": str(path), **values}), Work())
    assert isinstance(report, ToolReport)
    return report


def test_without_changes_the_metadata_are_shown_and_nothing_is_written(network: Path) -> None:
    before = network.stat()
    report = run(network)
    assert report.title == "cat.safetensors: 4 values"
    assert report.facts["ss_output_name"] == "cat"
    assert report.facts["ss_tag_frequency"] == "x" * 200 + "… (500 characters)"
    assert report.as_json()["metadata"]["ss_tag_frequency"] == "x" * 500
    assert network.stat() == before or network.stat().st_mtime_ns == before.st_mtime_ns
    assert report.files == []


def test_values_are_set_and_removed_and_hashes_stay_right(network: Path) -> None:
    tensors = read_network(network).tensors
    report = run(network, set="ss_output_name=black cat\nmodelspec.title = a=b ", remove="ss_tag_frequency\n\n")
    assert report.title == "cat.safetensors: 4 values, 1 new, 1 changed, 1 removed"
    metadata = scan_network(network).metadata
    assert (metadata["ss_output_name"], metadata["modelspec.title"]) == ("black cat", "a=b")
    assert "ss_tag_frequency" not in metadata
    assert [each.path for each in report.files] == [network]
    assert all(torch.equal(tensors[name], each) for name, each in read_network(network).tensors.items())
    assert check_file(network, None).facts["hash"] == "matches the tensors"


def test_everything_that_is_wrong_is_told_at_once(network: Path) -> None:
    content = network.read_bytes()
    with pytest.raises(UserError) as caught:
        run(network, set="no value\na=1\na=2\nb=1", remove="ss_output\nb")
    for words in ("'no value': write", "set a: it is given twice", "no such key; did you mean ss_output_name?",
                  "remove b: it is to be set too"):  # fmt: skip
        assert words in str(caught.value)
    with pytest.raises(UserError, match="hashes are computed"):
        run(network, set="sshs_model_hash=0")
    assert network.read_bytes() == content
