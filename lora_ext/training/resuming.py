"""Going on from a saved state: whether it is the same run, and what has changed where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.given_path import given_path
from lora_ext.config.train_config import TrainConfig, all_settings, flat_values
from lora_ext.dataset.folders import DatasetScan, Member, some_of
from lora_ext.dataset.images import content_hash
from lora_ext.dataset.masks import masks_of
from lora_ext.protocols import UserError
from lora_ext.training.checks import PreparedRun
from lora_ext.training.first_weights import BaseNetwork
from lora_ext.training.plan import TrainingPlan
from lora_ext.training.state_folders import SavedState, latest_state, read_state

LATEST = "latest"
"""What `resume` may say in place of a folder: the run's state that was written last."""

_IRRELEVANT_GROUPS = ("saving", "samples")
_IRRELEVANT = frozenset({
    "train_data_dir", "reg_data_dir", "conditioning_data_dir",  # what lies in them is compared
    "network_weights", "base_weights", "base_weights_multiplier",  # the state has the former, the others are compared
    "gradient_checkpointing", "on_out_of_memory", "cache_latents", "cache_latents_to_disk", "vae_batch_size",
    "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "stop_after_bad_steps",
})  # fmt: skip
_ALPHAS = frozenset({"network_alpha", "conv_alpha", "block_alphas", "conv_block_alphas"})


def find_state(config: TrainConfig, output_dir: Path) -> SavedState | None:
    """The state that `resume` names: a folder, one in the output folder, or `latest`; None where it is empty.

    Raises UserError where there is none.
    """
    wanted = config.saving.resume.strip()
    if not wanted:
        return None
    if wanted == LATEST:
        found = latest_state(output_dir, config.saving.output_name)
        if found is None:
            raise UserError(
                f"resume = {LATEST}: {output_dir} holds no state of {config.saving.output_name}; runs write some where "
                "save_state is on"
            )
        return read_state(found)
    folder = given_path(wanted)
    inside = output_dir / folder
    return read_state(inside if inside.is_dir() and not folder.is_dir() else folder)


def facts_of(
    scan: DatasetScan, checkpoint: Checkpoint, base: Sequence[BaseNetwork], masked: bool = False
) -> dict[str, Any]:
    """What tells whether the same thing is trained on: checkpoint, files merged into it, pictures, masks where used."""
    masks = masks_of(scan) if masked else [None] * len(scan.members)
    return {
        "checkpoint": {"name": checkpoint.name, "sha256": checkpoint.sha256},
        "vae": checkpoint.vae_path.name if checkpoint.vae_path else "",
        "base_weights": [[each.file.path.name, each.multiplier, each.hash] for each in base],
        "pictures": [_told(member, mask) for member, mask in zip(scan.members, masks, strict=True)],
    }


def check_same_run(state: SavedState, prepared: PreparedRun, facts: Mapping[str, Any]) -> list[str]:
    """What has changed since the state was saved, in words.

    Raises UserError with all of it, unless `resume_anyway` allows it; and where the run has no step left.
    """
    settings = _changed_settings(state.settings, flat_values(prepared.config))
    changes = [
        *_changed_checkpoint(state.facts, facts),
        *(_changed_vae(state.facts, facts) if not prepared.config.memory.vae.strip() else ()),
        *_changed_pictures(state.facts["pictures"], facts["pictures"], with_options=not settings),
        *settings,
    ]
    steps, wanted = len(state.losses), prepared.config.saving.resume
    if changes and not prepared.config.saving.resume_anyway:
        lines = "\n".join(f"  - {change}" for change in changes)
        raise UserError(
            f"resume = {wanted}: this is not the run that was saved after step {steps}:\n{lines}\n"
            "Put back what has changed, or switch resume_anyway on to go on with it as it is now"
        )
    if steps >= prepared.plan.total_steps:
        raise UserError(
            f"resume = {wanted}: this run is complete, with {steps} of {prepared.plan.total_steps} steps; raise "
            "max_train_epochs (or max_train_steps) and switch resume_anyway on"
        )
    _check_place(state, prepared.plan)
    return changes


