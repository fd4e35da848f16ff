from __future__ import annotations

import io
import json
import math
from pathlib import Path

from PIL import Image

from lora_ext.jobs.console import JsonLinesEvents, TqdmEvents
from lora_ext.jobs.live_status import FanOut
from lora_ext.protocols import EpochReport, Events, GeneratedImage, Sample, SavedNetwork, StepReport


def tell(events: Events) -> None:
    events.message("info", "two pictures")
    events.message("warning", "one is small")
    events.phase("caching latents", 0, 2)
    events.phase("caching latents", 2, 2)
    events.run_started(2, 1)
    events.step(StepReport(1, 2, 1, 1, 0.5, {"unet": 1e-4}, 0.1))
    events.phase("drawing samples", 0, 1)
    events.sampled(Sample(GeneratedImage(Image.new("RGB", (8, 8)), 3, "a cat\nSeed: 3"), "a cat", 0, 1, 1))
    events.phase("drawing samples", 1, 1)
    events.step(StepReport(2, 2, 1, 1, math.nan, {"unet": 1e-4}, 0.1))
    events.epoch(EpochReport(1, 1, 2, 0.5))
    events.saved(SavedNetwork(Path("cat.safetensors"), 1, 2, True))


def test_json_lines_are_json_each_and_hold_no_nan() -> None:
    stream = io.StringIO()
    tell(JsonLinesEvents(stream))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        "message", "message", "phase", "phase", "run_started", "step", "phase", "sampled", "phase", "step", "epoch",
        "saved",
    ]  # fmt: skip
    assert lines[5]["loss"] == 0.5 and lines[9]["loss"] is None and "NaN" not in stream.getvalue()
    assert lines[7] == {
        "event": "sampled", "prompt": "a cat", "prompt_number": 0, "epoch": 1, "step": 1, "seed": 3,
        "infotext": "a cat\nSeed: 3",
    }  # fmt: skip
    assert lines[11] == {"event": "saved", "path": "cat.safetensors", "epoch": 1, "step": 2, "is_last": True}


def test_the_progress_bar_shows_steps_loss_and_messages() -> None:
    stream = io.StringIO()
    tell(TqdmEvents(stream))
    text = stream.getvalue()
    parts = ("two pictures", "warning: one is small", "caching latents", "2/2", "saved cat")
    parts += ("training", "epoch 1/1, loss 0.5000", "drew “a cat” after step 1")
    assert [part for part in parts if part not in text] == []
    assert text.count("training: 100%") == 1  # its bar outlives the samples


def test_the_progress_bar_of_a_run_that_goes_on_begins_where_it_was() -> None:
    stream = io.StringIO()
    events = TqdmEvents(stream)
    events.run_started(12, 2)
    for step in (7, 8):
        events.step(StepReport(step, 12, 2, 2, 0.5, {"unet": 1e-4}, 0.1))
    events.close()
    assert "8/12" in stream.getvalue() and "2/12" not in stream.getvalue()


def test_fan_out_reaches_every_sink() -> None:
    streams = [io.StringIO(), io.StringIO()]
    tell(FanOut([JsonLinesEvents(stream) for stream in streams]))
    assert streams[0].getvalue() == streams[1].getvalue() != ""
