"""The form's routes: the plan of what stands in the fields, problems beside them, and the settings of past runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lora_ext.config.train_config import make_config
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import CheckpointInfo
from lora_ext.web import markup
from lora_ext.web.form_values import fields_of

API = "/lora-workshop/api"
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.txt").write_text(f"a star {HOSTILE}", encoding="utf-8")
    return folder


def plan(client: TestClient, **body: object) -> dict:
    flags = {name: body.pop(name) for name in ("look", "asked") if name in body}
    answer = client.post(f"{API}/form/plan", json={"settings": body, **flags})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_look_and_plan(shelf_client: TestClient, pictures: Path) -> None:
    fields = {"train_data_dir": str(pictures), "output_name": "star", "resolution": "64", "bucket_reso_steps": "8"}
    seen = plan(shelf_client, **fields, look=True)
    assert "1 picture · 1 caption · 1 size" in seen["report"]
    assert "1 pictures an epoch ÷ batch 1 = 1 step" in seen["plan"]
    assert "<strong>10 steps</strong>" in seen["plan"]
    assert "star-000001, …, star-000009, star" in seen["plan"]
    assert 'aria-label="learning rate of each step"' in seen["plan"] and ">U-Net, text encoder<" in seen["plan"]
    assert plan(shelf_client, **fields) == {"plan": seen["plan"], "fields": {}}


def test_foreign_text_is_shown_as_text(shelf_client: TestClient, shelf: JobRunner, pictures: Path) -> None:
    seen = plan(shelf_client, train_data_dir=str(pictures), output_name="star", resolution="64", look=True)
    info = CheckpointInfo(f"model {HOSTILE}", "SD1", "epsilon", "cpu", "float32")
    everything = seen["report"] + seen["plan"] + markup.status_bar(info) + markup.errors([HOSTILE])
    assert HOSTILE not in everything
    assert everything.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;") >= 3


def test_what_is_wrong_stands_beside_its_field_and_all_of_it_together(shelf_client: TestClient) -> None:
    seen = plan(shelf_client, train_data_dir="/no/such/folder", output_name="star", look=True)
    assert "there is no such folder" in seen["report"]
    seen = plan(shelf_client, train_data_dir="", network_dim="0", seed="x")
    assert seen["plan"].count("<li>") == 2 and 'class="lw-errors"' in seen["plan"]
    assert list(seen["fields"]) == ["network_dim", "seed"]
    assert seen["fields"]["seed"] == ["seed = 'x': allowed is a whole number from 0 to 4294967295"]
    refused = shelf_client.post(f"{API}/form/start", json={"settings": {"network_dim": "0"}}).json()
    assert "lw-errors" in refused["plan"] and list(refused["fields"]) == ["network_dim"] and "run" not in refused
    refused = shelf_client.post(f"{API}/start", json={"settings": {"network_dim": "0"}})
    assert refused.status_code == 400 and list(refused.json()["fields"]) == ["network_dim"]


def test_what_is_found_out_while_planning_stands_beside_its_field_too(shelf_client: TestClient, pictures: Path) -> None:
    fields = {"train_data_dir": str(pictures), "output_name": "star", "resolution": "64", "bucket_reso_steps": "8"}
    half_typed = plan(shelf_client, **fields, lr_scheduler="torch.opt", look=True)
    assert "1 picture · 1 caption" in half_typed["report"] and "lw-errors" in half_typed["plan"]
    assert list(half_typed["fields"]) == ["lr_scheduler"]
    nowhere = plan(shelf_client, **fields, optimizer_type="nowhere.Such")
    assert "nowhere" in nowhere["plan"] and list(nowhere["fields"]) == ["optimizer_type"]
    for folder in ("a\0b", *(() if sys.platform == "win32" else ("x" * 5000,))):
        assert list(plan(shelf_client, **fields, output_dir=folder)["fields"]) == ["output_dir"]


def test_a_page_without_a_folder_asks_for_one_and_blames_nobody(shelf_client: TestClient) -> None:
    assert "lw-errors" not in "".join(map(str, plan(shelf_client, train_data_dir=" ", look=True).values()))
    assert "lw-errors" in plan(shelf_client, train_data_dir=" ", look=True, asked=True)["report"]


def test_settings_of_the_latest_run_come_back(shelf_client: TestClient, shelf: JobRunner, tmp_path: Path) -> None:
    assert shelf_client.get(f"{API}/form").json() == {"values": {}}
    for name, rank in (("first", 4), ("second", 8)):
        config = make_config({"output_name": name, "network_dim": rank, "unet_lr": 3e-4})
        shelf.registry.create(config, tmp_path).close()
    latest = shelf_client.get(f"{API}/form").json()["values"]
    assert (latest["output_name"], latest["network_dim"], latest["unet_lr"]) == ("second", "8", "3e-4")
    resumed = shelf.registry.create(make_config({"output_name": "third", "resume": "latest"}), tmp_path)
    assert shelf_client.get(f"{API}/form").json()["values"]["resume"] == "latest"
    resumed.update(state="finished")
    resumed.close()
    assert shelf_client.get(f"{API}/form").json()["values"]["resume"] == ""
    first = shelf.registry.records()[-1].id
    assert shelf_client.get(f"{API}/form", params={"run": first}).json()["values"]["output_name"] == "first"
    assert shelf_client.get(f"{API}/form", params={"run": "20200101-000000-gone"}).json() == {"values": {}}


@pytest.mark.parametrize(
    ("problem", "fields"),
    [
        ("seed = 'x': allowed is a whole number", ["seed"]),
        ("min_bucket_reso = 512 is above max_bucket_reso = 256", ["min_bucket_reso", "max_bucket_reso"]),
        ("max_bucket_reso = 100 is below the resolution 512: raise it", ["max_bucket_reso"]),
        ("sample_prompts, line 2: --w 7: allowed is a multiple of 8", ["sample_prompts"]),
        ("output_name is empty: give the network a name", ["output_name"]),
        ("the latents of network_dim and the seed of a vae", ["network_dim"]),
        ("/no/such/folder: there is no such folder; seed and vae are plain words here", []),
    ],
)  # fmt: skip
def test_which_fields_a_problem_is_about(problem: str, fields: list[str]) -> None:
    assert fields_of(problem) == fields
