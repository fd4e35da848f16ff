"""`convert`: a network's file in another program's words, or in another precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lora_ext.config.tools.convert import ConvertSettings
from lora_ext.merge.conversion import Converted, as_stored, to_diffusers, to_sd_scripts
from lora_ext.merge.inputs import BASE_VERSIONS, base_of
from lora_ext.merge.low_rank_out import PEFTS_OWN, Source, changed_metadata
from lora_ext.merge.memory import check_memory
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import (
    AS_STORED,
    OutputFile,
    ToolReport,
    Work,
    check_output,
    precision_of,
    write_result,
)
from lora_ext.networks.file import NetworkFile, Precision, network_size
from lora_ext.networks.formats.adapter_config import CONFIG_KEY
from lora_ext.networks.weight_delta import module_deltas
from lora_ext.protocols import UserError


@dataclass(frozen=True)
class _Plan:
    """What is written, where, and from what."""

    settings: ConvertSettings
    file: NetworkFile
    base: str
    converted: Converted
    precision: Precision
    out: Path

    @property
    def size(self) -> int:
        """How many bytes the file takes."""
        return network_size(self.converted.tensors, _metadata(self), self.precision)


def run(settings: ConvertSettings, work: Work) -> ToolReport:
    """Convert and write."""
    plan = _plan(settings, work)
    work.step(0, 1)
    written = write_result(plan.out, plan.converted.tensors, _metadata(plan), plan.precision, work)
    work.step(1, 1)
    return _report(plan, written)


def preview(settings: ConvertSettings, work: Work) -> ToolReport:
    """The same without writing."""
    plan = _plan(settings, work)
    return _report(plan, OutputFile(plan.out, plan.size))


TOOL = Tool(
    "convert",
    "Convert a network",
    "A network's file in the words of sd-scripts or of diffusers, or in another precision; it does the same.",
    ConvertSettings,
    run,
    preview,
)


def _plan(settings: ConvertSettings, work: Work) -> _Plan:
    if settings.to == AS_STORED and settings.precision == AS_STORED:
        raise UserError("nothing is to be converted: choose whose names (--to), or a precision (--precision)")
    if not settings.file.strip():
        raise UserError("no network is given: name the file to convert")
    if not settings.out.strip():
        raise UserError("no output is given: name the file to write (--out FILE.safetensors)")
    path, out = work.network(settings.file), Path(settings.out.strip())
    check_output(out, [path], settings.overwrite)
    check_memory(4 * path.stat().st_size, f"converting {path.name}")
    file = work.read_network(path)
    if not file.modules:
        raise UserError(f"{path} holds no network: none of its {len(file.tensors)} tensors is one of a network")
    base, converted = _converted(file, settings.to)
    plan = _Plan(settings, file, base, converted, precision_of(settings.precision, file.tensors), out)
    check_output(out, [path], settings.overwrite, plan.size)
    return plan


def _converted(file: NetworkFile, to: str) -> tuple[str, Converted]:
    """(what it is for, the tensors in the wanted words); UserError naming the file for what cannot be said in them."""
    if to == AS_STORED:
        return "", as_stored(file.tensors, file.network)
    try:
        base = base_of(module_deltas(file.modules), file.metadata)
        return base, to_sd_scripts(file.network) if to == "sd-scripts" else to_diffusers(file.network, base)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error


def _metadata(plan: _Plan) -> dict[str, str]:
    is_diffusers = plan.settings.to == "diffusers"
    said = {key: value for key, value in plan.file.metadata.items() if key != CONFIG_KEY}
    if plan.settings.to != AS_STORED:
        said = {key: value for key, value in said.items() if key not in PEFTS_OWN}
        if plan.base in BASE_VERSIONS:
            said.setdefault("ss_base_model_version", BASE_VERSIONS[plan.base])
            said.setdefault("ss_v2", str(plan.base == "SD2"))
    modules = _factors(plan.converted.tensors) if is_diffusers else plan.file.modules
    what = f"saved as {plan.precision}" if plan.settings.to == AS_STORED else f"converted to {plan.settings.to}' names"
    metadata = changed_metadata(said, modules, what, [Source.of(plan.file)], plan.out)
    return metadata | ({"format": "pt"} if is_diffusers else {})


def _factors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What tells ranks: the factors by peft's module."""
    end = ".lora_A.weight"
    return {
        name.removesuffix(end): {"lora_down.weight": tensor} for name, tensor in tensors.items() if name.endswith(end)
    }


def _report(plan: _Plan, written: OutputFile) -> ToolReport:
    warnings = []
    if plan.converted.filled:
        warnings.append(
            f"{plan.converted.filled} modules have fewer ranks than others, which diffusers takes for one strength: "
            "theirs are filled up with zeros"
        )
    if plan.converted.rounded and plan.precision != "float":
        warnings.append(
            f"{plan.converted.rounded} modules are multiplied by alpha / rank, which diffusers lacks, and "
            f"rounded to {plan.precision} once more: the precision fp32 keeps them exact"
        )
    if plan.settings.to == AS_STORED and CONFIG_KEY in plan.file.metadata:
        warnings.append(
            "the strength of this network stands in adapter_config.json beside it, and the new file does not have it: "
            "convert it to sd-scripts' names instead"
        )
    facts = {
        "Names": plan.file.network.dialect if plan.settings.to == AS_STORED else plan.settings.to,
        "Names before": plan.file.network.dialect,
        "Modules": str(len(plan.file.modules)),
        "Tensors": str(len(plan.converted.tensors)),
        "Precision": plan.precision,
    }
    return ToolReport("Convert a network", facts, (), warnings, (written,))
