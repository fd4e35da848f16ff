"""What algorithms and presets cannot do, and what they leave without effect, is told."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ext.config.advice import advice
from lora_ext.config.groups.network import ALGORITHMS
from lora_ext.config.train_config import make_config
from lora_ext.networks.forms import form_of_settings
from lora_ext.protocols import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"network_preset": "full-line"},
            "'full-line': allowed are attn-mlp, .*did you mean full-lin",
        ),
        ({"network_algorithm": "dylora", "network_dim": 10}, "network_dim = 10 is no multiple of block_size = 4"),
        ({"network_algorithm": "dylora", "block_size": 3, "network_dim": 9, "conv_dim": 4}, "conv_dim = 4 is no mult"),
        ({"network_algorithm": "tlora", "conv_dim": 4}, "tlora cannot adapt 3×3 convolutions"),
        ({"network_algorithm": "tlora", "network_weights": "a"}, "tlora cannot train on a file"),
        ({"lora_fa": True, "dora_wd": True}, "lora_fa is for plain LoRA and LoCon: switch dora_wd off"),
        ({"lora_fa": True, "loraplus_lr_ratio": 4}, "lora_fa trains the up factors alone"),
        (
            {"network_preset": "unet-only", "network_train_text_encoder_only": True},
            "network_preset = unet-only leaves the text encoder as it is",
        ),
        ({"network_algorithm": "abba"}, "network_algorithm = 'abba': allowed is one of lora, dylora"),
    ],
)
def test_contradictions_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"network_algorithm": "loha", "network_dropout": 0.1}, "network_dropout has no effect with this network_alg"),
        ({"network_algorithm": "glora", "rank_dropout": 0.1}, "rank_dropout has no effect with this network_algorithm"),
        ({"use_tucker": True}, "use_tucker has no effect, because no 3×3 convolutions are adapted"),
        ({"factor": 8}, "factor = 8 has no effect with this network_algorithm: it is for lokr"),
        ({"rescaled": True}, "rescaled has no effect with this network_algorithm: it is for boft, diag-oft"),
        ({"network_preset": "full-lin", "conv_dim": 4}, "conv_dim = 4 has no effect, because network_preset leaves"),
        ({"rank_dropout_scale": True}, "rank_dropout_scale has no effect without rank_dropout"),
        ({"network_algorithm": "ia3", "scale_weight_norms": 1.0}, "scale_weight_norms has no effect"),
        ({"network_algorithm": "lokr", "loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio has no effect"),
        ({"network_preset": "unet-only", "text_encoder_lr": 1e-5}, "text_encoder_lr has no effect, because"),
        ({"network_algorithm": "ia3"}, "network_algorithm = ia3 is meant for network_preset = ia3"),
    ],
)
def test_what_has_no_effect_is_told(values: dict[str, Any], told: str) -> None:
    assert any(text.startswith(told) for text in advice(make_config(values)))
    fitting = make_config({"network_preset": "mine.toml", **{k: v for k, v in values.items() if k != "network_preset"}})
    assert not [text for text in advice(fitting) if "with this network_algorithm" in text]


def test_forms_have_what_their_algorithm_knows_alone() -> None:
    everything = {
        "use_tucker": True, "use_scalar": True, "dora_wd": True, "factor": 8, "decompose_both": True,
        "full_matrix": True, "unbalanced_factorization": True, "constraint": 0.1, "rescaled": True, "block_size": 2,
    }  # fmt: skip
    known: dict[str, set[str]] = {}
    for algorithm in ALGORITHMS:
        form = form_of_settings(make_config({"network_algorithm": algorithm, "conv_dim": None, **everything}).network)
        plain = form_of_settings(make_config({"network_algorithm": algorithm}).network)
        names = vars(form)
        known[algorithm] = {name for name in names if names[name] != getattr(plain, name)}
    assert known == {
        "lora": {"tucker", "scalar", "dora"}, "dylora": {"unit"}, "loha": {"tucker", "scalar", "dora"},
        "lokr": {"tucker", "scalar", "dora", "factor", "decompose_both", "full_matrix", "unbalanced"},
        "ia3": set(), "full": set(), "diag-oft": {"constraint", "rescaled"}, "boft": {"constraint", "rescaled"},
        "glora": {"scalar"}, "tlora": set(),
    }  # fmt: skip
    assert form_of_settings(make_config({"dora_wd": True, "wd_on_output": False}).network).dora == "in"
