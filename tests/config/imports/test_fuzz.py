"""A thousand mutations of valid files of every format: settings that can be planned, or an error in words."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ext.config.advice import advice
from lora_ext.config.imports import import_file
from lora_ext.config.sd_scripts_export import config_to_sd_scripts
from lora_ext.config.toml_files import config_to_toml, read_config
from lora_ext.config.train_config import TrainConfig, all_settings, make_config
from lora_ext.dataset.report import DatasetReport
from lora_ext.protocols import UserError
from lora_ext.training.plan import make_plan

PAIRS: dict[str, object] = {
    "output_name": "cat", "train_data_dir": "pictures", "resolution": "512,768", "network_module": "networks.lora",
    "network_dim": 32, "network_alpha": 16.0, "network_args": ["conv_dim=8", "conv_alpha=4", "dropout=0.1"],
    "learning_rate": 1e-4, "text_encoder_lr": 5e-5, "optimizer_type": "AdamW8bit", "lr_scheduler": "cosine",
    "optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99"], "lr_warmup_steps": 0.1, "max_train_epochs": 5,
    "min_snr_gamma": 5, "enable_bucket": True, "max_bucket_reso": 1536, "keep_tokens": 1, "shuffle_caption": True,
    "xformers": True, "save_every_n_epochs": 1, "seed": 1337, "clip_skip": 2, "caption_extension": ".txt",
    "pretrained_model_name_or_path": "C:\\models\\nai.ckpt",
}  # fmt: skip


def toml_of(value: object) -> str:
    return json.dumps(value)


VALID = {
    "sd-scripts.toml": "".join(f"{name} = {toml_of(value)}\n" for name, value in PAIRS.items()),
    "sections.toml": "[a]\n" + "".join(f"{name} = {toml_of(value)}\n" for name, value in PAIRS.items()),
    "easy.toml": """
[[subsets]]
image_dir = "x"
num_repeats = 2
[network_args.args]
network_dim = 8
[network_args.args.network_args]
conv_dim = 4
[optimizer_args.args]
optimizer_type = "Prodigy"
warmup_ratio = 0.1
[general_args.dataset_args]
resolution = [512, 512]
batch_size = 2
""",
    "kohya.json": json.dumps({
        "LoRA_type": "LyCORIS/LoCon", "max_resolution": "512,512", "epoch": 3, "lr_warmup": "10", "conv_dim": 4,
        "network_dim": 8, "optimizer": "Lion", "unet_lr": 1e-5, "text_encoder_lr": 0, "noise_offset_type": "Original",
        "min_snr_gamma": 0, "additional_parameters": "--seed=3", "vae_batch_size": 0, "keep_tokens": "2",
    }, indent=1),
    "command.txt": "accelerate launch train_network.py " + " \\\n  ".join(
        f'--{name}="{value}"' for name, value in PAIRS.items() if not isinstance(value, list)
    ),
    "guides.ps1": "".join(
        f'${name} = "{value}"\n' for name, value in PAIRS.items() if not isinstance(value, list | bool)
    ) + "$shuffle_caption = $true\n$lr_warmup_ratio = 0.05\n",
    "gui.ini": "version=0.2\n"
    + "".join(f"{name}: {value}\n" for name, value in PAIRS.items() if not isinstance(value, list)),
    "dreambooth.json": json.dumps({
        "concepts_list": [{"instance_data_dir": "x", "class_prompt": "a cat"}], "use_lora": True,
        "lora_learning_rate": 1e-4, "num_train_epochs": 3, "save_preview_every": 2, "resolution": 512,
    }, indent=1),
    "dataset.toml": '[general]\nkeep_tokens = 1\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\n',
    "concepts.json": '[{"instance_data_dir": "x", "instance_prompt": "a cat", "class_prompt": "cat"}]',
    "ours.toml": config_to_toml(make_config({"output_name": "cat"})),
}  # fmt: skip
"""A valid file of each format."""

PIECES = (
    "0", "-1", "1e400", "nan", "none", "true", '""', "''", "[]", "{}", "=", ":", ",", '"', "'", "\n", "\\", "`", "^",
    "$", "%", "--", "#", "<#", "@(", "\x00", "\ufeff", "é", "²", "💥", " ", "999999999999999999999", "0.5%", "[[a]]",
    "algo=loha", "network_args = 3", "\ud7ff", "1_0", "0x10", "2024-01-01", "inf", "{'a': 1}", "--resolution",
)  # fmt: skip


VALUES = (
    "[1, 2]",
    '"text"',
    "3",
    "512",
    "1e-4",
    '["a=1", 2]',
    '[["x"]]',
    '{"a": {"b": [1]}}',
    "{a = {b = 1}}",
    "[{}]",
    ",",
)


def mutated(text: str, rng: random.Random) -> str:
    """The text with one to four places changed."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        length = rng.choice((0, 1, 1, 2, 5, 20))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:place] + text[place + length :]
        elif kind == 1:
            text = text[:place] + rng.choice(PIECES) + text[place + length :]
        elif kind == 2:
            lines = text.splitlines(keepends=True) or [""]
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            text = "".join(lines)
        elif kind == 3:
            text = value_changed(text, rng)
        elif kind == 4:
            name = rng.choice((*all_settings(), *PAIRS))
            text = text.replace(rng.choice((*PAIRS, "network_dim")), name, 1)
        else:
            text = text[:place] if rng.random() < 0.2 else text + "\n" + rng.choice(PIECES)
    return text


