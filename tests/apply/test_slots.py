"""The slot panel's contents: what the API takes, what tags it stands for, and the way through an infotext."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_ext.apply.slots import Slot, SlotPanel, panel_infotext, panel_of_infotext, parse_panel
from lora_ext.apply.tags import LoraTag
from lora_ext.protocols import UserError

CAT = {"network": "cat", "unet": 0.8, "te": 0.6}


@pytest.mark.parametrize("value", [None, "", "  ", "{}", {}, {"enabled": False}, {"slots": []}])
def test_nothing_is_a_closed_panel(value: Any) -> None:
    assert parse_panel(value) == SlotPanel()
    assert parse_panel(value).tags() == []


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ({"slots": [CAT]}, [LoraTag("cat", 0.6, 0.8)]),
        (json.dumps({"enabled": True, "separate": True, "slots": [CAT]}), [LoraTag("cat", 0.6, 0.8)]),
        ({"enabled": False, "slots": [CAT]}, []),
        ({"slots": [{"network": "cat"}]}, [LoraTag("cat", 1.0)]),
        ({"slots": [{"network": "cat", "weight": -0.5}]}, [LoraTag("cat", -0.5)]),
        ({"slots": [{"network": "cat", "weight": "0.5", "te": 0}]}, [LoraTag("cat", 0.0, 0.5)]),
        ({"slots": [{}, {"network": "None"}, {"network": " b "}]}, [LoraTag("b", 1.0)]),
        ({"slots": [{"network": "cat", "weight": 0}, {"network": "a", "unet": 0}]}, [LoraTag("a", 1.0, 0.0)]),
        ({"slots": [{"network": "cat"}] * 2}, [LoraTag("cat"), LoraTag("cat")]),
    ],
)
def test_slots_as_tags(value: Any, tags: list[LoraTag]) -> None:
    assert parse_panel(value).tags() == tags


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "the slot panel's text is no JSON"),
        ([1], r"the slot panel = \[1\]: give an object"),
        ("[1]", r"the slot panel = \[1\]: give an object"),
        ({"slot": []}, "the panel has no slot; there are enabled, slots, mask"),
        ("[" * 100_000, "the slot panel's text is no JSON"),
        ({"slots": [{"network": "cat", "unet": 10**400}]}, r"slot 1: unet = '1000+' is no number"),
        ({"enabled": "yes"}, "enabled = 'yes': allowed are true and false"),
        ({"slots": [{}] * 6}, "allowed is a list of at most 5 slots"),
        ({"slots": ["cat"]}, "slot 1 = 'cat': give an object"),
        ({"slots": [{}, {"name": "cat"}]}, "slot 2 has no name; there are network, weight, unet, te, region"),
        ({"slots": [{"network": "cat", "region": "red"}]}, "slot 1: region = 'red': allowed are R, G, B, and none"),
        ({"slots": [{"network": "cat", "region": "R"}]}, "region R: there is no mask; give a picture"),
        ({"mask": "!!", "slots": []}, "the mask is no picture that can be read"),
        ({"mask": "AAAA", "slots": []}, "the mask is no picture that can be read"),
        ({"mask": 3, "slots": []}, "the mask is no text of at most"),
        ({"slots": [{"network": 3}]}, "slot 1: network = 3"),
        ({"slots": [{"network": "cat", "unet": "much"}]}, "slot 1: unet = 'much' is no number"),
        ({"slots": [{"network": "cat", "te": True}]}, "slot 1: te = True is no number"),
        ({"slots": [{"network": "cat", "weight": "inf"}]}, "slot 1: unet = 'inf' is no number"),
    ],
)
def test_wrong_values_are_named(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_panel(value)


def mask(*pixels: tuple[int, int, int]) -> str:
    """A picture of one line as base64."""
    picture, stream = Image.new("RGB", (len(pixels), 1)), io.BytesIO()
    picture.putdata(pixels)
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_regions_are_the_masks_channels(start: str) -> None:
    given = [{"network": name, "region": region} for name, region in (("a", "R"), ("b", "G"), ("c", "B"), ("d", ""))]
    panel = parse_panel({"slots": given, "mask": start + mask((255, 0, 0), (51, 255, 0))})
    regions = {tag.name: tag.region and tag.region.values.tolist() for tag in panel.tags()}
    assert regions == {"a": [[1.0, pytest.approx(0.2)]], "b": [[0.0, 1.0]], "c": None, "d": None}
    told = panel_infotext(panel, lambda name: "")
    assert {key: value for key, value in told.items() if "Region" in key} == {
        "AddNet Region 1": "R", "AddNet Region 2": "G",
    }  # fmt: skip
    pasted = panel_of_infotext(told, lambda name, _: name)
    assert pasted["told_regions"] == ["R", "G", "", "", ""] and parse_panel(pasted).masks == {}


def test_a_network_of_the_text_encoder_alone_has_no_region() -> None:
    (tag,) = parse_panel({"slots": [{"network": "a", "unet": 0, "region": "R"}], "mask": mask((255, 0, 0))}).tags()
    assert tag == LoraTag("a", 1.0, 0.0)


def test_a_cell_of_a_plot_enables_the_panel() -> None:
    panel = parse_panel({"enabled": False, "slots": [{"network": "cat", "weight": 0.5}]})
    assert panel.with_slot(2, network="dog").tags() == [LoraTag("cat", 0.5), LoraTag("dog", 1.0)]
    assert panel.with_slot(1, te=0.0).tags() == [LoraTag("cat", 0.0, 0.5)]


def test_the_infotext_is_in_additional_networks_words() -> None:
    panel = parse_panel({"slots": [{"network": "cat", "weight": 0.8}, {}, {"network": "a dog", "unet": 1, "te": 0.25}]})
    assert panel_infotext(panel, {"cat": "0123456789abcdef", "a dog": ""}.__getitem__) == {
        "AddNet Enabled": "True", "AddNet Separate Weights": "True",
        "AddNet Model 1": "cat(0123456789ab)", "AddNet Weight A 1": "0.8", "AddNet Weight B 1": "0.8",
        "AddNet Model 3": "a dog", "AddNet Weight A 3": "1", "AddNet Weight B 3": "0.25",
    }  # fmt: skip
    assert panel_infotext(parse_panel({"enabled": False, "slots": [CAT]}), str) == {}


def test_an_infotext_of_additional_networks_fills_the_panel() -> None:
    params = {
        "Prompt": "a cat", "AddNet Enabled": "True", "AddNet Module 1": "LoRA",
        "AddNet Model 1": "old cat(0123abcd4567)", "AddNet Weight A 1": "0.8", "AddNet Weight B 1": "0.8",
        "AddNet Model 2": "None", "AddNet Weight 2": "0.3", "AddNet Model 4": "dog (new)", "AddNet Weight 4": "0.5",
    }  # fmt: skip
    filled = panel_of_infotext(params, lambda name, digits: {"0123abcd4567": "cat"}.get(digits, name))
    assert filled["enabled"] and not filled["separate"]
    assert parse_panel(filled).tags() == [LoraTag("cat", 0.8), LoraTag("dog (new)", 0.5)]


@pytest.mark.parametrize("written", ["much", "", "nan", "inf"])
def test_a_weight_in_an_infotext_that_is_no_number_is_1(written: str) -> None:
    params = {"AddNet Enabled": "True", "AddNet Model 1": "cat", "AddNet Weight A 1": written, "AddNet Weight 1": "0.5"}
    filled = panel_of_infotext(params, lambda name, _: name)
    assert parse_panel(json.dumps(filled, allow_nan=False)).tags() == [LoraTag("cat", 0.5, 1.0)]


def test_an_infotext_without_the_panel_closes_it_and_keeps_its_slots() -> None:
    assert panel_of_infotext({"Prompt": "a cat"}, lambda name, _: name) == {"enabled": False}


weights = st.floats(-3, 3).map(lambda number: round(number, 3))
slots = st.builds(Slot, st.sampled_from(["", "cat", "a, b: c", "dog (v1.5)"]), weights, weights)


@given(st.lists(slots, min_size=5, max_size=5))
def test_there_and_back_through_an_infotext(given_slots: list[Slot]) -> None:
    panel = SlotPanel(True, tuple(given_slots))
    told = panel_infotext(panel, lambda name: "0123456789ab")
    assert parse_panel(panel_of_infotext(told, lambda name, _: name)).tags() == panel.tags()
