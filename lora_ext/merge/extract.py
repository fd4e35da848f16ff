"""`extract`: the difference between two checkpoints as a network, weight by weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_ext.checkpoint.tensor_files import PICKLED_SUFFIXES
from lora_ext.config.tools.extract import ExtractSettings
from lora_ext.merge.checkpoint_pair import CheckpointPair, open_pair
from lora_ext.merge.extract_report import Found, extraction_metadata, report_of
from lora_ext.merge.extraction import RankChoice, extracted
from lora_ext.merge.hashing import hashes_beside
from lora_ext.merge.left_out import LeftOut, largest_change
from lora_ext.merge.low_rank_out import named_tensors
from lora_ext.merge.memory import check_memory
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import DTYPES, PRECISIONS, OutputFile, ToolReport, Work, check_output, write_result
from lora_ext.networks.file import network_size
from lora_ext.protocols import ConfigError, UserError

_SHOWN = 64
_COPIES, _COPIES_OF_ALL = 8, 16  # of the largest weight in fp32, in memory at once: with a few σ, with all of them


def run(settings: ExtractSettings, work: Work) -> ToolReport:
    """Write the network and tell what is in it."""
    plan = _plan(settings, work)
    out = check_output(Path(settings.out), plan.paths, settings.overwrite, plan.most_bytes)
    with hashes_beside(plan.paths) as hash_of:
        found = plan.find(work, shown=0)
        modules = {key: module.tensors for key, module in found.modules.items()}
        metadata = extraction_metadata(plan.pair, modules, out, plan.described, hash_of)
    file = write_result(out, named_tensors(modules), metadata, PRECISIONS[settings.precision], work)
    return report_of(plan.pair, found, [file])


def preview(settings: ExtractSettings, work: Work) -> ToolReport:
    """What `run` would write, with the singular values of each module."""
    plan = _plan(settings, work)
    found = plan.find(work, shown=_SHOWN)
    tensors = named_tensors({key: module.tensors for key, module in found.modules.items()})
    size = network_size(tensors, {}, PRECISIONS[settings.precision])
    return report_of(plan.pair, found, [OutputFile(Path(settings.out or "network.safetensors"), size)])


@dataclass(frozen=True)
class _Plan:
    """What is compared, and how the ranks are chosen."""

    settings: ExtractSettings
    pair: CheckpointPair
    unet: list[str]
    text: list[str]
    layers: RankChoice
    convolutions: RankChoice | None

    @property
    def paths(self) -> tuple[Path, Path]:
        """Both files."""
        return self.pair.base.file.path, self.pair.tuned.file.path

    @property
    def most_bytes(self) -> int:
        """What the modules take at most, in the file's precision."""
        size = DTYPES[self.settings.precision].itemsize
        return sum(size * self._choice(key).most(min(s[:2])) * (s[0] + math.prod(s[1:])) for key, s in self._shapes())

    @property
    def described(self) -> str:
        """What is done, in words."""
        mode, amount = self.layers.mode, self.layers.amount
        how = f"rank {self.layers.highest}" if mode == "fixed" else f"{mode} {amount:g}"
        return f"extracted from {self.paths[1].name} - {self.paths[0].name}, {how}"

    def check_memory(self, work: Work) -> None:
        """UserError where there is too little."""
        largest = 4 * max(math.prod(shape) for _, shape in self._shapes())
        at_once = largest * (_COPIES_OF_ALL if self.layers.needs_all else _COPIES)
        whole = sum(path.stat().st_size for path in self.paths if path.suffix.lower() in PICKLED_SUFFIXES)
        what = f"extracting from {self.paths[1].name}"
        if work.device.type == "cpu":
            check_memory(at_once + whole + self.most_bytes, what)
        else:
            check_memory(2 * largest + whole + self.most_bytes, what)
            check_memory(at_once, what, work.device)

    def find(self, work: Work, shown: int) -> Found:
        """Go through both files; at least `shown` singular values of each module are kept."""
        largest = self._text_difference(work)
        wants_text = bool(self.text) and not (largest is not None and largest <= self.settings.min_diff)
        keys = self.unet + (self.text if wants_text else [])
        groups, others = self.pair.groups(keys), self.pair.other_tensors(keys)
        total = len(groups) + len(others)
        found = Found(keys, None if wants_text else largest, LeftOut(), self.settings.min_diff, self._missing())
        for done, group in enumerate(groups):
            work.step(done, total)
            for key, change in self.pair.differences(group):
                choice, dtype = self._choice(key), DTYPES[self.settings.precision]
                module = extracted(change.to(work.device), choice, dtype, self.settings.clamp_quantile, shown)
                if module is not None:
                    found.modules[key] = module
        for done, names in enumerate(others, len(groups)):
            work.step(done, total)
            found.left_out.add(self.pair, names)
        work.step(total, total)
        found.check(self.pair)
        return found

    def _text_difference(self, work: Work) -> float | None:
        """The largest difference in the text encoders, or the first above the least; None where there are none."""
        largest = None
        for group in self.pair.groups(self.text):
            work.control.raise_if_stopping()
            key = min(group)
            names = self.pair.base.tensor_of(key), self.pair.tuned.tensor_of(key)
            largest = max(largest or 0.0, largest_change(*self.pair.read(names)))
            if not largest <= self.settings.min_diff:
                break
        return largest

    def _missing(self) -> list[str]:
        wanted = self.settings.what.split(",")
        return self.pair.missing("unet" in wanted, "te" in wanted, self.convolutions is not None)

    def _choice(self, key: str) -> RankChoice:
        is_kernel = math.prod(self.pair.base.weights[key].shape[2:]) > 1
        return self.convolutions if is_kernel and self.convolutions else self.layers

    def _shapes(self) -> list[tuple[str, torch.Size]]:
        return [(key, self.pair.base.weights[key].shape) for key in self.unet + self.text]


