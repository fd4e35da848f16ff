"""The app as people start it, on a free port with the tiny checkpoint, and Chromium to use it with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "test-results"
API = "/lora-workshop/api"
PATIENCE = int(os.environ.get("BROWSER_PATIENCE_MS", "120000"))  # a shared machine may be slow
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class App:
    """A running app, its dataset, and requests to its routes from outside the browser."""

    url: str
    home: Path
    pictures: Path

    def ask(self, route: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + API + route, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def settings(self, name: str, epochs: int) -> dict[str, Any]:
        return {
            "train_data_dir": str(self.pictures), "output_name": name, "max_train_epochs": epochs, "resolution": "32",
            "min_bucket_reso": 32, "bucket_reso_steps": 32, "network_dim": 2, "train_batch_size": 2,
        }  # fmt: skip

    def wait_until_over(self, run_id: str) -> dict[str, Any]:
        for _ in range(PATIENCE // 200):
            record: dict[str, Any] = self.ask(f"/run/{run_id}")["run"]
            if record["state"] not in ("queued", "running", "paused"):
                return record
            time.sleep(0.2)
        raise AssertionError(f"run {run_id} did not end")


@pytest.fixture(scope="package")
def app(tiny_checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app in a process of its own; at the end it gets a Ctrl-C and has to obey it."""
    home = tmp_path_factory.mktemp("home")
    pictures = tmp_path_factory.mktemp("pictures") / "2_zib"
    pictures.mkdir()
    for index in range(8):
        Image.new("RGB", (48, 32) if index % 3 else (32, 32), (index * 30, 200 - index * 20, 90)).save(
            pictures / f"{index}.png"
        )
        if index:
            (pictures / f"{index}.txt").write_text(f"a zib, number {index}, <b>bold</b>", encoding="utf-8")
    command = [sys.executable, "-m", "lora_ext", "ui", "--checkpoint", str(tiny_checkpoint_path), "--home", str(home)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--no-browser", "--port", "17861"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "LoRA Workshop is at http://127.0.0.1:" in line, line
    yield App(line.split(" at ")[1].split()[0], home, pictures.parent)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.fixture(scope="package")
def trained(app: App) -> str:
    """The name of a network with epochs 1, 2 and 3."""
    run = app.ask("/start", {"settings": app.settings("moon", 3)})
    assert app.wait_until_over(run["id"])["state"] == "finished"
    return "moon"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium as the system has it."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained about, errors and requests to other servers; a test takes out what it expects."""
    return []


@pytest.fixture
def page(app: App, browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """A fresh page on the app; what the browser complains about fails the test."""
    SCREENSHOTS.mkdir(exist_ok=True)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    opened.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on(
        "request",
        lambda request: None if request.url.startswith((app.url, "data:", "blob:")) else complaints.append(request.url),
    )
    open_page(opened, app.url)
    yield opened
    context.close()
    assert complaints == []


def open_page(page: Page, url: str) -> None:
    """Load the page and wait until its script has filled the form."""
    page.goto(url)
    page.wait_for_function("document.querySelector('#lw-run-name')?.textContent.length > 0")
    page.wait_for_load_state("networkidle")
