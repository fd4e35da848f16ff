"""Repairing networks: without modules that are damaged or change nothing, and with the right hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lora_ext.config.tools.repair import RepairSettings
from lora_ext.merge.dead_modules import changes_nothing
from lora_ext.merge.findings import modules_words, some_of
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import OutputFile, ToolReport, Work, check_output, precision_of, write_result
from lora_ext.networks.file import NetworkFile, read_network
from lora_ext.networks.weight_delta import UnsupportedNetworkError, module_delta
from lora_ext.protocols import UserError

COMMENT = "ss_training_comment"
_HEADER = 200  # bytes of a file's header for each tensor


@dataclass(frozen=True)
class Repaired:
    """What is left of a network: its tensors by their own names; why modules were left out, and how many tensors."""

    tensors: dict[str, Tensor]
    damaged: Mapping[str, str]
    without_effect: tuple[str, ...]
    duplicates: tuple[str, ...]


def repaired(file: NetworkFile) -> Repaired:
    """The file without modules that cannot be applied or change nothing, and without tensors that are there twice.

    What nobody here understands is kept. Raises UserError where no module is left.
    """
    network = file.network
    damaged: dict[str, str] = {}
    idle = []
    for key, tensors in network.modules.items():
        try:
            module_delta(tensors)
        except UnsupportedNetworkError:
            continue
        except UserError as error:
            damaged[key] = str(error)
            continue
        if changes_nothing(tensors):
            idle.append(key)
    if network.modules and len(damaged) + len(idle) == len(network.modules):
        raise UserError(
            f"{file.path}: {modules_words(len(damaged))} cannot be applied and {modules_words(len(idle))} change nothing: "
            "there is nothing left to write; get the file again, or take another epoch"
        )
    gone = {*damaged, *idle}
    twice = tuple(name for name in network.unknown if name in network.places)
    kept = {
        name: tensor
        for name, tensor in file.tensors.items()
        if name not in twice and (name not in network.places or network.places[name][0] not in gone)
    }
    return Repaired(kept, damaged, tuple(idle), twice)


def preview(settings: RepairSettings, work: Work) -> ToolReport:
    """What would be left out."""
    return _report(*_repaired(settings, work), settings)


def run(settings: RepairSettings, work: Work) -> ToolReport:
    """Write the network without it; the file that was read stays as it is."""
    path = work.network(settings.file)
    if not settings.out.strip():
        raise UserError("no output is given: name the file to write (--out FILE.safetensors)")
    out = check_output(Path(settings.out), [path], settings.overwrite, path.stat().st_size)
    file, result = _repaired(settings, work)
    metadata = {**file.metadata, COMMENT: _comment(file.metadata.get(COMMENT), result)}
    written = write_result(out, result.tensors, metadata, precision_of(settings.precision, result.tensors), work)
    work.step(1, 1)
    return _report(file, result, settings, written)


def _repaired(settings: RepairSettings, work: Work) -> tuple[NetworkFile, Repaired]:
    work.step(0, 1)
    file = read_network(work.network(settings.file))
    return file, repaired(file)


def _comment(before: str | None, result: Repaired) -> str:
    """The metadata's comment with what was done."""
    done = f"repaired: {modules_words(len(result.damaged) + len(result.without_effect))} left out"
    return done if before in (None, "", "None") else f"{before}; {done}"


def _report(
    file: NetworkFile, result: Repaired, settings: RepairSettings, written: OutputFile | None = None
) -> ToolReport:
    left = len(file.network.modules) - len(result.damaged) - len(result.without_effect)
    facts = {"modules left": f"{left} of {len(file.network.modules)}"}
    if result.damaged:
        reasons = Counter(result.damaged.values())
        facts["left out, damaged"] = (
            f"{len(result.damaged)} ({some_of(list(result.damaged))}): {some_of(list(reasons))}"
        )
    if result.without_effect:
        facts["left out, without effect"] = f"{len(result.without_effect)} ({some_of(result.without_effect)})"
    if result.duplicates:
        facts["left out, there twice"] = f"{len(result.duplicates)} tensors ({some_of(result.duplicates)})"
    warnings = []
    if result.damaged:
        share = f"{len(result.damaged)} of {len(file.network.modules)}"
        warnings.append(
            f"what the {share} damaged modules were to do is lost: pictures may differ from the trained one's"
        )
    if written is None and settings.out.strip():
        written = OutputFile(Path(settings.out), _size(result.tensors))
    details = {"damaged": dict(result.damaged), "without_effect": list(result.without_effect)}
    title = (
        f"{file.path.name}: {'repaired' if result.damaged or result.without_effect or result.duplicates else 'whole'}"
    )
    return ToolReport(title, facts, (), warnings, (written,) if written else (), "", details)


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(each.numel() * each.element_size() + _HEADER for each in tensors.values())


TOOL = Tool(
    "repair",
    "Repair",
    "Write a network anew without modules that are damaged or change nothing, with the right hashes.",
    RepairSettings,
    run,
    preview,
)
