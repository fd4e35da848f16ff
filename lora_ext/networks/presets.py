"""Which modules a network adapts: LyCORIS' presets on the ldm / sgm tree, and presets in files of one's own."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_ext.config.given_path import given_path
from lora_ext.config.groups.network import ALGORITHMS, PRESETS
from lora_ext.protocols import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Role = Literal[
    "transformer", "transformer_block", "attention", "feed_forward", "resnet", "sampler", "conv_in", "conv_out",
    "time_embedding", "mlp",
]  # fmt: skip
"""What a module is part of; a layer of cross-attention is part of three. Text encoders have attention and mlp."""


@dataclass(frozen=True)
class Override:
    """What is done otherwise with modules of a name, or of a role: algorithm, rank, alpha and fields of the form.

    Roles are those of the U-Net, or with `in_text` those of the text encoders.
    """

    pattern: str
    role: Role | None
    changes: Mapping[str, Any]
    in_text: bool = False


@dataclass(frozen=True)
class Preset:
    """What is adapted: modules of these roles, and those whose names match; `kernels`: 3×3 convolutions among them.

    Names are those in network files without the prefix (`down_blocks_0_attentions_0_proj_in`).
    """

    unet: frozenset[Role] = frozenset()
    text: frozenset[Role] = frozenset()
    kernels: bool = False
    unet_names: tuple[str, ...] = ()
    text_names: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = field(default=())


_TEXT: frozenset[Role] = frozenset({"attention", "mlp"})
_BLOCKS: frozenset[Role] = frozenset({"transformer", "resnet", "sampler"})
_ALL: frozenset[Role] = _BLOCKS | {"conv_in", "conv_out", "time_embedding"}

BUILTIN: dict[str, Preset] = {
    "attn-mlp": Preset(frozenset({"transformer"}), _TEXT),
    "full": Preset(_ALL, _TEXT, kernels=True),
    "full-lin": Preset(frozenset({"transformer", "resnet", "time_embedding"}), _TEXT),
    "attn-only": Preset(frozenset({"attention"}), frozenset({"attention"})),
    "unet-only": Preset(_ALL, kernels=True),
    "unet-transformer-only": Preset(frozenset({"transformer"})),
    "unet-convblock-only": Preset(frozenset({"resnet", "sampler", "conv_in", "conv_out"}), kernels=True),
    "ia3": Preset(
        unet_names=("attn[12]_to_[kv]$", "_ff_net_2$"),
        text_names=("_self_attn_[kv]_proj$", "_mlp_fc2$"),
        overrides=(
            Override("_ff_net_2$", None, {"on_input": True}),
            Override("_mlp_fc2$", None, {"on_input": True}),
        ),
    ),
}

LOCON = Preset(_BLOCKS, _TEXT, kernels=True)
"""attn-mlp with a rank for convolutions: what sd-scripts adapts then."""

_CLASSES: dict[str, frozenset[Role]] = {
    **dict.fromkeys(("Transformer2DModel", "SpatialTransformer"), frozenset({"transformer"})),
    "BasicTransformerBlock": frozenset({"transformer_block"}),
    **dict.fromkeys(("Attention", "CrossAttention", "SelfAttention"), frozenset({"attention"})),
    "FeedForward": frozenset({"feed_forward"}),
    **dict.fromkeys(("ResnetBlock2D", "ResBlock"), frozenset({"resnet"})),
    **dict.fromkeys(("Downsample2D", "Upsample2D", "Downsample", "Upsample"), frozenset({"sampler"})),
    "TimestepEmbedding": frozenset({"time_embedding"}),
    **dict.fromkeys(("CLIPAttention", "CLIPSdpaAttention"), frozenset({"attention"})),
    "CLIPMLP": frozenset({"mlp"}),
    "CLIPEncoderLayer": _TEXT,
}
"""What LyCORIS' presets call the parts, by the names of classes in diffusers, transformers and ldm."""

_KEYS = frozenset({
    "enable_conv", "unet_target_module", "unet_target_name", "text_encoder_target_module", "text_encoder_target_name",
    "module_algo_map", "name_algo_map", "use_fnmatch", "exclude_name",
})  # fmt: skip
_OPTIONS = {
    "algo": "algorithm", "dim": "rank", "alpha": "alpha", "use_tucker": "tucker", "use_cp": "tucker",
    "use_scalar": "scalar", "factor": "factor", "decompose_both": "decompose_both", "full_matrix": "full_matrix",
    "unbalanced_factorization": "unbalanced", "constraint": "constraint", "rescaled": "rescaled", "block_size": "unit",
    "train_on_input": "on_input", "dora_wd": "dora", "weight_decompose": "dora", "wd_on_output": "wd_on_output",
    "wd_on_out": "wd_on_output",
}  # fmt: skip
"""What may be said of modules in a preset's maps, and what it is called here."""
_NUMBERS: dict[str, tuple[type, int]] = {
    "rank": (int, 1), "unit": (int, 1), "factor": (int, -1), "alpha": (float, 0), "constraint": (float, 0),
}  # fmt: skip
"""Which of it is a number, of what kind and from what on; all else is true or false."""
_HIGHEST = 100_000


