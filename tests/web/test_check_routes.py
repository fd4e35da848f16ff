"""Tools that tell of files, over the routes: a check against the loaded checkpoint, words moved, metadata changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.merge import interrogate
from lora_ext.networks.file import scan_network, write_network

API = "/lora-workshop/api"


@pytest.fixture
def network(served: Any, tiny_checkpoint_path: Path) -> Path:
    """`cat`, a network for the text encoder of the loaded checkpoint."""
    weights = open_checkpoint_file(tiny_checkpoint_path).weights
    tensors = {}
    for key in (key for key in weights if key.startswith("lora_te") and key.endswith("fc1")):
        outputs, inputs = weights[key].shape
        tensors |= {f"{key}.lora_up.weight": torch.full((outputs, 1), 0.01), f"{key}.alpha": torch.tensor(1.0)}
        tensors[f"{key}.lora_down.weight"] = torch.full((1, inputs), 0.01)
    path: Path = served.host.folders().networks[0] / "cat.safetensors"
    write_network(path, tensors, {"ss_output_name": "cat"}, "float")
    return path


def report_of(served: Any, tool: str, **settings: Any) -> dict[str, Any]:
    """The report of a tool's work, once it has ended well."""
    assert served.client.post(f"{API}/tools/{tool}/run", json={"settings": settings}).status_code == 200
    for _ in range(1000):
        status = served.client.get(f"{API}/tools/status").json()
        if status["state"] != "running":
            break
        time.sleep(0.02)
    assert (status["state"], status["problems"]) == ("finished", [])
    told: dict[str, Any] = served.client.get(f"{API}/tools/report").json()["report"]
    return told


def test_a_network_is_checked_against_the_loaded_checkpoint(served: Any, network: Path) -> None:
    told = report_of(served, "check", files="cat", checkpoint="loaded")
    assert told["verdict"] == "healthy"
    assert list(told["checked"][0]["changes_by_block"]) == ["BASE"]


def test_the_loaded_text_encoder_is_lent_for_the_words(
    served: Any, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrogate, "vocabulary_size", lambda module: 40)
    told = report_of(served, "interrogate", file="cat", top=3)
    assert len(told["tokens"]) == 3 and told["tokens"][0]["distance"] > 0
    assert told["facts"]["checkpoint"] == served.host.loaded.checkpoint.name
    assert served.host.loaded.checkpoint.ledger.owner is None


def test_metadata_are_changed(served: Any, network: Path) -> None:
    told = report_of(served, "metadata", file="cat", set="ss_output_name=tom", remove="")
    assert told["metadata"]["ss_output_name"] == "tom" == scan_network(network).metadata["ss_output_name"]
    assert Path(told["files"][0]["path"]) == network
