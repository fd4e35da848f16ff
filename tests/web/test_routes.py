"""The routes over a real runner: a run from start to its files, and everybody who is not let in."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient

from lora_ext.config.train_config import make_config
from lora_ext.protocols import GenerateRequest, UserError
from lora_ext.web.pictures import picture_url
from lora_ext.web.planning import PlanningDesk

API = "/lora-workshop/api"
ROUTES = [
    ("POST", "/start"), ("POST", "/plan"), ("POST", "/stop"), ("POST", "/cancel"), ("POST", "/save"),
    ("POST", "/pause"), ("POST", "/resume"),
    ("POST", "/sample"), ("GET", "/run/x/samples"),
    ("GET", "/status"), ("GET", "/runs"), ("GET", "/run/x"), ("GET", "/run/x/chart"), ("GET", "/dataset"),
    ("GET", "/picture"), ("GET", "/form"), ("POST", "/form/plan"), ("POST", "/form/start"),
    ("GET", "/presets"), ("POST", "/presets/apply"), ("GET", "/presets/own"), ("POST", "/presets/save"),
    ("POST", "/presets/delete"), ("POST", "/import"), ("POST", "/export"),
    ("GET", "/networks"), ("GET", "/network"), ("POST", "/network/words"), ("POST", "/network/metadata"),
    ("POST", "/network/cover"),
    ("GET", "/tools"), ("GET", "/tools/files"), ("GET", "/tools/status"), ("GET", "/tools/report"),
    ("POST", "/tools/cancel"), ("POST", "/tools/{name}/preview"), ("POST", "/tools/{name}/run"),
]  # fmt: skip

OTHER_SITES = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "https://elsewhere.example"},
    {"origin": "null"},
    {"origin": "http://testserver:9999"},
    {"sec-fetch-site": "cross-site", "origin": "http://testserver"},
    {"origin": "https://elsewhere.example", "x-forwarded-host": "public.example, inner.example"},
]
OWN_PAGE = [
    {},
    {"sec-fetch-site": "same-origin", "origin": "http://testserver"},
    {"sec-fetch-site": "same-origin", "origin": "https://public.example"},  # behind a proxy that keeps its name
    {"sec-fetch-site": "none"},
    {"origin": "http://testserver"},
    {"origin": "https://public.example", "x-forwarded-host": "public.example"},
    {"origin": "https://public.example", "x-forwarded-host": "public.example, inner.example"},
]


def wait_until_over(client: TestClient, run_id: str) -> dict:
    for _ in range(600):
        record = client.get(f"{API}/run/{run_id}").json()["run"]
        if record["state"] not in ("queued", "running", "paused"):
            return record
        time.sleep(0.05)
    raise AssertionError("the run did not end")


def test_a_run_from_start_to_files(served) -> None:
    answer = served.client.post(f"{API}/start", json={"settings": served.settings})
    assert answer.status_code == 200, answer.text
    run = answer.json()
    record = wait_until_over(served.client, run["id"])
    assert (record["state"], record["steps"], record["error"]) == ("finished", 8, None)
    assert [Path(file).name for file in record["files"]] == ["zib-000001.safetensors", "zib.safetensors"]
    whole = served.client.get(f"{API}/run/{run['id']}").json()
    assert [step for step, _ in whole["losses"]] == list(range(1, 9))
    assert whole["settings"]["network_dim"] == 2
    status = served.client.get(f"{API}/status").json()
    assert (status["active"], status["progress"], status["checkpoint"]["name"]) == (False, 1.0, "tiny-sd1")
    assert [file["epoch"] for file in status["saved"]] == [1, 2]
    assert served.client.get(f"{API}/runs").json()["runs"][0]["id"] == run["id"]
    chart = served.client.get(f"{API}/run/{run['id']}/chart")
    assert chart.headers["content-type"].startswith("image/svg+xml")
    assert chart.text.startswith("<svg")


def test_control(served) -> None:
    settings = {**served.settings, "max_train_epochs": 4000, "save_every_n_epochs": None}
    first = served.client.post(f"{API}/start", json={"settings": settings}).json()
    second = served.client.post(f"{API}/start", json={"settings": {**settings, "output_name": "other"}}).json()
    assert (second["state"], second["note"]) == ("queued", "waits for zib to end, then starts by itself")
    assert [run["name"] for run in served.client.get(f"{API}/status").json()["queued"]] == ["other"]
    assert served.client.post(f"{API}/stop", json={"id": second["id"]}).json()["state"] == "stopped"
    while served.client.get(f"{API}/status").json()["record"]["steps"] < 1:
        time.sleep(0.05)
    assert served.client.post(f"{API}/save", json={"id": first["id"]}).status_code == 200
    while not any("step" in Path(file["path"]).name for file in served.client.get(f"{API}/status").json()["saved"]):
        time.sleep(0.05)
    assert served.client.post(f"{API}/cancel", json={"id": first["id"]}).status_code == 200
    assert wait_until_over(served.client, first["id"])["state"] == "stopped"


def test_control_needs_no_worker_thread(served) -> None:
    """All of the server's may be waiting for the very run that somebody wants to stop."""
    settings = {**served.settings, "max_train_epochs": 4000, "save_every_n_epochs": None}
    run = served.client.post(f"{API}/start", json={"settings": settings}).json()["id"]

    async def ask_without_workers() -> list[int]:
        workers = anyio.to_thread.current_default_thread_limiter()
        workers.total_tokens = 1
        client = httpx.AsyncClient(app=served.client.app, base_url="http://testserver", headers=served.client.headers)
        async with workers, client:
            with anyio.fail_after(30):
                answers = [await client.get(f"{API}/status")]
                for route in ("save", "sample", "pause", "resume", "stop", "cancel"):
                    answers.append(await client.post(f"{API}/{route}", json={"id": run}))
        return [answer.status_code for answer in answers]

    while served.client.get(f"{API}/status").json()["record"]["state"] != "running":
        time.sleep(0.05)
    with ThreadPoolExecutor(1) as thread:  # in this one another test's browser may have an event loop
        assert thread.submit(anyio.run, ask_without_workers).result() == [200] * 7
    assert wait_until_over(served.client, run)["state"] == "stopped"


