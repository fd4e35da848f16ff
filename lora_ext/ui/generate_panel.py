"""The standalone app's panel for single pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import GeneratedImage, GenerateRequest, UserError
from lora_ext.ui.sampling_fields import SamplingFields, refuse_while_training, sampling_fields
from lora_ext.web import markup
from lora_ext.web.pictures import picture_url


def build_generate_panel(host: StandaloneHost, runner: JobRunner, start: GenerateRequest) -> None:
    """The panel in the present gradio context, with `start` in its fields."""
    with gr.Row(elem_classes=["lw-two-columns"]):
        with gr.Column(scale=2, min_width=380):
            fields = sampling_fields(host, "generate", start, several=True)
            button = gr.Button("Generate", variant="primary", elem_id="lw-generate")
        with gr.Column(scale=3, min_width=380):
            gallery = gr.HTML(markup.hint("Pictures appear here."), elem_id="lw-generate-result")

    def generate(*values: Any, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008 (gradio's way to inject it)
        return pictures_of(host, runner, fields, values, progress)

    button.click(generate, fields.inputs, gallery)
    fields.fields["negative_prompt"].submit(generate, fields.inputs, gallery)


def pictures_of(
    host: StandaloneHost, runner: JobRunner, fields: SamplingFields, values: Sequence[Any], progress: gr.Progress
) -> str:
    """The pictures of a request as HTML, saved in the host's folder; what is wrong in red words."""
    try:
        refuse_while_training(runner, "generate")
        request = fields.request(values)
        images = host.generate(request, lambda done, total: progress((done, total), desc="sampling", unit="steps"))
        saved = [host.save_image(image) for image in images]
    except UserError as error:
        return markup.errors([str(error)])
    return gallery_html(images, saved)


def gallery_html(images: Sequence[GeneratedImage], paths: Sequence[Path]) -> str:
    """Pictures that open in full size, what there is to say of them, and the infotext of the first."""
    cells = "".join(
        f'<a href="{escape(picture_url(path))}" target="_blank" rel="noopener"><img src="{escape(picture_url(path))}" '
        f'alt="seed {image.seed}" title="seed {image.seed}"></a>'
        for image, path in zip(images, paths, strict=True)
    )
    messages = list(dict.fromkeys(text for image in images for text in image.messages))
    return (
        f'<div class="lw-gallery" data-count="{len(images)}">{cells}</div>{markup.warnings(messages)}'
        f'<pre class="lw-infotext">{escape(images[0].infotext)}</pre>'
        f'<p class="lw-hint">saved in {escape(str(paths[0].parent))}</p>'
    )
