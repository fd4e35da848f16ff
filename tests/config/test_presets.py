"""The presets that come along: each fits, says what it is, and does what the guides say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ext.config.presets import Preset, card_for_memory, compose, preset_named, presets
from lora_ext.config.presets.presets import read_preset
from lora_ext.config.train_config import make_config
from lora_ext.protocols import ConfigError, UserError

SUBJECTS = [preset for preset in presets() if preset.kind == "subject"]
CARDS = [preset for preset in presets() if preset.kind == "card"]


def test_what_there_is_and_in_which_order() -> None:
    assert [preset.name for preset in SUBJECTS] == ["character", "style", "concept", "sdxl"]
    assert [preset.name for preset in CARDS] == ["card-6gb", "card-8gb", "card-12gb", "card-24gb"]
    assert all(preset.title and preset.description.endswith(".") for preset in presets())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_every_subject_fits_every_card(subject: Preset, card: Preset) -> None:
    config = make_config(compose([subject, card]))
    assert config.learning.unet_lr == 1e-4
    assert config.network.network_alpha <= config.network.network_dim <= 128
    pictures = config.learning.train_batch_size * config.learning.gradient_accumulation_steps
    if subject.architecture == "SDXL":
        assert pictures == 48 and config.memory.gradient_checkpointing
    else:
        assert pictures <= 8 and config.dataset.resolution == "512"
    assert config.network.network_train_unet_only == (
        card.name == "card-6gb" or (card.name, subject.name) == ("card-8gb", "sdxl")
    )


@pytest.mark.parametrize(
    ("gigabytes", "name"),
    [(2, "card-6gb"), (6, "card-6gb"), (7.8, "card-8gb"), (9.9, "card-8gb"), (11.6, "card-12gb"), (16, "card-12gb"),
     (23.6, "card-24gb"), (80, "card-24gb")],
)  # fmt: skip
def test_the_card_for_a_memory(gigabytes: float, name: str) -> None:
    assert card_for_memory(gigabytes).name == name


def test_old_cards_take_fp16() -> None:
    chosen = [preset_named("character"), preset_named("card-8gb")]
    assert compose(chosen)["mixed_precision"] == "bf16"
    assert compose(chosen, bf16=False)["mixed_precision"] == "fp16"


def test_a_name_that_is_none() -> None:
    with pytest.raises(UserError, match="there is no preset 'charakter': .*; did you mean character?"):
        preset_named("charakter")


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "For my cat."\n[network]\nnetwork_dim = 8\n', encoding="utf-8")
    preset = read_preset(path)
    assert (preset.name, preset.title, preset.kind, preset.values) == ("mine", "mine", "subject", {"network_dim": 8})
    path.write_text("[network]\nnetwork_dim = 0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="network_dim = 0"):
        read_preset(path)
    path.write_text("rank = 8\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="preset mine.toml: rank is none of title, description"):
        read_preset(path)
    path.write_text("rank = ", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as TOML"):
        read_preset(path)
