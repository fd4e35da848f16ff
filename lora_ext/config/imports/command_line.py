"""An sd-scripts command line pasted as text: `accelerate launch … train_network.py --network_dim=8 …`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_ext.protocols import UserError

_CONTINUATION = re.compile(r"[ \t]*(?:\\|\^|`)[ \t]*\r?\n")
"""The line goes on: a shell's backslash, the Windows prompt's ^, PowerShell's `."""
_WORD = re.compile(r"""(?:[^\s"']|"(?:[^"`\\]|`.|\\.)*"|'[^']*')+""", re.DOTALL)
_QUOTED = re.compile(r""""((?:[^"`\\]|`.|\\.)*)"|'([^']*)'""", re.DOTALL)
_ESCAPED = re.compile(r"`(.)|\\(?=[\"])(.)", re.DOTALL)
_OPTION = re.compile(r"--([A-Za-z][A-Za-z0-9_-]*)(?:=(.*))?", re.DOTALL)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?|%([A-Za-z_][A-Za-z0-9_]*)%")
_SHELL_ASSIGNMENT = re.compile(r"(?:export\s+|set\s+\"?)?([A-Za-z_][A-Za-z0-9_]*)=(.*?)\"?(?:\s+#.*)?", re.IGNORECASE)

LISTS = ("network_args", "optimizer_args", "lr_scheduler_args", "base_weights", "base_weights_multiplier",
         "text_encoder_lr")  # fmt: skip
"""Options that take several words."""

_LAUNCHERS_OWN = frozenset({
    "num_cpu_threads_per_process", "num_processes", "num_machines", "mixed_precision", "multi_gpu", "gpu_ids",
    "main_process_port", "dynamo_backend", "dynamo_mode", "config_file",
})  # fmt: skip
"""Options of `accelerate launch`; they stand before the script."""


def joined_lines(text: str) -> str:
    """The text with continued lines joined to one."""
    return _CONTINUATION.sub(" ", text)


def command_and_variables(text: str) -> tuple[str, dict[str, str]]:
    """The command in a script or a pasted text, and the variables that are set in lines above it.

    Options may stand on lines of their own below the command.
    """
    variables: dict[str, str] = {}
    command: list[str] = []
    for line in joined_lines(text).splitlines():
        stripped = line.strip()
        assignment = _SHELL_ASSIGNMENT.fullmatch(stripped)
        if command and not stripped.startswith("--"):
            break
        if "--" in stripped and not stripped.startswith(("#", "::")) and not assignment:
            command.append(stripped)
        elif assignment:
            variables[assignment[1]] = assignment[2].strip().strip("\"'")
    return "\n".join(command), variables


def words_of(text: str) -> list[str]:
    """The words of a command line with their quotes taken off; backslashes of Windows paths stay.

    Raises UserError where a quote is not closed.
    """
    words = []
    end = 0
    for match in _WORD.finditer(text):
        if text[end : match.start()].strip():
            break
        words.append(_QUOTED.sub(_unquote, match[0]))
        end = match.end()
    if text[end:].strip():
        raise UserError(
            f"the command line has a quote that is not closed, at {text[end:].strip()[:40]}: paste it whole"
        )
    return words


def _unquote(match: re.Match[str]) -> str:
    if match[2] is not None:
        return match[2]
    return _ESCAPED.sub(lambda escaped: escaped[1] or escaped[2], match[1])


def options_of(text: str, variables: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """({option: value}, {option: value with a variable that is not known}) of a command line.

    `variables` are put in for `$name`, `${name}` and `%name%`. An option without a value is true; what stands before
    the script's name belongs to the launcher.
    """
    words = words_of(joined_lines(text))
    script = next((place for place, word in enumerate(words) if word.lower().endswith(".py")), -1)
    options = _read(words[script + 1 :], variables or {})
    for word in words[: script + 1]:
        match = _OPTION.fullmatch(word)
        if match and match[1] not in _LAUNCHERS_OWN:
            options.setdefault(match[1], match[2] or True)
    if script >= 0 and "sdxl" in words[script].lower():
        options.setdefault("sdxl", True)
    unknown = {
        name: str(value) for name, value in options.items() if isinstance(value, str) and _VARIABLE.search(value)
    }
    return {name: value for name, value in options.items() if name not in unknown}, unknown


def _read(words: Sequence[str], variables: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    name = ""
    for word in words:
        match = _OPTION.fullmatch(word)
        if match:
            name = match[1].replace("-", "_")
            value = None if match[2] is None else put_in(match[2], variables)
            options[name] = (value or "").split() if name in LISTS else True if value is None else value
        elif name:
            value = put_in(word, variables)
            if isinstance(options[name], list):
                options[name] += value.split()
            else:  # a second word is a value with a space that was not quoted
                options[name] = value if options[name] is True else f"{options[name]} {value}"
    return options


def put_in(text: str, variables: Mapping[str, Any]) -> str:
    """The text with variables put in; names that are not known stay as they are."""
    return _VARIABLE.sub(lambda match: str(variables.get(match[1] or match[2], match[0])), text)
