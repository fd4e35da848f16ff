"""The WebUI ends while a training goes on: stopped in order, or by Ctrl-C."""

from __future__ import annotations

import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import draw_dataset, start, wait_for
from safetensors.numpy import load_file

from lora_ext.jobs.registry import RunRegistry

pytestmark = [pytest.mark.webui, pytest.mark.usefixtures("no_files_left")]

NAME = "lw-test-endings"
MANY = {"max_train_epochs": 400, "save_every_n_epochs": 1, "save_last_n_epochs": 3}


def wait_until_gone(webui: Any, seconds: float = 60) -> None:
    """Until its process is over: its lock on the run is free then, which the registry looks at."""
    deadline = time.monotonic() + seconds
    while webui.process.poll() is None:
        assert time.monotonic() < deadline, "the WebUI did not end"
        time.sleep(0.2)


@pytest.mark.parametrize("ending", ["server-stop", "Ctrl-C"])
def test_what_is_trained_is_kept(ending: str, another_webui: Callable[..., Any], tmp_path: Path) -> None:
    with another_webui("--api-server-stop") as webui:
        run = start(webui, draw_dataset(tmp_path / "pictures"), NAME, **MANY)
        wait_for(webui, run, lambda status: status["record"]["epochs"] >= 2)
        if ending == "server-stop":
            urllib.request.urlopen(f"{webui.url}/sdapi/v1/server-stop", b"").close()
        else:
            webui.process.send_signal(signal.SIGINT)
        wait_until_gone(webui)
    record = RunRegistry(webui.folder / "lora-workshop" / "runs").record(run)
    assert record.state == ("stopped" if ending == "server-stop" else "crashed")
    written = sorted(webui.networks.glob(f"{NAME}*.safetensors"))
    assert (webui.networks / f"{NAME}.safetensors" in written) is (ending == "server-stop")
    assert written and all(load_file(file) for file in written)
