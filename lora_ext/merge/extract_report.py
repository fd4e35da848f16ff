"""What an extraction has found: in words for a person, and as metadata of the file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median

from torch import Tensor

from lora_ext.checkpoint.checkpoint import PredictionType
from lora_ext.merge.checkpoint_pair import CheckpointPair
from lora_ext.merge.extraction import Extracted
from lora_ext.merge.left_out import CONVOLUTIONS, VAE, LeftOut
from lora_ext.merge.low_rank_out import SOURCES, changed_metadata
from lora_ext.merge.work import ModuleReport, OutputFile, ToolReport
from lora_ext.networks.matching import first_names
from lora_ext.networks.metadata import base_model_version, legacy_file_hash, modelspec_kind
from lora_ext.protocols import UserError

_RESOLUTIONS = {"sd_v1": 512, "sd_v2": 512, "sd_v2_v": 768, "sdxl_base_v1-0": 1024}
_UNET = "lora_unet_"
_MUCH = 0.01  # of the change


@dataclass
class Found:
    """What two checkpoints differ in: by module, and what no module holds.

    `skipped_text` is the largest difference in text encoders that are left out for it; None where none are. `missing`
    are the modules that only one of both checkpoints has.
    """

    keys: Sequence[str]
    skipped_text: float | None
    left_out: LeftOut
    min_diff: float
    missing: Sequence[str] = ()
    modules: dict[str, Extracted] = field(default_factory=dict)

    @property
    def change(self) -> float:
        """‖ΔW‖² of all modules."""
        return sum(module.change for module in self.modules.values())

    @property
    def lost(self) -> float:
        """‖ΔW - up @ down‖² of all modules."""
        return sum(module.lost for module in self.modules.values())

    def check(self, pair: CheckpointPair) -> None:
        """UserError where there is nothing to extract."""
        if self.modules:
            return
        names = f"{pair.base.name} and {pair.tuned.name}"
        if self.skipped_text:
            raise UserError(
                f"{names} differ in the text encoders alone, and there by {self.skipped_text:.3g} at most, less than "
                f"min_diff = {self.min_diff:g}: take a smaller one to extract them"
            )
        if self.left_out.changes:
            kinds = ", ".join(sorted(self.left_out.changes))
            raise UserError(f"{names} do not differ in anything that the network would hold, only in: {kinds}")
        raise UserError(f"{names} do not differ: there is nothing to extract; choose the checkpoint that was tuned")


def report_of(pair: CheckpointPair, found: Found, files: Sequence[OutputFile]) -> ToolReport:
    """What is in the network and what is not."""
    ranks = [module.rank for module in found.modules.values()]
    whole = found.change + found.left_out.total
    left_out = found.left_out.described(whole)
    error = (found.lost / found.change) ** 0.5
    facts = {
        "Base": f"{pair.base.name} ({pair.architecture})",
        "Tuned": pair.tuned.name,
        "Modules": _counted(found.modules),
        "Ranks": str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}, median {median(ranks):g}",
        "Kept of their change": f"{1 - found.lost / found.change:.4%} of ‖ΔW‖² (relative error {error:.2e})",
        "Not in the network": ", ".join(left_out) if left_out else "nothing else differs",
    }
    modules = [
        ModuleReport(key, None, module.rank, module.kept, module.singular_values)
        for key, module in found.modules.items()
    ]
    details = {
        "relative_error": error,
        "left_out": {kind: change / whole for kind, change in found.left_out.changes.items() if kind != VAE},
        "vae_differs": VAE in found.left_out.changes,
        "module_errors": {key: (module.lost / module.change) ** 0.5 for key, module in found.modules.items()},
    }
    return ToolReport(
        "Extracted network", facts, modules, warnings=_warnings(pair, found), files=files, details=details
    )  # fmt: skip


def extraction_metadata(
    pair: CheckpointPair,
    modules: Mapping[str, Mapping[str, Tensor]],
    out: Path,
    described: str,
    hash_of: Callable[[Path], str],
) -> dict[str, str]:
    """What sd-scripts writes for an extracted network, the base's name and hashes, and both files as its sources.

    `hash_of` gives a file's sha256.
    """
    base = pair.base.file.path
    # sd-scripts takes SD2 checkpoints that do not say it for those that predict the velocity
    unsaid: PredictionType = "v_prediction" if pair.architecture == "SD2" else "epsilon"
    prediction = pair.prediction or unsaid
    version = base_model_version(pair.architecture, prediction)
    size, base_hash = _RESOLUTIONS[version], hash_of(base)
    stated = {
        "ss_v2": str(pair.architecture == "SD2"),
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_network_args": "{}",
        "ss_sd_model_name": base.name,
        "ss_sd_model_hash": legacy_file_hash(base),
        "ss_new_sd_model_hash": base_hash,
        "modelspec.title": out.stem,
        "modelspec.date": datetime.now().replace(microsecond=0).isoformat(),
        "modelspec.resolution": f"{size}x{size}",
        **{f"modelspec.{key}": value for key, value in modelspec_kind(pair.architecture, prediction).items()},
    }
    tuned = pair.tuned.file.path
    sources = [
        {"name": tuned.name, "hash": hash_of(tuned), "weight": 1.0},
        {"name": base.name, "hash": base_hash, "weight": -1.0},
    ]
    return changed_metadata(stated, modules, described, [], out) | {SOURCES: json.dumps(sources, ensure_ascii=False)}


def _warnings(pair: CheckpointPair, found: Found) -> list[str]:
    """What a person should know of what was compared and of what is left out."""
    warnings = list(pair.notes())
    if found.skipped_text == 0:
        warnings.append("The text encoders are the same in both: they are left out.")
    elif found.skipped_text is not None:
        warnings.append(
            f"The text encoders differ by {found.skipped_text:.3g} at most, less than min_diff = {found.min_diff:g}: "
            "they are left out; a smaller one takes them."
        )
    if found.missing:
        count = len(found.missing)
        warnings.append(
            f"{count} modules are in one of both checkpoints alone: they are left out ({first_names(found.missing)})."
        )
    same = [key for key in found.keys if key not in found.modules]
    if same:
        warnings.append(f"{len(same)} modules are the same in both, and are left out: {first_names(same)}.")
    has_kernels = any(pair.base.weights[key].shape[2:].numel() > 1 for key in found.keys)
    if not has_kernels and any(key.startswith(_UNET) for key in found.keys):
        share = found.left_out.changes.get(CONVOLUTIONS, 0.0) / (found.change + found.left_out.total)
        if share > _MUCH:
            warnings.append(f"{share:.0%} of the change is in convolutions, which are left out: conv_rank takes them.")
    if found.left_out.damaged:
        names = first_names(found.left_out.damaged)
        warnings.append(f"Values that are no numbers (NaN or infinite) are in tensors that are left out: {names}.")
    if VAE in found.left_out.changes:
        warnings.append(
            "The VAE differs as well, and no network holds one: choose that of the tuned checkpoint for it."
        )
    return warnings


def _counted(modules: Mapping[str, Extracted]) -> str:
    """How many there are in the U-Net and in the text encoders."""
    parts = Counter("U-Net" if key.startswith(_UNET) else "text encoders" for key in modules)
    return f"{len(modules)}: " + ", ".join(f"{count} in the {part}" for part, count in parts.items())