def _told(member: Member, mask: Path | None) -> list[Any]:
    """A picture: name, content with its mask's, caption, repeats, treatment; where its mask lies is no matter."""
    entry, subset = member.entry, member.subset
    parent = f"{subset.folder.parent.name}/" if subset.is_reg else ""  # often named as the folder that it belongs to
    options = replace(subset.options, conditioning_data_dir="")
    name = f"{parent}{subset.folder.name}/{entry.path.name}"
    content = f"{entry.content_hash} {content_hash(mask)}" if mask else entry.content_hash
    return [name, content, entry.caption, member.repeats, f"{options} {subset.sizing}"]


def _changed_checkpoint(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = then["checkpoint"], now["checkpoint"]
    hashes = before["sha256"], after["sha256"]
    changes = []
    if hashes[0] != hashes[1] if all(hashes) else before["name"] != after["name"]:
        changes.append(f"checkpoint: {before['name']} ({hashes[0][:10]}) then, {after['name']} ({hashes[1][:10]}) now")
    if then["base_weights"] != now["base_weights"]:
        merged = [
            ", ".join(f"{name} × {multiplier:g} ({digest[:10]})" for name, multiplier, digest in each["base_weights"])
            for each in (then, now)
        ]
        changes.append(f"base_weights: {merged[0] or 'none'} then, {merged[1] or 'none'} now")
    return changes


def _changed_vae(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has become of the VAE that is loaded with the checkpoint; it encodes where the settings name none."""
    names = [each["vae"] or "the checkpoint's own" for each in (then, now)]
    return [f"loaded VAE: {names[0]} then, {names[1]} now"] if names[0] != names[1] else []


def _changed_pictures(then: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]], with_options: bool) -> list[str]:
    """What has become of the pictures; their options come from the settings, which may tell it shorter."""
    before, after = _by_name(then), _by_name(now)
    both = [name for name in before if name in after]
    kinds = {
        "gone": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
        "changed": [name for name in both if before[name][0] != after[name][0]],
        "with another caption": [name for name in both if before[name][1] != after[name][1]],
        "with other repeats": [name for name in both if before[name][2] != after[name][2]],
        "with other options": [name for name in both if with_options and before[name][3] != after[name][3]],
    }
    changes = [f"pictures {kind}: {some_of(names, limit=4)}" for kind, names in kinds.items() if names]
    if not changes and [each[0] for each in then] != [each[0] for each in now]:
        changes.append("pictures: the same ones in another order")
    return changes


def _by_name(pictures: Sequence[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """What is told of pictures, by name; where several have one (in folders of one name) they are numbered."""
    found: dict[str, Sequence[Any]] = {}
    for name, *facts in pictures:
        number = 1
        while (key := name if number == 1 else f"{name} ({number})") in found:
            number += 1
        found[key] = facts
    return found


def _changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changes = []
    for name, declared in all_settings().items():
        if declared.group in _IRRELEVANT_GROUPS or name in _IRRELEVANT or then[name] == now[name]:
            continue
        more = name == "max_train_epochs" and None not in (then[name], now[name]) and now[name] > then[name]
        kept = " (the state's stay)" if name in _ALPHAS else ""
        note = " (the schedule stretches over all of them)" if more else kept
        changes.append(f"{name}: {then[name]} then, {now[name]} now{note}")
    return changes


def _check_place(state: SavedState, plan: TrainingPlan) -> None:
    """Raise UserError where an epoch has become shorter than what of it is trained already."""
    if state.position.updates > plan.updates_per_epoch:
        raise UserError(
            f"resume: the state lies {state.position.updates} steps into epoch {state.position.epoch}, which has only "
            f"{plan.updates_per_epoch} now: take a state from the end of an epoch, or put the pictures back"
        )