def test_pause_and_resume(served) -> None:
    settings = {**served.settings, "max_train_epochs": 4000, "save_every_n_epochs": None}
    run = served.client.post(f"{API}/start", json={"settings": settings}).json()["id"]

    def status_when(condition: Callable[[dict], bool]) -> dict:
        for _ in range(600):
            status: dict = served.client.get(f"{API}/status").json()
            if condition(status):
                return status
            time.sleep(0.05)
        raise AssertionError(f"it did not come so far: {status['record']}")

    status_when(lambda status: status["record"]["steps"] >= 1)
    assert served.client.post(f"{API}/pause", json={"id": run}).status_code == 200
    status = status_when(lambda status: status["record"]["state"] == "paused")
    assert (status["active"], status["live_network"], status["eta_seconds"]) == (True, "zib-live", None)
    assert status["live_network_problem"] == ""
    again = served.client.post(f"{API}/pause", json={"id": run})
    assert (again.status_code, again.json()["error"]) == (
        400, "zib is paused: only a run that goes on can be paused",
    )  # fmt: skip
    served.host.generate(GenerateRequest("a zib <lora:zib-live:1>", width=32, height=32, steps=1))
    assert served.client.post(f"{API}/resume", json={"id": run, "load_checkpoint": True}).status_code == 200
    steps = status["record"]["steps"]
    status = status_when(lambda status: status["record"]["steps"] > steps)
    assert (status["record"]["state"], status["live_network"]) == ("running", "")
    served.client.post(f"{API}/cancel", json={"id": run})
    assert wait_until_over(served.client, run)["state"] == "stopped"
    assert served.client.post(f"{API}/resume", json={"id": run}).status_code == 400


