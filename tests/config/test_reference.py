from __future__ import annotations

from pathlib import Path

from lora_ext.config.reference import settings_page
from lora_ext.config.train_config import all_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run `python run.py docs`"


def test_every_setting_has_its_row() -> None:
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    names = [row.split("`")[1] for row in rows]
    assert set(all_settings()) <= set(names) and all(row.count(" | ") in (2, 4) for row in rows)
    assert "| `network_dim` | `32` | a whole number from 1 to 1024 |" in settings_page()
    assert "| `num_repeats` | `1` |" in settings_page() and settings_page().count("`dataset_repeats`") == 1
