"""Fixtures that several folders of tests share, one torch thread for all of them, and skips that say why."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from lora_ext.host.standalone.host import StandaloneHost

TESTS = Path(__file__).resolve().parent
for folder in (TESTS.parent, TESTS / "host", TESTS / "webui"):  # the package, and modules that tests share
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

torch.set_num_threads(1)  # figures do not depend on the machine, and small tensors are faster

_SKIPPED = pytest.StashKey[dict[str, int]]()
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def _missing(marker: str) -> str | None:
    """Why tests of `marker` cannot run here; None if they can."""
    if marker in ("webui", "webui_full") and not os.environ.get("WEBUI_DIR"):
        return "WEBUI_DIR is not set: no WebUI to run against"
    if marker == "browser" and not any(shutil.which(name) for name in CHROMIUM_NAMES):
        return f"none of {', '.join(CHROMIUM_NAMES)} is installed"
    if marker == "gpu" and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine lacks the means for; the reasons stand in the closing lines."""
    skipped: dict[str, int] = {}
    for item in items:
        for marker in ("webui", "webui_full", "browser", "gpu"):
            reason = _missing(marker) if item.get_closest_marker(marker) else None
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))
                skipped[f"{marker}: {reason}"] = skipped.get(f"{marker}: {reason}", 0) + 1
    config.stash[_SKIPPED] = skipped
    if hasattr(config, "workeroutput"):
        config.workeroutput["skipped"] = skipped  # of several processes each collects all tests


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over from one of several processes what it has left out."""
    node.config.stash[_SKIPPED] = getattr(node, "workeroutput", {}).get("skipped", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say aloud what was left out."""
    for reason, count in config.stash.get(_SKIPPED, {}).items():
        terminalreporter.write_line(f"NOT RUN: {count} tests for {reason}", yellow=True, bold=True)


@pytest.fixture(scope="session")
def tiny_checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights with all of SD1's block structure that runs in milliseconds; read only."""
    from lora_ext.host.standalone.random_checkpoint import write_random_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "tiny-sd1.safetensors"
    write_random_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def tiny_kind_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives tiny checkpoints of random weights, with YAML: sd1, sd1-inpainting, sd2, sd2-v, sdxl; read only."""
    from lora_ext.host.standalone.random_checkpoint import TINY_KINDS, write_random_kind

    folder = tmp_path_factory.mktemp("kinds")

    def path_of(name: str) -> Path:
        path: Path = folder / f"tiny-{name}.safetensors"
        if not path.is_file():
            write_random_kind(path, TINY_KINDS[name])
        return path

    return path_of


@pytest.fixture
def tiny_host(tiny_checkpoint_path: Path, tmp_path: Path) -> Iterator[StandaloneHost]:
    """A standalone host with the tiny checkpoint, fp32 on the CPU, and a fresh home."""
    from lora_ext.host.standalone.host import StandaloneHost

    yield StandaloneHost(tiny_checkpoint_path, tmp_path / "home", device="cpu", dtype="float32")
