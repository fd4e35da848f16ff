"""What the extension costs in a WebUI that has just been started: its start, an image without a tag, a first step."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runs import draw_dataset, ended, start, wait_for

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = pytest.mark.webui

NAME = "lw-test-figures"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fresh(another_webui: Callable[..., Any]) -> Iterator[WebUI]:
    with another_webui() as started:
        yield started
        for file in started.networks.glob(f"{NAME}*"):
            file.unlink()


def test_the_start_takes_less_than_half_a_second_longer(fresh: WebUI) -> None:
    """install.py with nothing missing, and our line in the WebUI's own list of what its start took.

    Of a start and three of "Reload UI" the fastest: the others show what else the machine does.
    """
    installing, loading = [], []
    for _ in range(4):
        began = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(fresh.folder)}
        subprocess.run([fresh.python, str(ROOT / "install.py")], cwd=ROOT, env=environment, check=True)
        installing.append(time.perf_counter() - began)
        records = fresh.call("/internal/profile-startup")["records"]
        loading.append(sum(seconds for name, seconds in records.items() if "lora_workshop.py" in name))
        if len(loading) == 1:
            assert fresh.call("/lw-probe/loaded") == ["transformers"]  # the WebUI's own; heavy ones wait for a run
        fresh.reload_ui()
    print(
        f"install.py {', '.join(f'{s:.3f}' for s in installing)} s; loading {', '.join(f'{s:.3f}' for s in loading)} s"
    )
    assert min(loading) > 0 and min(installing) + min(loading) < 0.5


def test_the_first_step_comes_at_once(fresh: WebUI, tmp_path: Path) -> None:
    """Nothing is loaded again: from the start to the end of the first step, two seconds more than the step itself."""
    dataset = draw_dataset(tmp_path / "pictures")
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        run = start(fresh, dataset, NAME)
        status = wait_for(fresh, run, lambda status: status["losses"], pause=0.02)
        seconds.append(time.perf_counter() - began)
        record = ended(fresh, run)
        assert record["state"] == "finished", record["error"]
        assert status["record"]["id"] == run
        steps = Path(fresh.folder, "lora-workshop", "runs", run, "steps.csv")
        with open(steps, encoding="utf-8", newline="") as file:
            seconds[-1] -= float(next(csv.DictReader(file))["seconds"])
    print(f"beside the step itself: {', '.join(f'{each:.2f}' for each in seconds)} s")
    assert max(seconds) < 2


def test_an_image_without_a_tag_takes_as_long_as_without_the_extension(fresh: WebUI) -> None:
    """Interleaved in one process, so that what else the machine does hits both; more pairs where 30 are not enough."""
    pairs: list[list[float]] = []
    for _ in range(6):
        pairs += fresh.call("/lw-probe/tags/interleaved", {"times": 30})
        ratio = statistics.median(ours / disabled for ours, disabled in pairs)
        ours, disabled = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{len(pairs)} pairs: ours {ours:.4f} s, disabled {disabled:.4f} s, median of ratios {ratio:.4f}")
        if ratio < 1.01 and ours < 1.01 * disabled:
            return
    raise AssertionError("an image without a tag takes over 1% longer")