def test_what_is_wrong_is_said(served) -> None:
    wrong = {**served.settings, "network_dim": 0, "no_such_setting": 1, "train_data_dir": ""}
    answer = served.client.post(f"{API}/start", json={"settings": wrong})
    assert answer.status_code == 400
    assert len(answer.json()["problems"]) == 2
    assert "no_such_setting: there is no setting of this name" in answer.json()["error"]
    missing = served.client.get(f"{API}/dataset", params={"path": "/no/such/folder"})
    assert missing.status_code == 400
    assert "there is no such folder" in missing.json()["error"]
    assert served.client.get(f"{API}/run/20200101-000000-x").status_code == 400
    assert served.client.get(f"{API}/run/..%2F..%2Fetc").status_code in (400, 404)
    assert served.client.post(f"{API}/stop", json={}).status_code == 422


def test_plan_and_dataset(served, drawn_dataset: Path) -> None:
    plan = served.client.post(f"{API}/plan", json={"settings": served.settings}).json()
    assert (plan["plan"]["total_steps"], plan["plan"]["total_epochs"]) == (8, 2)
    assert [Path(file).name for file in plan["plan"]["files"]] == ["zib-000001.safetensors", "zib.safetensors"]
    assert plan["dataset"]["buckets"] == {"32x32": 8}
    report = served.client.get(f"{API}/dataset", params={"path": str(drawn_dataset)}).json()
    assert (report["pictures"], report["captions"], report["missing"]) == (4, 3, 1)


def test_nothing_answers_without_authentication(served) -> None:
    for method, route in ROUTES:
        assert served.stranger.request(method, API + route).status_code == 401, route


def test_other_sites_are_refused(served) -> None:
    for headers in OTHER_SITES:
        for method, route in ROUTES:
            assert served.client.request(method, API + route, headers=headers).status_code == 403, (headers, route)


def test_the_own_page_and_programs_are_let_in(served) -> None:
    for headers in OWN_PAGE:
        answer = served.client.post(f"{API}/plan", json={"settings": served.settings}, headers=headers)
        assert answer.status_code == 200


def test_every_route_is_in_the_list(served) -> None:
    there = {
        (method, route.path.removeprefix(API))
        for route in served.client.app.routes
        if route.path.startswith(API)
        for method in route.methods
    }
    assert there == {(method, route.replace("/x", "/{run_id}")) for method, route in ROUTES}


def test_pictures_that_were_shown(served, drawn_dataset: Path) -> None:
    red = drawn_dataset / "2_zib" / "red.png"
    small = served.client.get("/" + picture_url(red, 16))
    assert (small.status_code, small.headers["content-type"]) == (200, "image/jpeg")
    whole = served.client.get("/" + picture_url(red))
    assert whole.content == red.read_bytes()
    url = "/" + picture_url(red, 16)
    for forged in (url.replace("red", "green"), url.replace("size=16", "size=0"), url[:-4] + "0000"):
        assert served.client.get(forged).status_code == 400
    caption = drawn_dataset / "2_zib" / "green.txt"
    assert served.client.get("/" + picture_url(caption)).status_code == 400
    assert served.client.get("/" + picture_url(caption, 64)).status_code == 400


def test_a_closed_desk_reads_and_writes_in_its_folders_only(tiny_host, drawn_dataset: Path, tmp_path: Path) -> None:
    inside = make_config({"train_data_dir": str(drawn_dataset), "resolution": "32", "bucket_reso_steps": 32})
    PlanningDesk(tiny_host, [drawn_dataset]).look(inside)
    with pytest.raises(UserError, match="train_data_dir = .*: this folder is not open to the page"):
        PlanningDesk(tiny_host, [tmp_path / "elsewhere"]).look(inside)
    sneaky = make_config(
        {"train_data_dir": f"{drawn_dataset}/2_zib/../../..", "resolution": "32", "bucket_reso_steps": 32}
    )
    with pytest.raises(UserError, match="not open to the page"):
        PlanningDesk(tiny_host, [drawn_dataset]).look(sneaky)
    outside = make_config({"output_dir": str(tmp_path / "out")}, inside)
    with pytest.raises(UserError, match="output_dir = "):
        PlanningDesk(tiny_host, [drawn_dataset]).plan(outside)


