"""Checking networks: healthy, doubtful or damaged, with the reasons in words and what can be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_ext.checkpoint.file_weights import CheckpointFile, open_checkpoint_file
from lora_ext.config.tools.check import CheckSettings
from lora_ext.merge.alpha_check import SPLIT, alpha_findings
from lora_ext.merge.base_check import Strengths, matched_modules, strength_findings, strengths
from lora_ext.merge.dead_modules import dead_findings
from lora_ext.merge.findings import Finding, modules_words, some_of, verdict_of
from lora_ext.merge.inputs import base_of
from lora_ext.merge.tools import Tool
from lora_ext.merge.value_check import measured_numbers, number_findings, number_words
from lora_ext.merge.work import ToolReport, Verdict, Work
from lora_ext.networks.file import NetworkFile, precalculate_hashes, read_network, scan_network, sha256_from
from lora_ext.networks.formats import canonical_modules
from lora_ext.networks.formats.names import parse_tensor_name
from lora_ext.networks.pickled_file import SUFFIXES as PICKLED
from lora_ext.networks.weight_delta import ModuleDelta, UnsupportedNetworkError, module_delta
from lora_ext.protocols import UserError

Step = Callable[[int, int], None]

_HASH = "sshs_model_hash"
_PARTS = 1000
"""How finely the progress of one file is told."""


@dataclass(frozen=True)
class Checked:
    """One file's verdict and the reasons; `facts` are words by label."""

    path: Path
    findings: tuple[Finding, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    strengths: Strengths | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        return verdict_of(self.findings)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        found = self.strengths
        changes = {} if found is None else {"changes": dict(found.modules), "changes_by_block": dict(found.blocks)}
        return {
            "file": str(self.path),
            "verdict": self.verdict,
            "facts": dict(self.facts),
            "findings": [finding.as_json() for finding in self.findings],
            **changes,
        }


def run(settings: CheckSettings, work: Work) -> ToolReport:
    """Check every file; one that cannot be read is damaged, and the others are checked all the same."""
    paths = [work.network(line) for line in settings.files.splitlines() if line.strip()]
    if not paths:
        raise UserError("no file is given: name at least one network")
    checkpoint = open_checkpoint_file(work.checkpoint(settings.checkpoint)) if settings.checkpoint.strip() else None
    total = len(paths) * _PARTS
    checked = []
    for place, path in enumerate(paths):
        work.step(place * _PARTS, total)
        checked.append(check_file(path, checkpoint, _within(work, place, total)))
    work.step(total, total)
    return report_of(checked)


def _within(work: Work, place: int, total: int) -> Step:
    """Progress inside the file at a place among all."""
    return lambda done, parts: work.step(place * _PARTS + done * _PARTS // max(1, parts), total)


def check_file(path: Path, checkpoint: CheckpointFile | None, step: Step = lambda done, total: None) -> Checked:
    """Check one file; what its reader refuses makes it a damaged one, in the reader's words."""
    try:
        if path.suffix.lower() not in PICKLED and not scan_network(path).holds_network:
            text = "none of its tensors is one of a network: `inspect` tells what it is"
            return Checked(path, (Finding("doubtful", "no network", text),))
        file = read_network(path)
        return check_network(file, checkpoint, step)
    except UserError as error:
        return Checked(path, (Finding("damaged", "unreadable", str(error)),))


def check_network(
    file: NetworkFile, checkpoint: CheckpointFile | None, step: Step = lambda done, total: None
) -> Checked:
    """All that there is to say of a file in memory. Raises UserError where its tensors have no names that are known."""
    metadata = file.metadata
    network = canonical_modules(file.tensors, metadata, checkpoint.architecture if checkpoint else None)
    if not network.modules and not network.embeddings:
        text = f"none of its {len(file.tensors)} tensors is one of a network"
        return Checked(file.path, (Finding("doubtful", "no network", text),))
    numbers = measured_numbers(network)
    broken = {key for (key, _), facts in numbers.items() if facts.not_finite}
    deltas, about_modules = module_changes({k: each for k, each in network.modules.items() if k not in broken})
    findings = [*number_findings(numbers), *about_modules, *dead_findings(network.modules, metadata)]
    findings += alpha_findings(network.modules, deltas, metadata, network.dialect)
    hash_findings, hash_words = _hash(file)
    findings += [*_names(network.unknown), *hash_findings]
    found = None
    if checkpoint is not None and deltas:
        matched, about = matched_modules(deltas, metadata, checkpoint)
        findings += about
        if matched is not None:
            found = strengths(deltas, matched, checkpoint, step)
            findings += strength_findings(found)
    facts = _facts(deltas, metadata) | hash_words | number_words(numbers) | _change_words(found)
    return Checked(file.path, tuple(findings), facts, found)


def module_changes(modules: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, ModuleDelta], list[Finding]]:
    """What each module does, without those whose tensors do not fit together; and what there is to say of those."""
    deltas: dict[str, ModuleDelta] = {}
    unknown: dict[str, str] = {}
    odd: dict[str, str] = {}
    for key, tensors in modules.items():
        try:
            deltas[key] = module_delta(tensors)
        except UnsupportedNetworkError as error:
            unknown[key] = str(error)
        except UserError as error:
            odd[key] = str(error)
    findings = []
    if odd:
        key = next(iter(odd))
        text = f"{modules_words(len(odd))} cannot be applied ({key}: {odd[key]}); `repair` writes the file without them"
        findings.append(Finding("damaged", "tensors", text, tuple(odd)))
    if unknown:
        key = next(iter(unknown))
        text = f"{modules_words(len(unknown))} of {len(modules)} of a kind that is not known here ({key}: "
        findings.append(Finding("doubtful", "unknown kind", f"{text}{unknown[key]})", tuple(unknown)))
    return deltas, findings


def _names(unknown: list[str]) -> list[Finding]:
    twice = tuple(name for name in unknown if parse_tensor_name(name) is not None)
    others = tuple(name for name in unknown if name not in twice)
    findings = []
    if twice:
        text = f"{len(twice)} tensors are of modules that are there under other names too ({some_of(twice)}): only the "
        findings.append(Finding("doubtful", "duplicates", text + "first counts; `repair` takes the others out", twice))
    if others:
        text = f"{len(others)} tensors are of no known network ({some_of(others)}): they do nothing here; another "
        findings.append(Finding("doubtful", "unknown names", text + "program may need them", others))
    return findings


def _hash(file: NetworkFile) -> tuple[list[Finding], dict[str, str]]:
    stored = file.metadata.get(_HASH)
    if not stored:
        return [], {}
    if stored == precalculate_hashes(file.tensors, file.metadata)[0] or stored == _hash_as_it_lies(file.path):
        return [], {"hash": "matches the tensors"}
    if SPLIT in file.metadata.get("ss_training_comment", ""):
        text = "its hash is that of another rank, as sd-scripts writes it into files that it splits; `repair` writes "
        return [Finding("note", "hash", f"{text}the right one")], {"hash": "is that of another rank"}
    text = "its tensors are not those that its hash was computed of: another program changed them without saying so, "
    text += "or the file suffered; get it again, or if the change was wanted, `repair` writes it with the right hash"
    return [Finding("doubtful", "hash", text)], {"hash": "is that of other tensors"}


def _hash_as_it_lies(path: Path) -> str:
    """Of the tensors in the file's own order: early versions of safetensors had another one than today's."""
    return sha256_from(path, scan_network(path).data_start)


def _facts(deltas: Mapping[str, ModuleDelta], metadata: Mapping[str, str]) -> dict[str, str]:
    algorithms = Counter(delta.algorithm for delta in deltas.values())
    ranks = Counter(delta.rank for delta in deltas.values() if delta.rank is not None)
    facts = {
        "modules": str(len(deltas)),
        "algorithms": ", ".join(f"{name} ({count})" for name, count in algorithms.most_common()),
        "ranks": ", ".join(f"{rank} ({count})" for rank, count in sorted(ranks.items())),
        "for": base_of(deltas, metadata),
    }
    return {label: words for label, words in facts.items() if words}


def _change_words(found: Strengths | None) -> dict[str, str]:
    if found is None or not found.blocks:
        return {}
    return {"change by block": ", ".join(f"{block} {ratio:.2%}" for block, ratio in found.blocks.items())}


def report_of(checked: list[Checked]) -> ToolReport:
    """What is told of all files: of a single one its facts, of several a line each."""
    verdict = verdict_of(finding for each in checked for finding in each.findings)
    details = {"checked": [each.as_json() for each in checked]}
    if len(checked) == 1:
        (only,) = checked
        notes = [finding.text for finding in only.findings if finding.severity == "note"]
        facts = {**only.facts, **({"notes": "\n".join(notes)} if notes else {})}
        warnings = [finding.text for finding in only.findings if finding.severity != "note"]
        return ToolReport(f"{only.path.name}: {verdict}", facts, (), warnings, (), verdict, details)
    counts = Counter(each.verdict for each in checked)
    words = ", ".join(f"{counts[name]} {name}" for name in ("healthy", "doubtful", "damaged") if counts[name])
    names = Counter(each.path.name for each in checked)
    facts = {each.path.name if names[each.path.name] == 1 else str(each.path): each.verdict for each in checked}
    warnings = [
        f"{each.path.name}: {finding.text}"
        for each in checked
        for finding in each.findings
        if finding.severity != "note"
    ]
    return ToolReport(f"{len(checked)} files: {words}", facts, (), warnings, (), verdict, details)


TOOL = Tool(
    "check",
    "Check",
    "Tell whether networks are healthy, doubtful or damaged, why, and what can be done.",
    CheckSettings,
    run,
)
