"""The form from the declarations: every setting once, what its field says and holds, and what a page of it can show."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from lora_ext.config.train_config import TrainConfig, all_settings, flat_values, make_config
from lora_ext.ui.form_layout import FOLDER_FIELD, MAIN_FIELDS, SECTIONS, TRIGGER_FIELD, grouped_fields
from lora_ext.ui.forms import field
from lora_ext.ui.train_page import train_page
from lora_ext.web.form_values import shown_value, shown_values

HOSTILE = '"><script>alert(1)</script>'


class Fields(HTMLParser):
    """The values that a browser finds in the fields of a page, and its identifiers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.values: dict[str, object] = {}
        self.identifiers: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.identifiers += [given["id"] or ""] if "id" in given else []
        if tag in ("input", "select", "textarea") and given.get("name"):
            self._open = given["name"] or ""
            assert self._open not in self.values, f"{self._open} stands twice on the page"
            self.values[self._open] = "checked" in given if given.get("type") == "checkbox" else given.get("value", "")
        elif tag == "select":
            self._open = ""  # suggestions beside a field
        elif tag == "option" and "selected" in given and self._open:
            self.values[self._open] = given["value"]

    def handle_data(self, data: str) -> None:
        if self._open and self.lasttag == "textarea":
            self.values[self._open] = data


def test_every_setting_has_one_field_with_its_default() -> None:
    found = Fields(train_page({}, "webui", "")).values
    assert sorted(found) == sorted(all_settings())
    assert make_config(found) == TrainConfig()


def test_other_defaults_stand_in_the_fields() -> None:
    changed = {
        "unet_lr": 3e-4, "learning_rate": 0.00012345, "max_train_epochs": None, "shuffle_caption": True,
        "training_comment": f"{HOSTILE}ä", "min_snr_gamma": None, "max_token_length": 75, "network_alpha": 0.5,
        "optimizer_type": "my.Optimizer", "lr_scheduler": "rex", "sample_prompts": "a cat --s 5\na dog",
    }  # fmt: skip
    config = make_config(changed)
    page = train_page(flat_values(config), "webui", "")
    assert make_config(Fields(page).values) == config
    assert "<script>" not in page


def test_identifiers_are_ours_and_stand_once() -> None:
    identifiers = Fields(train_page({}, "webui", "")).identifiers
    assert len(identifiers) == len(set(identifiers))
    assert all(each.startswith("lw-") for each in identifiers)
    assert {"lw-start", "lw-look", "lw-plan", "lw-report", "lw-network_dim", "lw-search", "lw-live"} <= set(identifiers)


def test_headings_name_settings_that_exist_and_leave_none_out() -> None:
    known = all_settings()
    listed = [name for sections in SECTIONS.values() for names in sections.values() for name in names]
    assert len(listed) == len(set(listed))
    assert not {FOLDER_FIELD, TRIGGER_FIELD, *MAIN_FIELDS} & set(listed)
    for group, sections in SECTIONS.items():
        for name in (name for names in sections.values() for name in names):
            assert name in known and known[name].group == group, name
    assert not [group for group, sections in grouped_fields().items() if "More" in sections]


def test_a_field_says_what_its_declaration_says() -> None:
    shown = field("num_repeats", {})
    declared = all_settings()["num_repeats"]
    assert f">{declared.label}</label>" in shown and declared.help in shown
    assert "<code>num_repeats</code> <code>sd-scripts: dataset_repeats</code>" in shown
    assert 'data-words="repeats how often' in shown and 'data-default="1"' in shown
    assert "(px)</label>" in field("min_bucket_reso", {})
    assert "sd-scripts" not in field("train_batch_size", {})


def test_kinds_of_fields() -> None:
    assert '<textarea id="lw-field-sample_prompts"' in field("sample_prompts", {}) and "lw-wide" in field(
        "sample_prompts", {}
    )
    assert re.findall(r'<option[^>]* value="(\w+)"', field("max_token_length", {})) == ["75", "150", "225"]
    offered = field("lr_scheduler", {"lr_scheduler": "my.Schedule"})
    assert 'value="my.Schedule"' in offered and '<option value="rex">rex</option>' in offered
    assert 'placeholder="none"' in field("unet_lr", {})
    assert 'type="checkbox"' in field("shuffle_caption", {}) and " checked" not in field("shuffle_caption", {})


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("learning_rate", 1e-4, "1e-4"), ("learning_rate", 3e-5, "3e-5"), ("learning_rate", 0.00012345, "1.2345e-4"),
        ("network_alpha", 16.0, "16"), ("network_alpha", 0.5, "0.5"), ("noise_offset", 0.0, "0"),
        ("noise_offset", 0.01, "0.01"), ("unet_lr", None, ""), ("seed", 7, "7"), ("flip_aug", "true", True),
        ("flip_aug", False, False), ("learning_rate", "1e-3", "1e-3"),
    ],
)  # fmt: skip
def test_values_as_people_write_them(name: str, given: object, shown: object) -> None:
    assert shown_value(all_settings()[name], given) == shown


def test_declared_defaults_survive_their_shown_text() -> None:
    assert make_config(shown_values(TrainConfig())) == TrainConfig()
