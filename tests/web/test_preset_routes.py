"""Presets, imports and exports over the routes: what fills the form, what is kept out of it, and what is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from lora_ext.config.toml_files import read_config
from lora_ext.config.train_config import make_config
from lora_ext.jobs.own_presets import OF_ONE_RUN, OwnPresets
from lora_ext.protocols import CheckpointInfo, UserError
from lora_ext.web.preset_routes import preset_fields

API = "/lora-workshop/api"
CPU = CheckpointInfo("model", "SD1", "epsilon", "cpu", "float32")
GPU = CheckpointInfo("model", "SD1", "epsilon", "cuda:0", "float16")


def test_built_in_presets_and_the_card_that_fits(shelf_client: TestClient) -> None:
    known = shelf_client.get(f"{API}/presets").json()
    assert [each["name"] for each in known["subjects"]][:2] == ["character", "style"]
    assert known["card"] == "card-8gb"  # the shelf has 8 GB
    assert {"name", "title", "description"} == set(known["cards"][0]) and known["own"] == []
    values = shelf_client.post(f"{API}/presets/apply", json={"names": ["character", "card-12gb"]}).json()["values"]
    assert (values["network_dim"], values["keep_tokens"], values["unet_lr"]) == ("32", "1", "1e-4")
    assert not set(values) & set(OF_ONE_RUN)
    unknown = shelf_client.post(f"{API}/presets/apply", json={"names": ["nobody"]})
    assert unknown.status_code == 400 and "nobody" in unknown.json()["error"]


def test_a_card_sets_the_precision_where_there_is_one() -> None:
    assert preset_fields(["card-12gb"], GPU)["mixed_precision"] == "bf16"
    assert "mixed_precision" not in preset_fields(["card-12gb"], CPU)


def test_a_preset_of_ones_own(shelf_client: TestClient, tmp_path: Path) -> None:
    settings = {"network_dim": "8", "unet_lr": "3e-4", "train_data_dir": "/secret", "output_name": "cat", "resume": "x"}
    saved = shelf_client.post(f"{API}/presets/save", json={"name": " my cats (v1.2) ", "settings": settings}).json()
    assert saved == {"name": "my cats (v1.2)", "own": ["my cats (v1.2)"]}
    assert "secret" not in (tmp_path / "presets" / "my cats (v1.2).toml").read_text(encoding="utf-8")
    values = shelf_client.get(f"{API}/presets/own", params={"name": "my cats (v1.2)"}).json()["values"]
    assert (values["network_dim"], values["unet_lr"], values["text_encoder_lr"]) == ("8", "3e-4", "")
    assert not set(values) & set(OF_ONE_RUN)
    wrong = shelf_client.post(f"{API}/presets/save", json={"name": "x", "settings": {"network_dim": "0"}})
    assert wrong.status_code == 400 and list(wrong.json()["fields"]) == ["network_dim"]
    assert shelf_client.post(f"{API}/presets/delete", json={"name": "my cats (v1.2)"}).json() == {"own": []}
    assert shelf_client.post(f"{API}/presets/delete", json={"name": "my cats (v1.2)"}).status_code == 400


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", ".hidden", "x" * 61, "con:", "end.", "a\nb"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="preset = .*allowed are letters"):
        OwnPresets(tmp_path).save(name, make_config({}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"masked_loss": "true", "conditioning_data_dir": "/masks"},
        {"num_class_images": "50", "class_prompt": "a cat", "reg_data_dir": "/cats"},
        {"early_stopping_patience": "3", "validation_data_dir": "/held-out"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_preset_may_need_folders_that_it_does_not_hold(shelf_client: TestClient, settings: dict[str, str]) -> None:
    saved = shelf_client.post(f"{API}/presets/save", json={"name": "half", "settings": settings})
    assert saved.status_code == 200
    values = shelf_client.get(f"{API}/presets/own", params={"name": "half"}).json()["values"]
    name = next(iter(settings))
    assert str(values[name]).lower() == settings[name]
    assert not set(values) & set(OF_ONE_RUN)


@pytest.mark.skipif(sys.platform == "win32", reason="a file's permissions mean little there")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "presets").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="the preset cannot be written to"):
        OwnPresets(tmp_path / "presets").save("mine", make_config({}))


SD_SCRIPTS = (
    'pretrained_model_name_or_path = "/m/any.safetensors"\nnetwork_dim = 8\nunet_lr = 1e-3\nno_such_option = 1\n'
)


def test_an_import_fills_the_form_and_tells_what_became_of_each_name(shelf_client: TestClient) -> None:
    found = shelf_client.post(f"{API}/import", json={"text": SD_SCRIPTS, "file": "old.toml"}).json()
    values = found["values"]
    assert (values["network_dim"], values["network_alpha"], values["unet_lr"]) == ("8", "1", "1e-3")
    assert not {"train_data_dir", "output_name", "resume"} & set(values)  # the form keeps its own
    assert any("no_such_option" in note for note in found["notes"]["unknown"])
    assert found["warnings"] and "any.safetensors" in found["warnings"][0] and found["base_model"] == "any.safetensors"
    broken = shelf_client.post(f"{API}/import", json={"text": "{"})
    assert broken.status_code == 400 and broken.json()["problems"]
    assert shelf_client.post(f"{API}/import", json={"text": "x" * (8 * 2**20 + 1)}).status_code == 400


def test_what_fights_in_an_import_fills_the_form_too(shelf_client: TestClient) -> None:
    """The plan tells what is wrong, beside the fields in which it can be put right."""
    text = "network_dim = 8\nmasked_loss = true"
    found = shelf_client.post(f"{API}/import", json={"text": text})
    assert found.status_code == 200 and found.json()["values"]["masked_loss"] is True


def test_an_import_of_pictures_fills_their_field_alone(shelf_client: TestClient) -> None:
    text = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "/pictures"\n'
    assert shelf_client.post(f"{API}/import", json={"text": text}).json()["values"] == {"dataset_config": text.strip()}


def test_exports_are_read_again(shelf_client: TestClient, tmp_path: Path) -> None:
    settings = {"network_dim": "8", "unet_lr": "3e-4", "output_name": "cat"}
    own = shelf_client.post(f"{API}/export", json={"settings": settings}).json()
    assert own["file"] == "cat.toml"
    (tmp_path / "cat.toml").write_text(own["text"], encoding="utf-8")
    assert read_config(tmp_path / "cat.toml") == make_config(settings)
    other = shelf_client.post(f"{API}/export", json={"settings": settings, "format": "sd-scripts"}).json()
    assert other["file"] == "cat-sd-scripts.toml"
    again = shelf_client.post(f"{API}/import", json={"text": other["text"]}).json()
    assert (again["values"]["network_dim"], again["values"]["unet_lr"]) == ("8", "3e-4")
    assert again["values"]["output_name"] == "cat"
