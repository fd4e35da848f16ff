"""Values from files, shells and forms against what a setting allows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ext.config.fields import Setting, parse_value, unknown_setting
from lora_ext.config.train_config import all_settings


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("network_dim", 8, 8),
        ("network_dim", "8", 8),
        ("network_dim", 8.0, 8),
        ("network_dim", "1e2", 100),
        ("seed", "4294967295", 4294967295),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 1, 1.0),
        ("unet_lr", "none", None),
        ("unet_lr", "", None),
        ("unet_lr", None, None),
        ("unet_lr", "0.5", 0.5),
        ("enable_bucket", "off", False),
        ("enable_bucket", "Yes", True),
        ("enable_bucket", 1, True),
        ("enable_bucket", False, False),
        ("max_token_length", "150", 150),
        ("caption_extension", ".txt", ".txt"),
        ("resolution", 512, "512"),
        ("output_name", "none", "none"),
        ("training_comment", "", ""),
    ],
)
def test_values(name: str, value: object, parsed: object) -> None:
    result, problem = parse_value(all_settings()[name], value)
    assert problem is None
    assert result == parsed and type(result) is type(parsed)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("network_dim", 0, "network_dim = 0: allowed is a whole number from 1 to 1024"),
        ("network_dim", 1025, "network_dim = 1025: allowed is a whole number from 1 to 1024"),
        ("network_dim", 8.5, "network_dim = 8.5: allowed is a whole number from 1 to 1024"),
        ("network_dim", "many", "network_dim = 'many': allowed is a whole number from 1 to 1024"),
        ("network_dim", True, "network_dim = True: allowed is a whole number from 1 to 1024"),
        ("network_dim", None, "network_dim = None: allowed is a whole number from 1 to 1024"),
        ("network_dim", [8], "network_dim = [8]: allowed is a whole number from 1 to 1024"),
        ("network_dim", "²", "network_dim = '²': allowed is a whole number from 1 to 1024"),
        ("learning_rate", -1, "learning_rate = -1: allowed is a number of at least 0"),
        ("learning_rate", "nan", "learning_rate = 'nan': allowed is a number of at least 0"),
        ("learning_rate", float("inf"), "learning_rate = inf: allowed is a number of at least 0"),
        ("unet_lr", "x", "unet_lr = 'x': allowed is a number of at least 0, or \"none\""),
        ("enable_bucket", "maybe", "enable_bucket = 'maybe': allowed is true or false"),
        ("enable_bucket", 2, "enable_bucket = 2: allowed is true or false"),
        ("max_token_length", 100, "max_token_length = 100: allowed is one of 75, 150, 225"),
        ("caption_extension", "txt", "caption_extension = 'txt': allowed is one of auto, .txt, .caption"),
        ("min_bucket_reso", 100, "min_bucket_reso = 100: allowed is a whole number from 8 to 8192, a multiple of 8"),
        ("output_name", ["a"], "output_name = ['a']: allowed is text"),
        ("output_name", True, "output_name = True: allowed is text"),
        ("train_data_dir", "a\0b", "train_data_dir = 'a\\x00b': allowed is text"),
        ("caption_prefix", "\ud800", "caption_prefix = '\\ud800': allowed is text"),
    ],
)
def test_problems(name: str, value: object, problem: str) -> None:
    assert parse_value(all_settings()[name], value) == (None, problem)


def test_an_unknown_name_has_its_neighbours_named() -> None:
    text = unknown_setting("unet_Ir", all_settings())
    assert text == "unet_Ir: there is no setting of this name; did you mean unet_lr?"
    assert unknown_setting("zzz", all_settings()).endswith("`train --help` lists all of them")


@pytest.mark.parametrize("declared", all_settings().values(), ids=lambda declared: declared.name)
def test_every_setting_is_declared_whole(declared: Setting) -> None:
    assert declared.type in (bool, int, float, str)
    assert declared.label and declared.help.endswith(".")
    parsed, problem = parse_value(declared, declared.default)
    assert problem is None and parsed == declared.default
    assert parse_value(declared, str(declared.default))[1] is None


@settings(deadline=None)
@given(value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_any_value_is_parsed_or_refused_in_words(value: object) -> None:
    for declared in all_settings().values():
        parsed, problem = parse_value(declared, value)
        if problem is not None:
            assert parsed is None and problem.startswith(f"{declared.name} = ")
        elif parsed is None:
            assert declared.optional
        else:
            assert type(parsed) is declared.type
            assert parse_value(declared, parsed) == (parsed, None)