def find_preset(name: str, with_convolutions: bool) -> Preset:
    """The preset of a name, or in a TOML file of LyCORIS' form; UserError where there is none."""
    name = name.strip()
    if name == "attn-mlp" and with_convolutions:
        return LOCON
    if name in BUILTIN:
        return BUILTIN[name]
    path = given_path(name)
    if path.suffix.lower() != ".toml":
        raise UserError(f"network_preset = {name}: allowed are {', '.join(PRESETS)}, and the path of a .toml file")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"network_preset = {name} cannot be read ({error}): check the file") from error
    try:
        return preset_of(document)
    except UserError as error:
        raise UserError(f"network_preset = {name}: {error}") from error


def preset_of(document: Mapping[str, Any]) -> Preset:
    """The preset in a document of LyCORIS' form; what it leaves out is as in `full`. UserError where it is wrong."""
    unknown = sorted(set(document) - _KEYS - {"lora_prefix"})
    if unknown:
        raise UserError(f"{', '.join(unknown)}: allowed are {', '.join(sorted(_KEYS))}")
    globs = document.get("use_fnmatch", False) is True
    full = BUILTIN["full"]

    def names(key: str) -> tuple[str, ...]:
        return tuple(_pattern(name, globs) for name in _texts(document, key))

    ends = {"conv_in", "conv_out", "time_embedding"} if "unet_target_name" not in document else set()
    unet: frozenset[Role] = full.unet
    if "unet_target_module" in document:
        unet = _roles(_texts(document, "unet_target_module")) | (full.unet & ends)
    elif not ends:
        unet = full.unet - {"conv_in", "conv_out", "time_embedding"}
    text = _roles(_texts(document, "text_encoder_target_module")) if "text_encoder_target_module" in document else _TEXT
    overrides = [Override(_pattern(name, globs), None, changes) for name, changes in _map(document, "name_algo_map")]
    for name, changes in _map(document, "module_algo_map"):
        overrides += [Override("", role, changes, name.startswith("CLIP")) for role in sorted(_roles([name]))]
    return Preset(
        unet, text, document.get("enable_conv", True) is True, names("unet_target_name"),
        names("text_encoder_target_name"), names("exclude_name"), tuple(overrides),
    )  # fmt: skip


def _texts(document: Mapping[str, Any], key: str) -> list[str]:
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{key} = {value!r}: allowed is a list of texts")
    return value


def _roles(classes: Sequence[str]) -> frozenset[Role]:
    """The roles that names of classes stand for; those of other kinds of models stand for none."""
    found: frozenset[Role] = frozenset()
    return found.union(*(_CLASSES.get(name, found) for name in classes))


def _map(document: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    table = document.get(key, {})
    if not isinstance(table, dict) or not all(isinstance(each, dict) for each in table.values()):
        raise UserError(f"{key}: allowed is a table of tables, such as [{key}.{'Attention' if 'mod' in key else 'ff'}]")
    return [(name, _changes(f"{key}.{name}", options)) for name, options in table.items()]


def _changes(place: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a form, rank and alpha, from what a map says of modules."""
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _OPTIONS:
            raise UserError(f"{place}: {name} is unknown; allowed are {', '.join(sorted(_OPTIONS))}")
        changes[_OPTIONS[name]] = value
    algorithm = changes.get("algorithm", "lora")
    changes |= {"algorithm": "lora"} if algorithm == "locon" else {}
    if algorithm not in (*ALGORITHMS, "locon"):
        raise UserError(f"{place}: algo = {algorithm!r}: allowed are {', '.join(ALGORITHMS)}")
    for name, value in options.items():
        kind, lowest = _NUMBERS.get(_OPTIONS[name], (bool, 0))
        if name != "algo" and not (_is_a(value, kind) and lowest <= value <= _HIGHEST):
            number = f"a {'whole ' if kind is int else ''}number from {lowest} to {_HIGHEST}"
            raise UserError(f"{place}: {name} = {value!r}: allowed is {'true or false' if kind is bool else number}")
    on_output = changes.pop("wd_on_output", True)
    if "dora" in changes:
        changes["dora"] = ("out" if on_output else "in") if changes["dora"] else ""
    return changes


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value of a document is of a kind; whole numbers are numbers, and no answers are."""
    return type(value) is kind or (kind is float and type(value) is int)


def _pattern(name: str, globs: bool) -> str:
    """A regular expression for names with underscores, of a name or pattern with dots."""
    return _whole(name.replace(".", "_")) if globs else name.replace("\\.", "_").replace(".net.", "_net_")


def matches(pattern: str, name: str) -> bool:
    """Whether a preset's pattern is found in the name of a module."""
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression ({error})") from error


def filter_pattern(text: str) -> str:
    """The regular expression that a line of network_include or network_exclude stands for.

    `re:` begins one; a line with * or ? is the whole name; any other is a part of it. Dots stand for underscores.
    """
    line = text.strip()
    if line.startswith("re:"):
        return line[3:].strip()
    plain = line.replace(".", "_")
    return _whole(plain) if any(sign in plain for sign in "*?") else re.escape(plain)


def _whole(pattern: str) -> str:
    """The regular expression that finds a shell's pattern as a whole name; `translate` gives its end alone."""
    return rf"\A{fnmatch.translate(pattern)}"


def filter_lines(text: str) -> list[str]:
    """The lines of a filter that say something; commas separate too, outside of regular expressions."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = [[line] if line.startswith("re:") else [part.strip() for part in line.split(",")] for line in lines]
    return [part for line in parts for part in line if part]
