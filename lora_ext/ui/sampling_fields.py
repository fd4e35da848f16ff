"""The fields of one picture (prompt, size, steps, …), which the generate and the grid panel share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import GenerateRequest, Host, UserError


@dataclass(frozen=True)
class SamplingFields:
    """Components in the order of `GenerateRequest`'s fields."""

    fields: dict[str, gr.components.Component]

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The components, as an event listener takes them."""
        return list(self.fields.values())

    def request(self, values: Sequence[Any]) -> GenerateRequest:
        """The request that stands in the fields; an empty number is named in a UserError."""
        given = dict(zip(self.fields, values, strict=True))
        for name in ("width", "height", "steps", "batch_size", "clip_skip", "seed"):
            if name in given:
                given[name] = _whole_number(name, given[name])
        if given["cfg_scale"] is None:
            raise UserError("cfg_scale is empty: give a number from 1 on")
        return GenerateRequest(**given)


def sampling_fields(host: Host, page: str, start: GenerateRequest, several: bool) -> SamplingFields:
    """Fields in the present gradio context with `start` in them; `several` with a number of pictures, any seed."""
    names = host.samplers()
    fields: dict[str, gr.components.Component] = {}
    fields["prompt"] = gr.Textbox(
        start.prompt,
        label="Prompt",
        lines=3 if several else 2,
        elem_id=f"lw-{page}-prompt",
        placeholder="words, and <lora:name:1>",
    )
    fields["negative_prompt"] = gr.Textbox(
        start.negative_prompt, label="Negative prompt", lines=1, elem_id=f"lw-{page}-negative"
    )
    with gr.Row(elem_classes=["lw-fields", "lw-slim"]):
        fields["width"] = _slider(page, "width", "Width", 64, 1024, start.width, 8)
        fields["height"] = _slider(page, "height", "Height", 64, 1024, start.height, 8)
        fields["steps"] = _slider(page, "steps", "Steps", 1, 100, start.steps, 1)
        fields["cfg_scale"] = _slider(page, "cfg", "CFG", 1, 20, start.cfg_scale, 0.5)
        fields["clip_skip"] = _slider(page, "clip-skip", "Clip skip", 1, 4, start.clip_skip, 1)
        if several:
            fields["batch_size"] = _slider(page, "batch", "Pictures", 1, 16, 4, 1)
        fields["sampler"] = gr.Dropdown(
            names,
            value=start.sampler if start.sampler in names else names[0],
            label="Sampler",
            elem_id=f"lw-{page}-sampler",
        )
        fields["seed"] = gr.Number(-1 if several else 1, precision=0, label="Seed (-1: any)", elem_id=f"lw-{page}-seed")
    return SamplingFields(fields)


def refuse_while_training(runner: JobRunner, what: str) -> None:
    """Raise UserError where a run has the checkpoint; a paused one has given it back."""
    status = runner.status()
    if status.active and status.record is not None and status.record.state != "paused":
        left = f" (about {max(1, round(status.eta_seconds / 60))} min left)" if status.eta_seconds is not None else ""
        raise UserError(
            f"{status.record.name} is in training on this checkpoint{left}: {what} when it has ended, or pause it"
        )


def _slider(page: str, name: str, label: str, least: float, most: float, value: float, step: float) -> gr.Slider:
    return gr.Slider(
        least, most, value=value, step=step, label=label, elem_id=f"lw-{page}-{name}", elem_classes=["lw-slider"],
        min_width=150,
    )  # fmt: skip


def _whole_number(name: str, value: Any) -> int:
    if value is None:
        raise UserError(f"{name} is empty: give a whole number")
    return int(value)
