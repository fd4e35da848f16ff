"""Routes for the file tools: declarations, preview, work, cancel, and no way out of the folders."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from lora_ext.jobs.live_status import RunStatus
from lora_ext.jobs.records import RunRecord
from lora_ext.networks.file import read_network, write_network
from lora_ext.protocols import UserError
from lora_ext.web.tool_routes import device_of
from tests.merge.sample_tool import register

API = "/lora-workshop/api"


@pytest.fixture(autouse=True)
def scale(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture
def folder(served: Any) -> Path:
    """The folder of networks, with `cat` in it."""
    path: Path = served.host.folders().networks[0]
    write_network(path / "cat.safetensors", {"lora_unet_a.alpha": torch.tensor(4.0)}, {}, "fp16")
    return path


def ended(client: TestClient) -> dict[str, Any]:
    for _ in range(500):
        status: dict[str, Any] = client.get(f"{API}/tools/status").json()
        if status["state"] != "running":
            return status
        time.sleep(0.02)
    raise AssertionError(status)


def post(client: TestClient, what: str, **settings: Any) -> Any:
    return client.post(f"{API}/tools/scale/{what}", json={"settings": settings})


def test_what_is_declared(served: Any) -> None:
    told = {each["name"]: each for each in served.client.get(f"{API}/tools").json()["tools"]}["scale"]
    assert (told["title"], told["has_preview"]) == ("Scale", True)
    named = {each["name"]: each for each in told["settings"]}
    assert (named["file"]["kind"], named["factor"]["default"], named["conv_rank"]["optional"]) == ("network", "1", True)
    assert named["method"]["choices"] == ["all", "up"]
    assert served.stranger.get(f"{API}/tools").status_code == 401
    assert served.stranger.post(f"{API}/tools/scale/run", json={"settings": {}}).status_code == 401


def test_names_to_choose_from(served: Any, folder: Path) -> None:
    for name in ("a/model", "model", "photo"):
        path = folder.parent / "Stable-diffusion" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    told = served.client.get(f"{API}/tools/files").json()
    assert told["networks"] == ["cat"]
    models = folder.parent / "Stable-diffusion"
    assert told["checkpoints"] == [
        "loaded", str(models / "model.safetensors"), "photo", str(models / "a" / "model.safetensors"),
    ]  # fmt: skip


def test_preview_then_work(served: Any, folder: Path) -> None:
    assert served.client.get(f"{API}/tools/status").json()["state"] == "idle"
    values = {"file": "cat", "out": "small.safetensors", "factor": "0.5"}
    assert post(served.client, "preview", **values).json()["preview"] is True
    assert ended(served.client)["state"] == "finished"
    assert not (folder / "small.safetensors").exists()
    told = served.client.get(f"{API}/tools/report").json()
    assert told["report"]["facts"]["Network"] == "cat"
    assert (
        "<svg" in told["html"] and "IN" not in told["html"] and "MID" in told["html"] and "rank 4 → 2" in told["html"]
    )
    assert "&lt;b&gt;careful&lt;/b&gt;" in told["html"] and "would write" in told["html"]

    began = post(served.client, "run", **values).json()
    assert (began["number"], began["preview"], began["values"]) == (2, False, values)
    status = ended(served.client)
    assert (status["state"], status["problems"]) == ("finished", [])
    assert float(read_network(folder / "small.safetensors").tensors["lora_unet_a.alpha"]) == 2.0
    assert f"wrote <code>{folder / 'small.safetensors'}" in served.client.get(f"{API}/tools/report").json()["html"]

    post(served.client, "run", **values)
    status = ended(served.client)
    assert status["state"] == "failed" and "small.safetensors is there already" in status["problems"][0]
    assert "html" not in served.client.get(f"{API}/tools/report").json()


def test_one_at_a_time_and_cancel(served: Any, folder: Path) -> None:
    values = {"file": "cat", "out": "slow.safetensors", "slow": True}
    post(served.client, "run", **values)
    second = post(served.client, "run", **values)
    assert second.status_code == 400 and "Scale is at work: wait" in second.json()["error"]
    served.client.post(f"{API}/tools/cancel")
    assert ended(served.client)["state"] == "cancelled"
    assert [path.name for path in folder.iterdir()] == ["cat.safetensors"]


OUTSIDE = ("../x.safetensors", "/tmp/x.safetensors", "a/../../../x.safetensors", "")


@pytest.mark.parametrize("out", OUTSIDE)
def test_no_output_leads_out(served: Any, folder: Path, out: str) -> None:
    answer = post(served.client, "run", file="cat", out=out)
    assert answer.status_code == 400
    assert ("out is empty" if not out else f"from here files are written into {folder}") in answer.json()["error"]


IMPOSSIBLE = {"x" * 300 + ".safetensors": "cannot be written (", "cat.safetensors/x.safetensors": "is a file, and"}


@pytest.mark.parametrize("tool", ["scale", "resize"])
@pytest.mark.parametrize("out", IMPOSSIBLE)
def test_an_output_that_no_disk_can_have_is_told_in_words(served: Any, folder: Path, out: str, tool: str) -> None:
    values = {"scale": {"file": "cat"}, "resize": {"files": "cat", "rank": 1}}[tool]
    served.client.post(f"{API}/tools/{tool}/run", json={"settings": {**values, "out": out}})
    (problem,) = ended(served.client)["problems"]
    assert IMPOSSIBLE[out] in problem and "Error" not in problem


def test_no_input_leads_out(served: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(folder / "cat.safetensors", tmp_path / "hidden.safetensors")
    for name in (str(tmp_path / "hidden.safetensors"), "../../../hidden.safetensors", "dog"):
        post(served.client, "run", file=name, out="new.safetensors")
        (problem,) = ended(served.client)["problems"]
        assert ("there is no such network" if name == "dog" else "from here only those can be read") in problem
    assert [path.name for path in folder.iterdir()] == ["cat.safetensors"]
    post(served.client, "run", file=str(folder / "cat.safetensors"), out="sub/new.safetensors")
    assert ended(served.client)["state"] == "finished" and (folder / "sub" / "new.safetensors").is_file()


def test_wrong_values_are_told_at_once(served: Any, folder: Path) -> None:
    answer = post(served.client, "run", file="cat", out="x.safetensors", factor="11", method="none")
    assert answer.status_code == 400
    assert [problem.split(":")[0] for problem in answer.json()["problems"]] == ["factor = '11'", "method = 'none'"]
    unknown = post(served.client, "run", file="cat", out="x.safetensors", bogus=1).json()["problems"]
    assert unknown == ["bogus: there is no setting of this name; `scale --help` lists all of them"]
    assert "there is no tool" in served.client.post(f"{API}/tools/nothing/run", json={"settings": {}}).json()["error"]


def test_a_card_that_a_training_has_is_left_to_it(served: Any) -> None:
    assert str(device_of("auto", served.host, False)) == "cpu" == str(device_of("cpu", served.host, True))
    with pytest.raises(UserError, match="a training has the graphics card: choose cpu"):
        device_of("cuda", served.host, True)


def test_files_of_a_training_are_left_alone(served: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = folder / "own" / "cat-000001.safetensors"
    for file in (own, folder / "own" / "dog.safetensors"):
        write_network(file, {"lora_unet_a.alpha": torch.tensor(4.0)}, {}, "fp16")
    record = RunRecord("1", "cat", "running", 0.0, str(folder), files=(str(folder / "cat.safetensors"), str(own)))
    monkeypatch.setattr(served.runner, "status", lambda: RunStatus(record))
    for out in (
        "copy.safetensors",
        "own/cat.safetensors",
    ):  # the second is no file of the run: it is in no folder of it
        post(served.client, "run", file="cat", out=out)
        assert ended(served.client)["state"] == "finished"
    for out in (
        "cat.safetensors",
        "cat-000002.safetensors",
        "cat-step00000100.safetensors",
        "own/cat-000001.safetensors",
    ):
        answer = post(served.client, "run", file="copy", out=out, overwrite=True)
        assert f"{Path(out).name} belongs to cat, which is in training" in answer.json()["error"]
    editing = served.client.post(f"{API}/tools/metadata/run", json={"settings": {"file": "cat", "set": "a=b"}})
    assert editing.status_code == 400 and "belongs to cat, which is in training" in editing.json()["error"]


def test_a_folder_with_files_of_a_training_is_only_added_to(
    served: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = folder / "own" / "cat-000001.safetensors"
    write_network(own, {"lora_unet_a.alpha": torch.tensor(4.0)}, {}, "fp16")
    record = RunRecord("1", "cat", "running", 0.0, str(folder / "own"), files=(str(own),))
    monkeypatch.setattr(served.runner, "status", lambda: RunStatus(record))
    resize = f"{API}/tools/resize/run"
    values = {"files": "cat\ncat-000001", "rank": 1, "out": "own"}
    refused = served.client.post(resize, json={"settings": {**values, "overwrite": True}})
    assert refused.status_code == 400 and "own holds files of cat, which is in training" in refused.json()["error"]
    assert served.client.post(resize, json={"settings": values}).status_code == 200
    ended(served.client)


def test_names_may_have_their_ending_and_an_empty_one_is_none(served: Any, folder: Path) -> None:
    write_network(folder / "old.safetensors", {"lora_unet_a.alpha": torch.tensor(4.0)}, {"ss_output_name": ""}, "fp16")
    post(served.client, "run", file="cat.safetensors", out="a.safetensors")
    assert ended(served.client)["state"] == "finished"
    post(served.client, "run", file="", out="b.safetensors")
    assert "no network is given" in ended(served.client)["problems"][0]
