"""Form fields from the declarations: every setting once, values there and back, errors in words."""

from __future__ import annotations

import gradio as gr
import pytest

from lora_ext.config.train_config import TrainConfig, all_settings, flat_values, make_config
from lora_ext.protocols import ConfigError
from lora_ext.ui.forms import FOLDER_FIELD, MAIN_FIELDS, SettingsForm, folded_fields, make_field, short_number


@pytest.fixture(scope="module")
def form() -> SettingsForm:
    with gr.Blocks(analytics_enabled=False):
        return SettingsForm({name: make_field(declared, {}) for name, declared in all_settings().items()})


def test_simple_and_folded_fields_make_up_all_settings() -> None:
    shown = (FOLDER_FIELD, *MAIN_FIELDS)
    folded = [name for names in folded_fields(shown).values() for name in names]
    assert sorted([*shown, *folded]) == sorted(all_settings())


def test_a_field_says_what_its_declaration_says(form: SettingsForm) -> None:
    field = form.fields["min_bucket_reso"]
    declared = all_settings()["min_bucket_reso"]
    assert field.label == f"{declared.label} (px)"
    assert field.info == f"{declared.help} [min_bucket_reso]"
    assert field.elem_id == "lw-min_bucket_reso"
    assert form.fields["lr_scheduler"].choices == list(all_settings()["lr_scheduler"].choices or ())


def test_a_text_of_several_lines_has_a_field_of_several(form: SettingsForm) -> None:
    assert (form.fields["sample_prompts"].lines, form.fields["output_name"].lines) == (4, 1)
    assert form.fields["sample_prompts"].max_lines > 4 and form.fields["output_name"].max_lines == 1


def test_defaults_in_the_fields_are_the_default_configuration(form: SettingsForm) -> None:
    assert form.config([field.value for field in form.inputs]) == TrainConfig()


def test_a_configuration_comes_back_out_of_its_fields(form: SettingsForm) -> None:
    changed = {
        "unet_lr": 3e-4, "learning_rate": 0.00012345, "max_train_epochs": None, "shuffle_caption": True,
        "training_comment": "<b>ä", "min_snr_gamma": None, "max_token_length": 75, "network_alpha": 0.5,
    }  # fmt: skip
    config = make_config({**changed, "sample_prompts": "a cat --s 5\na dog"})
    shown = [update["value"] for update in form.updates(config)]
    assert form.config(shown) == config


def test_all_problems_are_named_together(form: SettingsForm) -> None:
    values = {**{name: field.value for name, field in form.fields.items()}, "network_dim": "many", "seed": "-1"}
    with pytest.raises(ConfigError) as caught:
        form.config(list(values.values()))
    assert [problem.split(" = ")[0] for problem in caught.value.problems] == ["network_dim", "seed"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (16.0, "16"), (0.5, "0.5"), (3e-5, "3e-5"), (0.00012345, "1.2345e-4"), (0.0, "0"), (0.01, "0.01")],
)
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert short_number(value) == text
    assert float(text) == value


def test_declared_defaults_survive_their_shown_text() -> None:
    for name, value in flat_values(TrainConfig()).items():
        if isinstance(value, float):
            assert float(short_number(value)) == value, name
