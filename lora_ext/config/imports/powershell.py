"""The PowerShell scripts of the guides: variables at the top, sd-scripts started below."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lora_ext.config.imports.command_line import joined_lines, options_of, put_in

_ASSIGNMENT = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_HARMLESS = re.compile(r"(?:\$env:|param\s*\(|\[console\]|set-strictmode|cls\b|clear-host\b)", re.IGNORECASE)
_BLOCK_COMMENT = re.compile(r"<#.*?#>", re.DOTALL)
_END_MARK = re.compile(r"<#[^\n]*\bend\b[^\n]*#>", re.IGNORECASE)
_STRING = re.compile(r"\"((?:[^\"`]|`.|\"\")*)\"|'((?:[^']|'')*)'")
_PLAIN = re.compile(r"[^\s#;]+")
_LAUNCH = re.compile(r"^.*\baccelerate\b.*?\.py.*$", re.MULTILINE | re.DOTALL)
_RATE_IS_A_SHARE = re.compile(r"\$unet_lr\s*\*\s*\$text_encoder_lr", re.IGNORECASE)

NAMES: dict[str, str] = {
    "ckpt": "pretrained_model_name_or_path",
    "ckpt_path": "pretrained_model_name_or_path",
    "pretrained_model": "pretrained_model_name_or_path",
    "base_model": "pretrained_model_name_or_path",
    "is_sd_v2_ckpt": "v2",
    "is_v2_model": "v2",
    "is_sd_v2_768_ckpt": "v_parameterization",
    "parameterization": "v_parameterization",
    "image_dir": "train_data_dir",
    "img_dir": "train_data_dir",
    "reg_dir": "reg_data_dir",
    "vae_path": "vae",
    "num_epochs": "max_train_epochs",
    "max_train_epoches": "max_train_epochs",
    "epochs": "max_train_epochs",
    "scheduler": "lr_scheduler",
    "optimizer": "optimizer_type",
    "optimizer_t": "optimizer_type",
    "lr": "learning_rate",
    "lr_r_num_cycles": "lr_scheduler_num_cycles",
    "lr_restart_cycles": "lr_scheduler_num_cycles",
    "lr_scheduler_number_of_cycles": "lr_scheduler_num_cycles",
    "lr_scheduler_polynomial_power": "lr_scheduler_power",
    "warmup_ratio": "lr_warmup_ratio",
    "train_unet_only": "network_train_unet_only",
    "train_text_encoder_only": "network_train_text_encoder_only",
    "use_lion": "use_lion_optimizer",
    "caption_ext": "caption_extension",
    "rank": "network_dim",
    "alpha": "network_alpha",
    "dim": "network_dim",
    "gradient_acc_steps": "gradient_accumulation_steps",
    "max_token_len": "max_token_length",
}
"""Variables of these scripts, and sd-scripts' options that they end up in."""

_NO_OPTION_IF_ZERO = ("max_train_steps", "max_train_epochs", "max_timestep", "multires_noise_discount")


def looks_like_a_script(text: str) -> bool:
    """Whether the text has PowerShell variables at its top."""
    return sum(1 for line in text.splitlines() if re.match(r"\$[A-Za-z_]\w*\s*=", line)) >= 2


def script_options(text: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """(sd-scripts' options, [(variable, why it is none)]) of a script.

    A command that starts sd-scripts below says what its variables mean; without one their names do.
    """
    variables, skipped = _variables(text)
    options = _named_options(text, variables)
    launch = _LAUNCH.search(joined_lines(_BLOCK_COMMENT.sub("", text)))
    if launch:
        line = next(line for line in launch[0].splitlines() if "accelerate" in line and ".py" in line)
        given, unknown = options_of(line, variables)
        used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", line))
        options = {name: value for name, value in options.items() if not used & _sources(name, variables)}
        options |= given
        skipped += [(name, f"{value}: the script computes it; set it by hand") for name, value in unknown.items()]
    return options, skipped


def _sources(option: str, variables: dict[str, Any]) -> set[str]:
    """The variables that an option's value was taken from."""
    return {name for name in variables if name == option or NAMES.get(name) == option}


def _named_options(text: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Options by the variables' names."""
    options: dict[str, Any] = {}
    for name, value in variables.items():
        option = NAMES.get(name, name)
        if name == "train_with":
            options["network_train_unet_only"] = str(value) == "1"
            options["network_train_text_encoder_only"] = str(value) == "0"
        elif name == "is_random_seed":
            options.update({} if str(value) == "1" else {"seed": 1337})
        elif not (option in _NO_OPTION_IF_ZERO and str(value) in ("0", "0.0")):
            options[option] = value
    if _RATE_IS_A_SHARE.search(text) and "unet_lr" in options and "text_encoder_lr" in options:
        options["text_encoder_lr"] = _product(options["unet_lr"], options["text_encoder_lr"])
    return options


def _product(one: Any, other: Any) -> Any:
    try:
        return float(f"{float(one) * float(other):.12g}")
    except (TypeError, ValueError):
        return other


def _variables(text: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """({variable: value}, [(variable, why it has none)]) of the lines at the top, up to the first command."""
    end = _END_MARK.search(text)
    variables: dict[str, Any] = {}
    skipped: list[tuple[str, str]] = []
    for statement in _statements(_BLOCK_COMMENT.sub("", text[: end.start()] if end else text)):
        match = _ASSIGNMENT.fullmatch(statement)
        if match is None:
            if _HARMLESS.match(statement):
                continue
            break
        value = _value(match[2], variables)
        if value is None:
            skipped.append((match[1], "its value is computed by the script: set it by hand"))
        else:
            variables[match[1]] = value
    return variables, skipped


def _statements(text: str) -> Iterator[str]:
    """Statements that begin at a line's start; an array @( … ) may go over several lines."""
    lines = iter(text.splitlines())
    for line in lines:
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        while "@(" in stripped and ")" not in stripped:
            following = next(lines, None)
            if following is None:
                break
            stripped += "\n" + following.strip()
        yield stripped


def _value(text: str, variables: dict[str, Any]) -> Any:
    """A literal's value (texts with variables in them, sums of texts, arrays, $true), None of any other expression."""
    text = text.strip()
    if text.startswith("@("):
        return _array(text)
    if text.startswith(('"', "'")):
        return _concatenated(text, variables)
    plain = _PLAIN.match(text)
    word = plain[0] if plain else ""
    if text[len(word) :].strip().startswith(("#", ";")) or text == word:
        if word.lower() in ("$true", "$false"):
            return word.lower() == "$true"
        if word.lower() == "$null" or not word:
            return ""
        if word.startswith("$"):
            return variables.get(word[1:])
        return None if word.startswith(("[", "(", "{")) else word
    return None


def _array(text: str) -> list[str]:
    """The members of `@("a", "b")` or `@(1, 2)`."""
    strings = [match[1] if match[1] is not None else match[2] for match in _STRING.finditer(text)]
    return strings or [part.strip() for part in text[2:].rpartition(")")[0].split(",") if part.strip()]


def _concatenated(text: str, variables: dict[str, Any]) -> str | None:
    """`"a$b" + "c"` with a comment behind it."""
    parts: list[str] = []
    rest = text
    while match := _STRING.match(rest):
        parts.append(put_in(re.sub(r"`(.)", r"\1", match[1]), variables) if match[1] is not None else match[2])
        rest = rest[match.end() :].lstrip()
        if not rest.startswith("+"):
            break
        rest = rest[1:].lstrip()
    return "".join(parts) if not rest or rest.startswith(("#", ";")) else None
