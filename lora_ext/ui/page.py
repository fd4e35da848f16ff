"""gradio's page made self-sufficient: nothing from other servers, and our style and script in it."""

from __future__ import annotations

import re

_FOREIGN = re.compile(
    r"<link\b[^>]*\bhref=\"https?://[^>]*>|<script\b[^>]*\bsrc=\"https?://[^>]*>\s*</script>", re.IGNORECASE
)
SCRIPTS = (
    "lora_workshop.js",
    "lora_workshop_files.js",
    "lora_workshop_form.js",
    "lora_workshop_masks.js",
    "lora_workshop_networks.js",
    "lora_workshop_presets.js",
    "lora_workshop_runs.js",
    "lora_workshop_samples.js",
    "lora_workshop_slots.js",
    "lora_workshop_try.js",
)
"""Our scripts, the one that the others extend first; the WebUI takes them in the order of their names."""

_OWN = (
    '<link rel="icon" href="data:,">'
    '<link rel="stylesheet" href="lora-workshop/style.css">'
    "<style>footer { display: none !important; }</style>"
    + "".join(f'<script defer src="lora-workshop/{name}"></script>' for name in SCRIPTS)
)


def localised(page: str) -> str:
    """The page without links and scripts of other servers, with ours at the end of its head."""
    return _FOREIGN.sub("", page).replace("</head>", f"{_OWN}</head>", 1)
