"""Runs inside the WebUI under test: a small text encoder in open_clip's registry, for checkpoints' YAMLs to name."""

from pathlib import Path

import open_clip

open_clip.add_model_config(Path(__file__).resolve().parents[1] / "open_clip")