def test_samples_with_addresses_that_are_served(served) -> None:
    settings = {**served.settings, "sample_every_n_epochs": 1, "sample_prompts": "a zib --s 1 --w 64 --h 64"}
    run = served.client.post(f"{API}/start", json={"settings": settings}).json()["id"]
    assert wait_until_over(served.client, run)["state"] == "finished"
    assert served.client.get(f"{API}/status").json()["samples"] == 2
    samples = served.client.get(f"{API}/run/{run}/samples").json()["samples"]
    assert [(each["epoch"], each["prompt"]) for each in samples] == [(1, "a zib"), (2, "a zib")]
    for address in (samples[0]["url"], samples[0]["thumbnail"]):
        assert served.client.get("/" + address).headers["content-type"] == "image/png"
    assert served.stranger.get("/" + samples[0]["url"]).status_code == 401


def test_samples_are_drawn_on_request(served) -> None:
    run = served.client.post(f"{API}/start", json={"settings": {**served.settings, "max_train_epochs": 500}}).json()
    assert served.client.post(f"{API}/sample", json={"id": run["id"]}).status_code == 200
    for _ in range(600):
        if served.client.get(f"{API}/status").json()["samples"]:
            break
        time.sleep(0.05)
    served.client.post(f"{API}/cancel", json={"id": run["id"]})
    assert wait_until_over(served.client, run["id"])["state"] == "stopped"
    assert len(served.client.get(f"{API}/run/{run['id']}/samples").json()["samples"]) == 1


def test_a_file_of_prompts_elsewhere_is_refused(tiny_host, tmp_path: Path, drawn_dataset: Path) -> None:
    desk = PlanningDesk(tiny_host, [drawn_dataset])
    config = make_config({"train_data_dir": str(drawn_dataset), "sample_prompts": str(tmp_path / "secret.txt")})
    with pytest.raises(UserError, match="sample_prompts = .*secret.txt: this folder is not open to the page"):
        desk.check_paths(config)


@pytest.mark.parametrize(
    "name",
    [
        "reg_data_dir", "dataset_config", "vae", "network_weights", "base_weights", "resume", "logging_dir",
        "conditioning_data_dir", "validation_data_dir", "output_dir", "sample_prompts",
    ],
)  # fmt: skip
def test_every_path_of_the_settings_obeys_the_desk(
    tiny_host, tmp_path: Path, drawn_dataset: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = PlanningDesk(tiny_host, [drawn_dataset])
    inside = {"train_data_dir": str(drawn_dataset)}
    elsewhere = str(tmp_path / "elsewhere" / "secret.txt")
    with pytest.raises(UserError, match=f"{name} = .*this folder is not open to the page"):
        desk.check_paths(make_config({**inside, name: elsewhere}))
    monkeypatch.chdir(drawn_dataset)  # of which a path in quotes would be a part, if they were no quotes
    with pytest.raises(UserError, match=f"{name} = .*this folder is not open to the page"):
        desk.check_paths(make_config({**inside, name: f'"{elsewhere}"'}))
    if name != "dataset_config":  # that one is read at once
        desk.check_paths(make_config({**inside, name: str(drawn_dataset / "secret.txt")}))


def test_networks_and_states_may_be_named_without_a_path(tiny_host, drawn_dataset: Path) -> None:
    named = {"network_weights": "mine", "base_weights": "one\ntwo", "resume": "mine-000002-state"}
    PlanningDesk(tiny_host, [drawn_dataset]).check_paths(make_config({"train_data_dir": str(drawn_dataset), **named}))
