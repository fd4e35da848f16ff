"""Networks into a checkpoint: the file whose pictures are those of the checkpoint with the networks' tags."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ext.checkpoint.file_weights import CheckpointFile, open_checkpoint_file
from lora_ext.checkpoint.tensor_files import PICKLED_SUFFIXES
from lora_ext.config.tools.merge_checkpoint import MergeCheckpointSettings
from lora_ext.merge.checkpoint_output import CheckpointOutput, checkpoint_output
from lora_ext.merge.checkpoint_sums import CheckpointSum, checkpoint_sum, summed
from lora_ext.merge.inputs import WeightedNetwork, weighted_networks
from lora_ext.merge.low_rank_out import SOURCES
from lora_ext.merge.memory import check_memory
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import AS_STORED, OutputFile, ToolReport, Work, check_output
from lora_ext.networks.atomic_write import replace_file
from lora_ext.networks.file import model_hash, sha256_from
from lora_ext.protocols import UserError

_COPIES = "model_ema."
_STALE = ("modelspec.hash_sha256", "modelspec.date", "sshs_model_hash", "sshs_legacy_hash")
_DTYPES_TOLD = ("modelspec.unet_dtype", "modelspec.vae_dtype")
_VAE_ENDINGS = (".vae.safetensors", ".vae.ckpt", ".vae.pt")
_WORKING_COPIES = (
    6  # of the largest weight in fp32: the sum, one ΔW, and what the slowest kinds of network build it from
)


@dataclass(frozen=True)
class _Plan:
    """All that is known before a byte is written."""

    checkpoint: CheckpointFile
    networks: Sequence[WeightedNetwork]
    sum: CheckpointSum
    output: CheckpointOutput
    precision: str
    out: Path

    @property
    def yaml(self) -> bytes | None:
        """The YAML beside the checkpoint, None where there is none."""
        path = self.checkpoint.file.path.with_suffix(".yaml")
        return _content(path) if path.is_file() else None

    def metadata(self, sha256: str) -> dict[str, str]:
        """The checkpoint's own, without what is not true any more, and what it was made of; with its file's sha256."""
        path = self.checkpoint.file.path
        sources = [{"name": path.name, "hash": sha256}, *map(_source, self.networks)]
        stale = _STALE if self.precision == AS_STORED else (*_STALE, *_DTYPES_TOLD)
        kept = {key: value for key, value in self.checkpoint.file.metadata.items() if key not in stale}
        if "modelspec.sai_model_spec" in kept:
            kept["modelspec.title"] = self.out.stem
            kept["modelspec.merged_from"] = ", ".join([path.stem, *(network.name for network in self.networks)])
        return {"format": "pt", **kept, SOURCES: json.dumps(sources, ensure_ascii=False)}

    def report(self, files: Sequence[OutputFile]) -> ToolReport:
        """What a person is told."""
        file = self.checkpoint.file
        facts = {"Checkpoint": f"{file.path.name}, {self.checkpoint.architecture}"}
        for number, (network, modules) in enumerate(zip(self.networks, self.sum.modules, strict=True), 1):
            facts[f"Network {number}"] = f"{_words(network)}: {modules} modules ({_algorithms(network)})"
        facts["Weights changed"] = f"{len(self.sum.patches)} of {len(file.shapes)} tensors"
        facts["Precision"] = self.precision
        if self.yaml is not None:
            facts["How it is built"] = f"{file.path.with_suffix('.yaml').name} is copied beside it"
        return ToolReport("Networks into a checkpoint", facts, warnings=self._warnings(), files=files)

    def _warnings(self) -> list[str]:
        path = self.checkpoint.file.path
        warnings = [*self.sum.warnings, *(words for network in self.networks for words in network.left_out())]
        copies = sum(name.startswith(_COPIES) for name in self.checkpoint.file.shapes)
        if copies:
            warnings.append(f"{copies} tensors are averaged copies of the U-Net ({_COPIES}…), which stay as they are")
        beside = self.out.with_suffix(".yaml")
        if self.yaml is None and beside.exists():
            warnings.append(
                f"{beside.name} is there already and is taken for the output's, though the checkpoint has none: remove "
                "it if it is of another file"
            )
        for ending in _VAE_ENDINGS:
            if path.with_suffix(ending).is_file():
                warnings.append(f"{path.stem}{ending} is not copied: choose it as the VAE of the merged checkpoint")
        return warnings


def preview(settings: MergeCheckpointSettings, work: Work) -> ToolReport:
    """What merging would change, and the file that it would write."""
    plan = _plan(settings, work)
    size = plan.output.file_size(plan.metadata("0" * 64))
    return plan.report([OutputFile(plan.out, size), *_beside(plan)])


def run(settings: MergeCheckpointSettings, work: Work) -> ToolReport:
    """Write W + Σ w·ΔW, tensor by tensor."""
    plan = _plan(settings, work)
    patches = plan.sum.patches
    written = plan.output.write(
        plan.out,
        plan.metadata(sha256_from(plan.checkpoint.file.path, between=work.control.raise_if_stopping)),
        lambda name, stored, dtype: summed(name, stored, patches.get(name), dtype, work.device),
        work,
    )
    if plan.yaml is not None:
        replace_file(plan.out.with_suffix(".yaml"), [plan.yaml])
    return plan.report([written, *_beside(plan)])


def _beside(plan: _Plan) -> list[OutputFile]:
    """The copied YAML, where there is one."""
    return [] if plan.yaml is None else [OutputFile(plan.out.with_suffix(".yaml"), len(plan.yaml))]


def _plan(settings: MergeCheckpointSettings, work: Work) -> _Plan:
    """Read what is given, and check all that can be; UserError where anything is wrong."""
    _refuse_missing(settings)
    path = work.checkpoint(settings.checkpoint)
    if path.suffix.lower() in PICKLED_SUFFIXES:
        check_memory(path.stat().st_size, f"reading {path.name}, which has to be read whole,")
    checkpoint = open_checkpoint_file(path)
    networks = weighted_networks(
        work, settings.network, settings.te_weight, settings.lbw, architecture=checkpoint.architecture
    )
    output = checkpoint_output(checkpoint.file, settings.precision)
    out = Path(settings.out.strip())
    check_output(out, [path, *(each.file.path for each in networks)], settings.overwrite, output.size)
    plan = _Plan(checkpoint, networks, checkpoint_sum(checkpoint, networks), output, settings.precision, out)
    _check_yaml(plan, settings.overwrite)
    if not plan.sum.patches:
        raise UserError("nothing would change: all weights are 0; give at least one network another weight")
    largest = max(_numbers(checkpoint, name) for name in plan.sum.patches)
    check_memory(_WORKING_COPIES * 4 * largest, f"merging into {path.name}", work.device)
    return plan


def _refuse_missing(settings: MergeCheckpointSettings) -> None:
    if not settings.checkpoint.strip():
        raise UserError("no checkpoint is given: name the one that the networks are merged into (--checkpoint)")
    if not settings.out.strip():
        raise UserError("no output is given: name the file to write (--out merged.safetensors)")


def _check_yaml(plan: _Plan, overwrite: bool) -> None:
    beside = plan.out.with_suffix(".yaml")
    if not beside.exists() or overwrite:
        return
    if plan.yaml is None:
        raise UserError(
            f"{beside} is there already, and would be taken for the output's, while the checkpoint has none: give the "
            "output another name, remove that file, or let it be the output's (--overwrite)"
        )
    if _content(beside) != plan.yaml:
        raise UserError(
            f"{beside} is there already, and is not the checkpoint's: give the output another name, or allow "
            "overwriting it (--overwrite)"
        )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): allow reading it, or move it") from error


def _numbers(checkpoint: CheckpointFile, name: str) -> int:
    return math.prod(checkpoint.file.shapes[name])


def _source(network: WeightedNetwork) -> dict[str, object]:
    """What a merged file says of one of its networks."""
    source = {"name": network.file.path.name, "hash": model_hash(network.file.path), "weight": network.weight}
    if network.te_weight != network.weight:
        source["te_weight"] = network.te_weight
    return source if network.blocks is None else {**source, "lbw": network.blocks.text}


def _words(network: WeightedNetwork) -> str:
    words = f"{network.name} × {network.weight:g}"
    if network.te_weight != network.weight:
        words += f", text encoders × {network.te_weight:g}"
    return words if network.blocks is None else f"{words}, lbw={network.blocks.text}"


def _algorithms(network: WeightedNetwork) -> str:
    return ", ".join(sorted({delta.algorithm for delta in network.deltas.values()}))


TOOL = Tool(
    "merge-checkpoint",
    "Into a checkpoint",
    "Add networks to a checkpoint's weights: its pictures are then those with the networks' tags.",
    MergeCheckpointSettings,
    run,
    preview,
    writes_checkpoints=True,
)
