"""The files beside a network for the WebUI's cards, and what a person has put there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ext.networks.sidecar import activation_text, card_values, delete_sidecar, write_sidecar

METADATA = {
    "ss_output_name": "cat-000003", "ss_epoch": "3", "ss_steps": "30", "ss_sd_model_name": "base.safetensors",
    "ss_base_model_version": "sd_v1", "ss_network_dim": "8", "ss_network_alpha": "4.0", "ss_learning_rate": "0.0001",
    "ss_resolution": "(512, 512)", "ss_dataset_dirs": '{"10_sks cat": {"n_repeats": 10, "img_count": 4}}',
}  # fmt: skip


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return tmp_path / "cat-000003.safetensors"


def files(network: Path) -> list[str]:
    return sorted(path.name for path in network.parent.iterdir())


def test_a_card_holds_what_the_webui_shows(network: Path) -> None:
    assert write_sidecar(network, METADATA, b"picture")
    values = json.loads(network.with_suffix(".json").read_text(encoding="utf-8"))
    del values["lora workshop"]
    assert (
        values
        == card_values(METADATA)
        == {
            "description": "cat-000003: epoch 3, step 30 on base.safetensors",
            "sd version": "SD1",
            "activation text": "sks cat",
            "preferred weight": 1.0,
            "negative text": "",
            "notes": "rank 8, alpha 4.0, learning rate 0.0001, resolution (512, 512); written by LoRA Workshop",
        }
    )
    assert network.with_suffix(".png").read_bytes() == b"picture"


def test_our_own_files_are_replaced_and_deleted(network: Path) -> None:
    write_sidecar(network, METADATA, b"picture")
    assert write_sidecar(network, {**METADATA, "ss_steps": "40"})  # no new picture: the old one stays ours
    assert network.with_suffix(".png").read_bytes() == b"picture"
    assert write_sidecar(network, METADATA, b"another")
    assert network.with_suffix(".png").read_bytes() == b"another"
    delete_sidecar(network)
    assert files(network) == []
    delete_sidecar(network)


def test_what_a_person_has_edited_stays(network: Path) -> None:
    write_sidecar(network, METADATA, b"picture")
    path = network.with_suffix(".json")
    edited = {**json.loads(path.read_text(encoding="utf-8")), "notes": "the good one"}
    path.write_text(json.dumps(edited), encoding="utf-8")
    assert not write_sidecar(network, METADATA, b"another")
    delete_sidecar(network)
    assert json.loads(path.read_text(encoding="utf-8"))["notes"] == "the good one"
    assert network.with_suffix(".png").read_bytes() == b"picture"


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"lora workshop": 3}'])
def test_somebody_elses_words_stay(network: Path, text: str) -> None:
    network.with_suffix(".json").write_text(text, encoding="utf-8")
    assert not write_sidecar(network, METADATA, b"picture")
    delete_sidecar(network)
    assert network.with_suffix(".json").read_text(encoding="utf-8") == text
    assert not network.with_suffix(".png").exists()


def test_somebody_elses_picture_stays(network: Path) -> None:
    network.with_suffix(".png").write_bytes(b"mine")
    assert not write_sidecar(network, METADATA, b"picture")
    assert network.with_suffix(".png").read_bytes() == b"mine"
    delete_sidecar(network)
    assert files(network) == ["cat-000003.png"]


@pytest.mark.parametrize(
    ("folders", "tags", "words"),
    [
        ('{"10_sks cat": {"img_count": 4}, "2_blue star": {"img_count": 1}}', "{}", "sks cat, blue star"),
        ('{"pictures": {"img_count": 4}}', '{"pictures": {"sks": 4, "cat": 4, "grass": 1}}', "sks, cat"),
        ('{"pictures": {"img_count": 4}}', '{"pictures": {"a cat on a chair": 1}}', ""),
        (None, None, ""),
    ],
)
def test_the_words_that_call_a_network(folders: str | None, tags: str | None, words: str) -> None:
    given = {"ss_dataset_dirs": folders, "ss_tag_frequency": tags}
    assert activation_text({key: value for key, value in given.items() if value is not None}) == words
