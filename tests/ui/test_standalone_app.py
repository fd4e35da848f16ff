"""The standalone app without a browser: its page and routes, who is answered, ports, and requests from fields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import GenerateRequest, UserError
from lora_ext.ui.generate_panel import gallery_html
from lora_ext.ui.page import SCRIPTS
from lora_ext.ui.sampling_fields import SamplingFields
from lora_ext.ui.standalone import listen, make_app

ROOT = Path(__file__).resolve().parents[2]
HOME = "http://127.0.0.1:7861"


@pytest.fixture
def client(tiny_host: StandaloneHost) -> TestClient:
    return TestClient(make_app(tiny_host, JobRunner(tiny_host, RunRegistry(tiny_host.folders().runs))), base_url=HOME)


def test_page_and_routes(client: TestClient) -> None:
    page = client.get("/").text
    addresses = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert not [address for address in addresses if address.startswith(("http:", "https:", "//"))]
    scripts = sorted(path.name for path in (ROOT / "javascript").glob("*.js"))
    assert scripts == list(SCRIPTS)
    own = [f"lora-workshop/{name}" for name in ("style.css", *scripts)]
    assert [address for address in re.findall(r'(?:src|href)="(lora-workshop/[^"]+)"', page)] == own
    assert set(own) <= addresses
    for address in own:
        assert client.get(f"/{address}").status_code == 200
    config = client.get("/config").text
    assert 'data-program=\\"standalone\\"' in config
    assert client.get("/lora-workshop/..%2Frun.py").status_code == 404
    assert client.get("/lora-workshop/api/status").json()["checkpoint"]["line"].startswith("tiny-sd1 · SD1 · ε-pred")
    assert client.get("/lora-workshop/api/status", headers={"host": "evil.example:7861"}).status_code == 403
    assert client.get("/lora-workshop/api/status", headers={"host": "localhost:7861"}).status_code == 200


def test_only_the_own_page_talks_to_it(client: TestClient) -> None:
    elsewhere = {"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}
    assert client.post("/run/predict", json={"fn_index": 0, "data": []}, headers=elsewhere).status_code == 403
    assert client.get("/config", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/config").status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status_code == 200
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/queue/join", headers=elsewhere):
        raise AssertionError("another site was let in")


def test_a_taken_port_gives_the_next_one() -> None:
    with listen(0) as first:
        port = first.getsockname()[1]
        with listen(port) as second:
            assert port < second.getsockname()[1] < port + 20
            assert second.getsockname()[0] == "127.0.0.1"


def test_a_request_from_fields() -> None:
    names = ("prompt", "negative_prompt", "width", "height", "steps", "cfg_scale", "seed", "sampler")
    fields = SamplingFields(dict.fromkeys(names))
    values = ["a star", "", 64, 96.0, 20, 7.5, -1, "Euler"]
    expected = GenerateRequest("a star", width=64, height=96, steps=20, cfg_scale=7.5, sampler="Euler")
    assert fields.request(values) == expected
    for position, name in ((4, "steps"), (5, "cfg_scale"), (6, "seed")):
        with pytest.raises(UserError, match=f"{name} is empty"):
            fields.request([*values[:position], None, *values[position + 1 :]])


def test_foreign_text_in_a_gallery_is_text(tiny_host: StandaloneHost, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    images = tiny_host.generate(GenerateRequest(f"{hostile} <lora:a&b:1>", width=64, height=64, steps=1, seed=3))
    shown = gallery_html(images, [tiny_host.save_image(image) for image in images])
    assert hostile not in shown
    assert "&lt;script&gt;" in shown
    assert "a&amp;b" in shown
    assert 'data-count="1"' in shown
