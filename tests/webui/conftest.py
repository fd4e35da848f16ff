"""A real WebUI for the tests: started once, with this extension linked in, and spoken to through its API.

`WEBUI_DIR` is its folder, `WEBUI_PYTHON` its interpreter where that is not in a venv in it or beside it. `WEBUI_URL`
is one that runs already on that folder.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
START_ARGUMENTS = [
    *("--skip-prepare-environment", "--skip-torch-cuda-test", "--no-half", "--use-cpu", "all"),
    *("--no-download-sd-model", "--do-not-download-clip", "--api", "--skip-version-check"),
]
SECONDS_TO_START = 300
STARTED = "lw-probe-started"
PROBE = Path(__file__).resolve().parent / "probe_extension"

if str(PROBE.parent) not in sys.path:
    sys.path.insert(0, str(PROBE.parent))  # modules that these tests share


@dataclass(frozen=True)
class Answer:
    """What txt2img or img2img gave: pictures (height, width, 3) uint8, and the infotext of each."""

    pictures: list[np.ndarray]
    infotexts: list[str]
    seconds: float
    info: dict[str, Any] = field(default_factory=dict)


class WebUI:
    """A WebUI that runs."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url

    @property
    def networks(self) -> Path:
        """Its folder of network files."""
        return self.folder / "models" / "Lora"

    def call(self, route: str, data: Any = None, timeout: float = 600) -> Any:
        """GET, or POST where there is data; returns what the JSON says. Raises RuntimeError with the WebUI's error."""
        body = None if data is None else json.dumps(data).encode("utf-8")
        request = urllib.request.Request(self.url + route, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{route}: {error.code} {error.read().decode('utf-8', 'replace')}") from error

    def generate(self, prompt: str, route: str = "/sdapi/v1/txt2img", **fields: Any) -> Answer:
        """Render a small picture with a fixed seed; `fields` are those of the route."""
        usual = {"seed": 7, "steps": 4, "width": 128, "height": 128, "cfg_scale": 5.0, "sampler_name": "Euler"}
        started = time.perf_counter()
        given = self.call(route, {**usual, "prompt": prompt, **fields})
        seconds = time.perf_counter() - started
        opened = [Image.open(io.BytesIO(base64.b64decode(each))) for each in given["images"]]
        info = json.loads(given["info"])
        pictures = [np.asarray(each.convert("RGB")) for each in opened]
        return Answer(pictures, info["infotexts"], seconds, info)

    def set_options(self, **options: Any) -> None:
        """Change settings."""
        self.call("/sdapi/v1/options", options)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _python(folder: Path) -> str:
    given = os.environ.get("WEBUI_PYTHON")
    places = [folder / "venv", folder.parent / "venv"]
    found = [path for place in places for path in (place / "bin" / "python", place / "Scripts" / "python.exe")]
    return given or str(next((path for path in found if path.exists()), "python"))


@contextmanager
def _extensions_linked(folder: Path) -> Iterator[None]:
    """This extension and the tests' probe among the WebUI's extensions; what was not there before goes away again."""
    wanted = {"lora-workshop": ROOT, "lora-workshop-probe": PROBE}
    links = {folder / "extensions" / name: target for name, target in wanted.items()}
    made = [link for link in links if not link.exists()]
    for link in made:
        os.symlink(links[link], link, target_is_directory=True)
    try:
        yield
    finally:
        for link in made:
            link.unlink()


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """The WebUI of WEBUI_DIR, started for this session and stopped after it."""
    folder = Path(os.environ["WEBUI_DIR"]).resolve()
    if os.environ.get("WEBUI_URL"):
        yield WebUI(folder, os.environ["WEBUI_URL"].rstrip("/"))
        return
    log = tmp_path_factory.mktemp("webui") / "log.txt"
    with _extensions_linked(folder), _running(folder, log) as started:
        yield started


@contextmanager
def _running(folder: Path, log: Path, *arguments: str) -> Iterator[WebUI]:
    """A WebUI of its own on a free port, with further `arguments`."""
    port = _free_port()
    (folder / STARTED).unlink(missing_ok=True)
    command = [_python(folder), "launch.py", *START_ARGUMENTS, "--port", str(port), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        started = WebUI(folder, f"http://127.0.0.1:{port}")
        _wait(started, process, log)
        yield started
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait(webui: WebUI, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait without asking until the probe says that the API is there: the WebUI fails on requests that come earlier."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, RuntimeError, KeyError):
            if (webui.folder / STARTED).exists() and webui.call("/sdapi/v1/options")["sd_model_checkpoint"]:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the WebUI did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")


@pytest.fixture
def networks(webui: WebUI) -> Iterator[Path]:
    """A folder of its own among the WebUI's networks, removed after the test."""
    folder = webui.networks / "of-the-tests"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def other_checkpoint(webui: WebUI) -> Iterator[str]:
    """The title of a second checkpoint with a YAML of its own, so that the WebUI makes a new model for each."""
    from runs import OTHER
    from safetensors.numpy import load_file, save_file

    title = webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    known = {each["title"]: each["filename"] for each in webui.call("/sdapi/v1/sd-models")}
    own = Path(known[title])
    files = [own.with_name(f"{OTHER}{suffix}") for suffix in (".safetensors", ".yaml")]
    weights = {name: value * np.float32(0.97).astype(value.dtype) for name, value in load_file(own).items()}
    save_file(weights, files[0])
    shutil.copyfile(own.with_suffix(".yaml"), files[1])
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    yield next(each["title"] for each in webui.call("/sdapi/v1/sd-models") if each["model_name"] == OTHER)
    webui.set_options(sd_model_checkpoint=title)
    for file in files:
        file.unlink()
    webui.call("/sdapi/v1/refresh-checkpoints", {})
