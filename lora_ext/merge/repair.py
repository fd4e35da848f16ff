"""Repairing networks: without modules that are damaged or change nothing, and with the right hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lora_ext.config.tools.repair import RepairSettings
from lora_ext.merge.dead_modules import changes_nothing
from lora_ext.merge.findings import modules_words, some_of
from lora_ext.merge.low_rank_out import Source, changed_metadata
from lora_ext.merge.memory import check_memory
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import OutputFile, ToolReport, Work, check_output, precision_of, write_result
from lora_ext.networks.file import NetworkFile, network_size
from lora_ext.networks.formats import EMBEDDING
from lora_ext.networks.weight_delta import UnsupportedNetworkError, module_delta
from lora_ext.networks.weight_delta.stored import check_values
from lora_ext.protocols import UserError


@dataclass(frozen=True)
class Repaired:
    """What is left of a network: its tensors by their own names, its modules that can be applied, and how many are of
    unknown kinds; and what was left out, and why. `embeddings` are the names of damaged ones, which are left out too.
    """

    tensors: dict[str, Tensor]
    modules: dict[str, dict[str, Tensor]]
    unknown: int
    damaged: Mapping[str, str]
    without_effect: tuple[str, ...]
    duplicates: tuple[str, ...]
    embeddings: tuple[str, ...] = ()

    @property
    def left_out(self) -> int:
        """How many modules are left out."""
        return len(self.damaged) + len(self.without_effect)


def repaired(file: NetworkFile) -> Repaired:
    """The file without modules that cannot be applied or change nothing, and without tensors that are there twice.

    What nobody here understands is kept. Raises UserError where no module is left.
    """
    network = file.network
    if not network.modules:
        raise UserError(f"{file.path} holds no network: none of its {len(file.tensors)} tensors is one of a network")
    damaged: dict[str, str] = {}
    idle, unknown = [], []
    for key, tensors in network.modules.items():
        try:
            module_delta(tensors)
        except UnsupportedNetworkError:
            if reason := _damage(tensors):
                damaged[key] = reason
            else:
                unknown.append(key)
            continue
        except UserError as error:
            damaged[key] = str(error)
            continue
        if changes_nothing(tensors):
            idle.append(key)
    if len(damaged) + len(idle) == len(network.modules):
        raise UserError(
            f"{file.path}: nothing would be left: {modules_words(len(damaged))} cannot be applied, and "
            f"{modules_words(len(idle))} change nothing; get the file again, or take another epoch"
        )
    gone = {*damaged, *idle}
    twice = tuple(name for name in network.unknown if name in network.places)
    embeddings = [name for name, parts in network.embeddings.items() if _damage(parts)]
    of_embeddings = tuple(f"{EMBEDDING}{name}." for name in embeddings)
    kept = {
        name: tensor
        for name, tensor in file.tensors.items()
        if name not in twice
        and not name.startswith(of_embeddings)
        and (name not in network.places or network.places[name][0] not in gone)
    }
    modules = {key: tensors for key, tensors in network.modules.items() if key not in {*gone, *unknown}}
    return Repaired(kept, modules, len(unknown), damaged, tuple(idle), twice, tuple(embeddings))


def _damage(tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the numbers of tensors that are not understood; "" for nothing."""
    try:
        check_values(tensors)
    except UserError as error:
        return str(error)
    return ""


def preview(settings: RepairSettings, work: Work) -> ToolReport:
    """What would be left out."""
    return _report(*_repaired(settings, work), settings)


def run(settings: RepairSettings, work: Work) -> ToolReport:
    """Write the network without it; the file that was read stays as it is."""
    path = work.network(settings.file)
    if not settings.out.strip():
        raise UserError("no output is given: name the file to write (--out FILE.safetensors)")
    out = check_output(Path(settings.out), [path], settings.overwrite, path.stat().st_size)
    check_memory(3 * path.stat().st_size, f"repairing {path.name}")
    file, result = _repaired(settings, work)
    what = f"repaired: {modules_words(result.left_out)} left out"
    metadata = changed_metadata(file.metadata, result.modules, what, [Source.of(file)], out)
    written = write_result(out, result.tensors, metadata, precision_of(settings.precision, result.tensors), work)
    work.step(1, 1)
    return _report(file, result, settings, written)


def _repaired(settings: RepairSettings, work: Work) -> tuple[NetworkFile, Repaired]:
    work.step(0, 1)
    file = work.read_network(work.network(settings.file))
    return file, repaired(file)


def _report(
    file: NetworkFile, result: Repaired, settings: RepairSettings, written: OutputFile | None = None
) -> ToolReport:
    count = len(file.network.modules)
    facts = {"modules left": f"{len(result.modules) + result.unknown} of {count}"}
    for words, names in (("damaged", tuple(result.damaged)), ("without effect", result.without_effect)):
        if names:
            facts[f"left out, {words}"] = f"{len(names)} ({some_of(names)})"
    if result.duplicates:
        facts["left out, there twice"] = f"{len(result.duplicates)} tensors ({some_of(result.duplicates)})"
    if result.embeddings:
        facts["left out, damaged embeddings"] = f"{len(result.embeddings)} ({some_of(result.embeddings)})"
    warnings = []
    if result.damaged:
        key, reason = next(iter(result.damaged.items()))
        warnings.append(
            f"what {len(result.damaged)} of {count} modules were to do is lost ({key}: {reason}): pictures differ from "
            "those that the network was made for"
        )
    if written is None and settings.out.strip():
        precision = precision_of(settings.precision, result.tensors)
        written = OutputFile(Path(settings.out), network_size(result.tensors, file.metadata, precision))
    details = {"damaged": dict(result.damaged), "without_effect": list(result.without_effect)}
    title = f"{file.path.name}: {modules_words(result.left_out)} left out"
    return ToolReport(title, facts, (), warnings, (written,) if written else (), "", details)


TOOL = Tool(
    "repair",
    "Repair",
    "Write a network anew without modules that are damaged or change nothing, with the right hashes.",
    RepairSettings,
    run,
    preview,
)