def value_changed(text: str, rng: random.Random) -> str:
    """One line's value replaced by another."""
    lines = text.splitlines(keepends=True)
    for number in rng.sample(range(len(lines)), len(lines)):
        for sign in (" = ", ": ", "="):
            name, found, _ = lines[number].partition(sign)
            if found:
                end = ",\n" if lines[number].rstrip().endswith(",") else " \\\n" if "\\\n" in lines[number] else "\n"
                value = rng.choice((*PIECES, *VALUES))
                lines[number] = f"{name}{found}{value}{end}"
                return "".join(lines)
    return text


def test_the_valid_ones_are_valid(tmp_path: Path) -> None:
    formats = set()
    for name, text in VALID.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        imported = import_file(tmp_path / name)
        assert not imported.of_kind("unknown") and not imported.of_kind("lost"), name
        formats.add(imported.format)
    assert len(formats) == 10  # sd-scripts' with and without sections is one


def report() -> DatasetReport:
    return DatasetReport(
        pictures=3, captions=3, missing=0, repeats=6, batches_per_epoch=6, buckets={(512, 512): 6}, mean_ar_error=0.0,
        folders=[], problems=[], warnings=[], tag_frequency={},
    )  # fmt: skip


def outcome(load: Callable[[], TrainConfig], folder: Path) -> str:
    """ "plan" where the settings can be planned, written and read again, "refused" where an error says why not."""
    try:
        config = load()
    except UserError as error:
        assert len(str(error)) > 10
        return "refused"
    assert isinstance(advice(config), list)
    assert make_plan(config, report(), folder / "networks").total_steps >= 1
    (folder / "again.toml").write_text(config_to_toml(config), encoding="utf-8")
    assert read_config(folder / "again.toml") == config
    assert config_to_sd_scripts(config)
    return "plan"


@pytest.mark.parametrize("name", VALID)
def test_mutations_are_planned_or_refused_in_words(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    counts: Counter[str] = Counter()
    for _ in range(100):
        text = mutated(VALID[name], rng)
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        counts[outcome(lambda: import_file(tmp_path / name).config, tmp_path)] += 1
        if name == "ours.toml":
            counts[outcome(lambda: read_config(tmp_path / name), tmp_path)] += 1
    assert counts["plan"] >= 5 and counts["refused"] >= 2, counts
