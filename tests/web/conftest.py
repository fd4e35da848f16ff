"""A dataset of drawn pictures, and the routes over a real runner with the tiny checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from PIL import Image

from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import CheckpointInfo, Folders
from lora_ext.web.routes import make_router


@pytest.fixture
def drawn_dataset(tmp_path: Path) -> Path:
    """Four plain pictures, three with captions, in a folder of two repeats."""
    folder = tmp_path / "pictures" / "2_zib"
    folder.mkdir(parents=True)
    for index, colour in enumerate(("red", "green", "blue", "yellow")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
        if index:
            (folder / f"{colour}.txt").write_text(f"a {colour} zib", encoding="utf-8")
    return folder.parent


@dataclass
class Served:
    """The routes, a client that knows the password, and what is behind them."""

    client: TestClient
    stranger: TestClient
    runner: JobRunner
    host: StandaloneHost
    settings: dict[str, object]


@pytest.fixture
def served(tiny_host: StandaloneHost, drawn_dataset: Path) -> Iterator[Served]:
    """Routes that ask for a password; runs that go on at the end are stopped."""

    def authenticate(request: Request) -> None:
        if request.headers.get("authorization") != "secret":
            raise HTTPException(status_code=401, detail="who are you?")

    runner = JobRunner(tiny_host, RunRegistry(tiny_host.folders().runs))
    app = FastAPI()
    app.include_router(make_router(runner, tiny_host, authenticate))
    settings: dict[str, object] = {
        "train_data_dir": str(drawn_dataset), "resolution": "32", "min_bucket_reso": 32, "bucket_reso_steps": 32,
        "output_name": "zib", "network_dim": 2, "max_train_epochs": 2, "train_batch_size": 2,
    }  # fmt: skip
    yield Served(TestClient(app, headers={"authorization": "secret"}), TestClient(app), runner, tiny_host, settings)
    runner.close()


class ShelfHost:
    """A host with folders and a name, enough for everything that is not training."""

    name = "shelf"

    def __init__(self, home: Path) -> None:
        self.home = home

    def checkpoint_info(self) -> CheckpointInfo:
        return CheckpointInfo("model", "SD1", "epsilon", "cpu", "float32", "baked", 1.25, 8.0)

    def samplers(self) -> list[str]:
        return ["Euler a"]

    def folders(self) -> Folders:
        return Folders((self.home / "Lora",), self.home / "runs", self.home / "images")


@pytest.fixture
def shelf(tmp_path: Path) -> JobRunner:
    return JobRunner(ShelfHost(tmp_path), RunRegistry(tmp_path / "runs"))


@pytest.fixture
def shelf_client(shelf: JobRunner) -> TestClient:
    app = FastAPI()
    app.include_router(make_router(shelf, shelf.host, lambda request: None))
    return TestClient(app)
