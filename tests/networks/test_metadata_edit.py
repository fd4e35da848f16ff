"""Metadata changed in place: tensors byte for byte, hashes as sd-scripts' own code computes them, nothing half done."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lora_ext.networks import metadata_edit
from lora_ext.networks.file import model_hash, read_network, scan_network, write_network
from lora_ext.networks.metadata_edit import edit_metadata
from lora_ext.protocols import UserError


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "cat.safetensors"
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "lora_unet_a.lora_down.weight": torch.randn(700, 900, generator=generator),  # beyond what the old hash looks at
        "lora_unet_a.lora_up.weight": torch.randn(9, 700, generator=generator),
        "lora_unet_a.alpha": torch.tensor(4.0),
    }
    write_network(path, tensors, {"ss_output_name": "cat", "ss_training_comment": "None"}, "float")
    return path


def data_of(path: Path) -> bytes:
    return path.read_bytes()[scan_network(path).data_start :]


def test_tensors_stay_byte_for_byte(network: Path) -> None:
    before, tensors = data_of(network), read_network(network).tensors
    told = edit_metadata(network, {"modelspec.title": "Ünser Cat", "ss_training_comment": "a\nb"})
    assert data_of(network) == before
    with safe_open(network, "pt") as opened:
        assert opened.metadata() == told
        assert opened.metadata()["modelspec.title"] == "Ünser Cat"
        assert all(torch.equal(opened.get_tensor(name), tensor) for name, tensor in tensors.items())
    assert [path.name for path in network.parent.iterdir()] == ["cat.safetensors"]


def test_hashes_are_those_of_a_file_written_so(network: Path, tmp_path: Path) -> None:
    told = edit_metadata(network, {"ss_training_comment": "another length", "modelspec.author": "me"})
    again = tmp_path / "again.safetensors"
    plain = {key: value for key, value in told.items() if not key.startswith("sshs_")}
    write_network(again, read_network(network).tensors, plain, "float")
    assert scan_network(again).metadata == told
    assert again.read_bytes() == network.read_bytes()
    assert told["sshs_model_hash"] == hashlib.sha256(data_of(network)).hexdigest() == model_hash(network)


def test_the_old_hash_depends_on_ss_metadata_alone(network: Path) -> None:
    before = scan_network(network).metadata["sshs_legacy_hash"]
    assert edit_metadata(network, {"modelspec.author": "me"})["sshs_legacy_hash"] == before
    assert edit_metadata(network, {"ss_training_comment": "x" * 99})["sshs_legacy_hash"] != before


def test_a_file_in_another_layout_keeps_it(tmp_path: Path) -> None:
    """Tensors not in safetensors' order, with a wrong hash, as some programs write them."""
    path = tmp_path / "odd.safetensors"
    data = torch.arange(6, dtype=torch.float32).numpy().tobytes()
    entries = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    }
    header = json.dumps({"__metadata__": {"sshs_model_hash": "wrong"}, **entries}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    told = edit_metadata(path, {"x": "y"})
    assert data_of(path) == data
    assert told == {"x": "y", "sshs_model_hash": hashlib.sha256(data[8:] + data[:8]).hexdigest()}


def test_hashes_are_not_added_where_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"lora_unet_a.alpha": torch.tensor(1.0)}, path)
    assert edit_metadata(path, {"modelspec.title": "t"}) == {"modelspec.title": "t"}
    assert edit_metadata(path, {"modelspec.title": None}) == {}


def test_nothing_to_change_writes_nothing(network: Path) -> None:
    os.utime(network, ns=(1, 1))
    assert edit_metadata(network, {"ss_output_name": "cat", "not there": None})["ss_output_name"] == "cat"
    assert network.stat().st_mtime_ns == 1


@pytest.mark.parametrize("key", ["sshs_model_hash", "sshs_legacy_hash", "__metadata__", ""])
def test_computed_keys_are_refused(network: Path, key: str) -> None:
    before = network.read_bytes()
    with pytest.raises(UserError, match="cannot be set by hand"):
        edit_metadata(network, {key: "1"})
    assert network.read_bytes() == before


def test_read_only_and_foreign_files_are_refused(network: Path, tmp_path: Path) -> None:
    network.chmod(0o444)
    with pytest.raises(UserError, match="is read-only: allow writing in its properties"):
        edit_metadata(network, {"a": "b"})
    (tmp_path / "old.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"old\.pt holds no metadata"):
        edit_metadata(tmp_path / "old.pt", {"a": "b"})
    with pytest.raises(UserError, match="cannot be read"):
        edit_metadata(tmp_path / "none.safetensors", {"a": "b"})


def test_a_file_that_was_replaced_meanwhile_is_left_alone(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([("then",), ("now",)])
    monkeypatch.setattr(metadata_edit, "identity", lambda path: next(seen))
    before = network.read_bytes()
    with pytest.raises(UserError, match="was replaced by another program meanwhile"):
        edit_metadata(network, {"a": "b"})
    assert network.read_bytes() == before
    assert [path.name for path in network.parent.iterdir()] == ["cat.safetensors"]