def _plan(settings: ExtractSettings, work: Work) -> _Plan:
    """Everything that can be checked before the tensors are read."""
    layers, convolutions = _choices(settings)
    pair = open_pair(work.checkpoint(settings.base), work.checkpoint(settings.tuned))
    unet, text = "unet" in settings.what.split(","), "te" in settings.what.split(",")
    has_kernels = convolutions is not None
    plan = _Plan(
        settings, pair, pair.keys(unet, False, has_kernels), pair.keys(False, text, has_kernels), layers, convolutions
    )
    if not plan.unet and not plan.text:
        raise UserError(
            f"what = {settings.what}: {pair.base.name} and {pair.tuned.name} have no such part in common; choose others"
        )
    plan.check_memory(work)
    return plan


def _choices(settings: ExtractSettings) -> tuple[RankChoice, RankChoice | None]:
    """How the ranks of layers and of 3×3 convolutions are chosen, None where the latter are left out."""
    mode, problems = settings.mode, []
    for name in ("base", "tuned"):
        if not getattr(settings, name).strip():
            problems.append(f"{name}: no checkpoint is named; give a name or a path")
    amount = conv_amount = 0.0
    if mode == "fixed":
        if settings.rank is None:
            problems.append("rank = none: the mode fixed needs a rank, such as 32")
        has_kernels = settings.conv_rank is not None
    else:
        given: float | None = getattr(settings, mode)
        given_conv: float | None = getattr(settings, f"conv_{mode}")
        if given is None:
            problems.append(f"{mode}: the mode {mode} needs a number; see its help")
        amount = given or 0.0
        conv_amount = amount if given_conv is None else given_conv
        has_kernels = settings.conv_rank is not None or given_conv is not None
    if problems:
        raise ConfigError(problems)
    kernels = RankChoice(mode, settings.conv_rank, conv_amount) if has_kernels else None
    return RankChoice(mode, settings.rank, amount), kernels


TOOL = Tool(
    "extract",
    "Extract a network",
    "The difference between a checkpoint and the one that it was made from, as a network for the latter.",
    ExtractSettings,
    run,
    preview,
)
