"""Routes for network files: the list, a card that escapes everything, changes, and no way out of the folders."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from lora_ext.jobs.runner import JobRunner
from lora_ext.networks.file import scan_network, write_network

API = "/lora-workshop/api"
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "Lora" / "animals" / "cat.safetensors"
    metadata = {
        "ss_output_name": "cat", "ss_network_dim": "4", "ss_seed": "None", "ss_training_comment": HOSTILE,
        "ss_tag_frequency": json.dumps({"3_cat": {"a cat": 12, HOSTILE: 3}, "b": {"a cat": 1}}),
    }  # fmt: skip
    write_network(path, {"lora_unet_a.alpha": torch.tensor(4.0)}, metadata, "fp16")
    return path


def card(client: TestClient, path: Path) -> str:
    return str(client.get(f"{API}/network", params={"path": str(path)}).json()["html"])


def picture(colour: str) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_the_list(shelf_client: TestClient, network: Path, tmp_path: Path) -> None:
    told = shelf_client.get(f"{API}/networks").json()
    (entry,) = told["networks"]
    assert (entry["name"], entry["path"], entry["folder"], entry["picture"]) == ("cat", str(network), "animals", "")
    assert told["folders"] == [str(tmp_path / "Lora")] and told["notes"] == []


def test_a_cover_that_is_gone_costs_the_list_nothing(shelf_client: TestClient, network: Path) -> None:
    network.with_suffix(".png").symlink_to("nowhere.png")
    (entry,) = shelf_client.get("/lora-workshop/api/networks").json()["networks"]
    assert (entry["path"], entry["picture"]) == (str(network), "")


def test_a_missing_folder_is_told(shelf_client: TestClient, tmp_path: Path) -> None:
    told = shelf_client.get(f"{API}/networks").json()
    assert told["networks"] == [] and told["notes"] == [f"{tmp_path / 'Lora'}: there is no such folder"]


def test_the_card_tells_the_training_and_escapes_it(shelf_client: TestClient, network: Path) -> None:
    shown = card(shelf_client, network)
    assert "<dt>rank</dt><dd>4</dd>" in shown and "<dt>seed</dt>" not in shown
    assert "<li>a cat <b>13</b></li>" in shown
    assert HOSTILE not in shown and html.escape(HOSTILE) in shown
    assert scan_network(network).metadata["sshs_model_hash"][:12] in shown


@pytest.mark.parametrize("value", ["[1", "3", "[]", '{"a": 3, "b": {"x": "y"}}', "[" * 100_000, HOSTILE])
def test_metadata_of_any_form_makes_a_card(shelf_client: TestClient, network: Path, value: str) -> None:
    metadata = {"ss_tag_frequency": value, "ssmd_cover_images": value, "modelspec.thumbnail": value}
    write_network(network, {"lora_unet_a.alpha": torch.tensor(4.0)}, metadata, "fp16")
    shown = card(shelf_client, network)
    assert "no picture" in shown and "Tags in the captions" not in shown and HOSTILE not in shown


@pytest.mark.parametrize(
    ("address", "taken"),
    [("data:image/png;base64,AAAA", True), ("data:image/svg+xml;base64,AAAA", False), ("https://x.test/a.png", False),
     ('data:image/png;base64,AA" onload="x', False)],
)  # fmt: skip
def test_only_a_picture_in_the_file_is_shown(
    shelf_client: TestClient, network: Path, address: str, taken: bool
) -> None:
    write_network(network, {"lora_unet_a.alpha": torch.tensor(4.0)}, {"modelspec.thumbnail": address}, "fp16")
    assert (f'src="{address}"' in card(shelf_client, network)) == taken
    assert ("<img" in card(shelf_client, network)) == taken


def test_words_and_metadata_are_changed(shelf_client: TestClient, network: Path) -> None:
    body = {"path": str(network), "values": {"notes": HOSTILE, "preferred weight": "0.8"}}
    assert html.escape(HOSTILE) in shelf_client.post(f"{API}/network/words", json=body).json()["html"]
    words = json.loads(network.with_suffix(".json").read_text(encoding="utf-8"))
    assert words == {"notes": HOSTILE, "preferred weight": 0.8}
    body = {"path": str(network), "values": {"modelspec.title": "Cat", "ss_training_comment": ""}}
    told = shelf_client.post(f"{API}/network/metadata", json=body).json()["metadata"]
    assert told == scan_network(network).metadata
    assert told["modelspec.title"] == "Cat" and "ss_training_comment" not in told


def test_a_cover_is_set_and_shown(shelf_client: TestClient, network: Path) -> None:
    for text in (picture("red"), f"data:image/png;base64,{picture('red')}"):
        told = shelf_client.post(f"{API}/network/cover", json={"path": str(network), "picture": text}).json()
        assert "lora-workshop/api/picture?" in told["html"]
    entry = shelf_client.get(f"{API}/networks").json()["networks"][0]
    shown = Image.open(io.BytesIO(shelf_client.get("/" + entry["picture"]).content))
    assert shown.convert("RGB").getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("route", "body", "message"),
    [
        ("words", {"values": {"colour": "red"}}, "a card has no 'colour'"),
        ("metadata", {"values": {"sshs_model_hash": "1"}}, "cannot be set by hand"),
        ("cover", {"picture": "!!"}, "the picture is no base64 text"),
        ("cover", {"picture": "AAAA"}, "no picture that can be read"),
    ],
)
def test_wrong_changes_are_refused(
    shelf_client: TestClient, network: Path, route: str, body: dict[str, Any], message: str
) -> None:
    answer = shelf_client.post(f"{API}/network/{route}", json={"path": str(network), **body})
    assert answer.status_code == 400 and message in answer.json()["error"]


@pytest.mark.parametrize("route", ["words", "metadata", "cover"])
def test_no_path_leads_out_of_the_folders(shelf_client: TestClient, network: Path, tmp_path: Path, route: str) -> None:
    outside = tmp_path / "secret.safetensors"
    outside.write_bytes(network.read_bytes())
    for path in (outside, network.parent / ".." / ".." / "secret.safetensors", tmp_path / "Lora2" / "a.safetensors"):
        body = {"path": str(path), "values": {"notes": "x"}, "picture": picture("red")}
        assert shelf_client.post(f"{API}/network/{route}", json=body).status_code == 400
        assert shelf_client.get(f"{API}/network", params={"path": str(path)}).status_code == 400
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["secret.safetensors"]


def test_a_file_of_a_run_that_goes_on_is_left_alone(
    shelf: JobRunner, shelf_client: TestClient, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ext.jobs.live_status import RunStatus
    from lora_ext.jobs.records import RunRecord

    record = RunRecord("1", "cat", "running", 0.0, str(network.parent), files=(str(network),))
    monkeypatch.setattr(shelf, "status", lambda: RunStatus(record))
    body = {"path": str(network), "values": {"modelspec.title": "Cat"}}
    answer = shelf_client.post(f"{API}/network/metadata", json=body)
    assert answer.status_code == 400 and "is in training: wait until that has ended" in answer.json()["error"]


def test_an_unreadable_network_has_a_card_that_says_so(shelf_client: TestClient, network: Path) -> None:
    network.write_bytes(b"nothing")
    network.with_suffix(".json").write_text("{broken", encoding="utf-8")
    shown = card(shelf_client, network)
    assert "cat.safetensors cannot be read" in shown and "put it right or delete it" in shown


def test_names_that_are_no_unicode_are_answered(shelf_client: TestClient) -> None:
    odd = b'{"settings": {"cat\\ud800": 1}}'
    answer = shelf_client.post(f"{API}/plan", content=odd, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "cat\ud800: there is no setting" in answer.json()["error"]
