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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
START_ARGUMENTS = [
    *("--skip-prepare-environment", "--skip-torch-cuda-test", "--no-half", "--use-cpu", "all"),
    *("--no-download-sd-model", "--do-not-download-clip", "--api", "--skip-version-check"),
]
SECONDS_TO_START = 300
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

    def __init__(self, folder: Path, url: str, log: Path | None = None) -> None:
        self.folder, self.url, self._log = folder, url, log
        self.password: str | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def python(self) -> str:
        """Its interpreter."""
        return _python(self.folder)

    @property
    def mark(self) -> Path:
        """A file that the probe extension writes anew whenever the WebUI may be asked."""
        return self.folder / f"lw-probe-started-{urlsplit(self.url).port}"

    def log(self) -> str:
        """What it has printed so far; empty for one that others have started."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log is not None else ""

    @property
    def networks(self) -> Path:
        """Its folder of network files."""
        return self.folder / "models" / "Lora"

    def call(self, route: str, data: Any = None, timeout: float = 600) -> Any:
        """GET, or POST where there is data; returns what the JSON says. Raises RuntimeError with the WebUI's error.

        `password` ("name:password") goes along where it is set.
        """
        body = None if data is None else json.dumps(data).encode("utf-8")
        request = urllib.request.Request(self.url + route, body, {"Content-Type": "application/json"})
        if self.password is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(self.password.encode()).decode()}")
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

    def reload_ui(self, seconds: float = 300) -> None:
        """What the button "Reload UI" does, and wait for the new one."""
        before = self.mark.read_text(encoding="utf-8")
        self.call("/lw-probe/reload", {})
        deadline = time.monotonic() + seconds
        while self.mark.read_text(encoding="utf-8") in (before, ""):
            assert time.monotonic() < deadline, "the WebUI did not come back"
            time.sleep(0.2)


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
    with _extensions_linked(folder), _running(folder, log, START_ARGUMENTS) as started:
        yield started


@pytest.fixture(scope="module")
def another_webui(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[WebUI]]:
    """Starts a WebUI that differs from the usual one: another_webui("--nowebui", settings={…}, api=False)."""

    @contextmanager
    def start(*arguments: str, settings: Mapping[str, Any] | None = None, api: bool = True) -> Iterator[WebUI]:
        folder = Path(os.environ["WEBUI_DIR"]).resolve()
        place = tmp_path_factory.mktemp("webui")
        usual = [each for each in START_ARGUMENTS if api or each != "--api"]
        if settings is not None:
            (place / "config.json").write_text(json.dumps(settings), encoding="utf-8")
            usual += ["--ui-settings-file", str(place / "config.json")]
        with _extensions_linked(folder), _running(folder, place / "log.txt", [*usual, *arguments]) as started:
            yield started

    return start


@contextmanager
def _running(folder: Path, log: Path, arguments: Sequence[str]) -> Iterator[WebUI]:
    """A WebUI of its own on a free port, started with `arguments`."""
    port = _free_port()
    webui = WebUI(folder, f"http://127.0.0.1:{port}", log)
    webui.mark.unlink(missing_ok=True)
    command = [_python(folder), "launch.py", *arguments, "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
    webui.process = process
    try:
        _wait(webui, port, process)
        yield webui
    finally:
        process.terminate()
        process.wait(timeout=60)
        webui.mark.unlink(missing_ok=True)


def _wait(webui: WebUI, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait without asking: a WebUI's start fails on a request that comes before it has added its API."""
    deadline = time.monotonic() + SECONDS_TO_START
    while not (webui.mark.is_file() and _listens(port)):
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError(f"the WebUI did not start:\n{webui.log()[-4000:]}")
        time.sleep(0.2)


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the pages of a module's tests."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


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


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small pictures with captions to train on."""
    from runs import draw_dataset

    return draw_dataset(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def no_files_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test the WebUI has no files of the test module's network, its `NAME`."""
    yield
    for file in Path(os.environ["WEBUI_DIR"], "models", "Lora").glob(f"{request.module.NAME}*"):
        file.unlink()
